"""Suppliers as the operator sees them: who applied, what was agreed, what is owed, and money with a second person."""

from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db import transaction
from django.db.models import Model, QuerySet
from django.utils.translation import gettext as _

from billing.errors import AlreadyDecided, BadAdjustment, BadRateCard, RetroactivePrice
from billing.models import Payout, PayoutAccount, RateCard, SupplierAdjustment
from billing.suppliers import adjusting, cards, connecting, payouts
from billing.suppliers.cards import Terms
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import Organization, SupplierApplication

ALL_OFFERS = ""
GIVE, TAKE = "give", "take"
Row = TypeVar("Row", bound=Model)


def listed() -> QuerySet[Organization]:
    """Return everybody who sells capacity."""
    return Organization.objects.filter(is_supplier=True).order_by("name")


def supplier_for(organization_id: str) -> Organization:
    """Return a supplier, or raise NotFound."""
    return _found(listed().filter(public_id=organization_id))


def applications() -> QuerySet[SupplierApplication]:
    """Return the applications that wait, the oldest first."""
    waiting = SupplierApplication.objects.filter(state=SupplierApplication.State.OPEN)
    return waiting.select_related("organization__billing_details", "applied_by").order_by("pk")


def application_for(application_id: str) -> SupplierApplication:
    """Return any application, or raise NotFound."""
    return _found(SupplierApplication.objects.select_related("organization").filter(public_id=application_id))


def card_for(card_id: str) -> RateCard:
    """Return any rate card, or raise NotFound."""
    return _found(RateCard.objects.select_related("supplier", "proposed_by").filter(public_id=card_id))


def adjustment_for(adjustment_id: str) -> SupplierAdjustment:
    """Return any adjustment, or raise NotFound."""
    found = SupplierAdjustment.objects.select_related("supplier", "proposed_by")
    return _found(found.filter(public_id=adjustment_id))


def payout_for(payout_id: str) -> Payout:
    """Return any payout, or raise NotFound."""
    return _found(Payout.objects.select_related("supplier", "statement", "account").filter(public_id=payout_id))


def payouts_of(supplier: Organization) -> QuerySet[Payout]:
    """Return a supplier's payouts, the newest first."""
    found = Payout.objects.filter(supplier=supplier).select_related("statement", "reversal_proposed_by")
    return found.order_by("-pk")


def waiting_cards() -> QuerySet[RateCard]:
    """Return the rate cards that wait for a second person."""
    waiting = RateCard.objects.filter(state=RateCard.State.PROPOSED).select_related("supplier", "proposed_by")
    return waiting.order_by("pk")


def waiting_adjustments() -> QuerySet[SupplierAdjustment]:
    """Return the adjustments that wait for a second person."""
    waiting = SupplierAdjustment.objects.filter(state=SupplierAdjustment.State.PROPOSED)
    return waiting.select_related("supplier", "proposed_by").order_by("pk")


@transaction.atomic
def propose_card(
    *,
    actor: Actor,
    supplier: Organization,
    at: datetime,
    key: UUID,
    effective_from: datetime | None,
    fixed_micros: int | None,
    fixed_currency: str,
    **shares: Any,
) -> RateCard:
    """Propose what a supplier gets from a moment on; at the earliest from its approval on."""
    terms = Terms(
        fixed_micros=fixed_micros, fixed_currency=fixed_currency if fixed_micros is not None else "", **shares
    )
    try:
        card = cards.propose(
            supplier=supplier, terms=terms, effective_from=effective_from or at, by=actor.user.pk, key=key, at=at
        )
    except RetroactivePrice as error:
        raise BadOrder("effective_from", _("A rate card never begins in the past.")) from error
    except BadRateCard as error:
        raise BadOrder("share_bps", _("Nobody can be paid by this: check the shares.")) from error
    if not audit.is_recorded("rate_card.propose", card.public_id):
        after = {"share_bps": card.share_bps, "offer": card.offer}
        _record(actor, supplier, "rate_card.propose", card.public_id, after)
    return card


@transaction.atomic
def approve_card(*, actor: Actor, card: RateCard, at: datetime) -> None:
    """Let a rate card stand; not by whoever proposed it."""
    try:
        cards.approve(card=card, by=actor.user.pk, at=at)
    except BadRateCard as error:
        raise Conflict(_("Another rate card of this supplier begins at the same moment.")) from error
    _record(actor, card.supplier, "rate_card.approve", card.public_id, {"from": card.effective_from.isoformat()})


@transaction.atomic
def decline_card(*, actor: Actor, card: RateCard, at: datetime) -> None:
    """Leave what was agreed as it is."""
    cards.decline(card=card, by=actor.user.pk, at=at)
    _record(actor, card.supplier, "rate_card.decline", card.public_id, {})


@transaction.atomic
def propose_adjustment(
    *,
    actor: Actor,
    supplier: Organization,
    direction: str,
    amount_micros: int,
    currency: str,
    kind: str,
    reason: str,
    key: UUID,
    at: datetime,
) -> SupplierAdjustment:
    """Propose to give a supplier something, or to take something back; somebody else decides."""
    try:
        made = adjusting.propose(
            supplier=supplier,
            kind=SupplierAdjustment.Kind(kind),
            amount_micros=amount_micros if direction == GIVE else -amount_micros,
            currency=currency,
            reason=reason,
            by=actor.user.pk,
            key=key,
            at=at,
        )
    except BadAdjustment as error:
        raise BadOrder("reason", _("Say how much and why.")) from error
    if not audit.is_recorded("supplier_adjustment.propose", made.public_id):
        _record(actor, supplier, "supplier_adjustment.propose", made.public_id, _amount(made))
    return made


@transaction.atomic
def approve_adjustment(*, actor: Actor, adjustment: SupplierAdjustment, at: datetime) -> None:
    """Move what was proposed; not by whoever proposed it."""
    adjusting.approve(adjustment=adjustment, by=actor.user.pk, at=at)
    _record(actor, adjustment.supplier, "supplier_adjustment.approve", adjustment.public_id, _amount(adjustment))


@transaction.atomic
def decline_adjustment(*, actor: Actor, adjustment: SupplierAdjustment, at: datetime) -> None:
    """Leave things as they are."""
    adjusting.decline(adjustment=adjustment, by=actor.user.pk, at=at)
    _record(actor, adjustment.supplier, "supplier_adjustment.decline", adjustment.public_id, _amount(adjustment))


@transaction.atomic
def hold_payouts(*, actor: Actor, account: PayoutAccount, is_held: bool, reason: str, at: datetime) -> None:
    """Hold a supplier's payouts back, or let them go again."""
    if is_held == (account.held_at is not None):
        return
    connecting.hold(account=account, is_held=is_held, at=at)
    verb = "payouts.hold" if is_held else "payouts.release"
    _record(actor, account.supplier, verb, account.public_id, {"reason": reason})


@transaction.atomic
def reverse_payout(*, actor: Actor, payout: Payout, reason: str, at: datetime) -> None:
    """Ask for a payout to be taken back, or approve that as the second person."""
    is_second = payout.reversal_proposed_by_id is not None
    if is_second:
        payouts.approve_reversal(payout=payout, by=actor.user.pk, at=at)
    else:
        payouts.propose_reversal(payout=payout, by=actor.user.pk)
    verb = "payout.reverse" if is_second else "payout.propose_reversal"
    after = {"amount": money.decimal_string(payout.amount_micros), "reason": reason}
    _record(actor, payout.supplier, verb, payout.public_id, after)


@transaction.atomic
def call_off_payout(*, actor: Actor, payout: Payout, reason: str, at: datetime) -> None:
    """Call a payout off before it is sent. Another of the same day follows unless payouts are held back."""
    try:
        payouts.cancel(payout=payout, at=at)
    except AlreadyDecided as error:
        raise Conflict(_("It was sent already: it can only be taken back.")) from error
    after = {"amount": money.decimal_string(payout.amount_micros), "reason": reason}
    _record(actor, payout.supplier, "payout.call_off", payout.public_id, after)


def account_for(supplier: Organization) -> PayoutAccount:
    """Return the account that a supplier is paid to, or raise NotFound."""
    found = connecting.of(supplier)
    if found is None:
        raise NotFound
    return found


def _amount(adjustment: SupplierAdjustment) -> dict[str, object]:
    return {"amount": money.decimal_string(adjustment.amount_micros), "reason": adjustment.reason}


def _found(rows: QuerySet[Row]) -> Row:
    row = rows.first()
    if row is None:
        raise NotFound
    return row


def _record(actor: Actor, supplier: Organization, verb: str, subject_id: str, after: dict[str, Any]) -> None:
    audit.record(actor=actor, organization=supplier, verb=verb, subject_id=subject_id, after=after)
