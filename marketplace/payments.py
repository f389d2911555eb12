"""Cards and payments as customers order them: checked, told in their language, and written into the audit."""

from datetime import datetime
from hashlib import sha256

from django.db import transaction
from django.utils.translation import gettext as _

from billing.errors import BadAmount
from billing.models import AutomaticTopUp, Card, Payment
from billing.payments import automatic, cards, paying
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization

# Before it stand what is paid and by or for whom.
KEY_LENGTH_MAX = 128


@transaction.atomic
def top_up(
    *, actor: Actor, organization: Organization, amount_micros: int, card: Card | None, key: str, at: datetime
) -> Payment:
    """Order a top-up once per key: with a saved card, or with one that is typed on the processor's page."""
    try:
        payment = paying.top_up(
            organization=organization,
            amount_micros=amount_micros,
            card=card,
            key=f"top-up:{organization.public_id}:{short(key)}",
            at=at,
        )
    except BadAmount as error:
        raise BadOrder("amount", why(error)) from error
    if not audit.is_recorded("payment.order", payment.public_id):
        audit.record(
            actor=actor,
            organization=organization,
            verb="payment.order",
            subject_id=payment.public_id,
            after={
                "amount": money.decimal_string(amount_micros),
                "currency": payment.currency,
                "card": str(card or ""),
            },
        )
    return payment


def short(key: str) -> str:
    """Return a caller's key as a payment has room for it: a long one by its SHA-256."""
    return key if len(key) <= KEY_LENGTH_MAX else sha256(key.encode()).hexdigest()


def cancel(*, actor: Actor, payment: Payment, at: datetime) -> Payment:
    """End a payment that waits for its customer. Network."""
    ended = paying.cancel(payment=payment, at=at)
    if ended.state != Payment.State.CANCELLED:
        raise Conflict(_("It cannot be cancelled any more."))
    audit.record(
        actor=actor,
        organization=payment.organization,
        verb="payment.cancel",
        subject_id=payment.public_id,
        before={"state": payment.state},
        after={"state": ended.state},
    )
    return ended


@transaction.atomic
def choose_card(*, actor: Actor, card: Card) -> None:
    """Charge this card where none is named."""
    cards.make_default(card=card)
    _record_card(actor, card, "card.default")


@transaction.atomic
def forget_card(*, actor: Actor, card: Card, at: datetime) -> None:
    """Never charge a card again; the processor forgets it when somebody next looks (`cards.refresh`)."""
    cards.forget(card=card, at=at)
    _record_card(actor, card, "card.remove")


@transaction.atomic
def set_automatic(
    *,
    actor: Actor,
    organization: Organization,
    threshold_micros: int,
    amount_micros: int,
    monthly_ceiling_micros: int,
    at: datetime,
) -> AutomaticTopUp:
    """Top up by itself from now on."""
    before = as_written(automatic.rule_of(organization))
    if monthly_ceiling_micros < amount_micros:
        raise BadOrder("monthly_ceiling", _("The ceiling has to allow at least one top-up."))
    try:
        rule = automatic.set_rule(
            organization=organization,
            threshold_micros=threshold_micros,
            amount_micros=amount_micros,
            monthly_ceiling_micros=monthly_ceiling_micros,
            at=at,
        )
    except BadAmount as error:
        raise BadOrder("amount", why(error)) from error
    _record_rule(actor, organization, before, as_written(rule))
    return rule


@transaction.atomic
def switch_off_automatic(*, actor: Actor, organization: Organization, at: datetime) -> None:
    """Charge nothing by itself any more."""
    before = as_written(automatic.rule_of(organization))
    automatic.switch_off(organization=organization, at=at)
    if before is not None:
        _record_rule(actor, organization, before, as_written(automatic.rule_of(organization)))


def as_written(rule: AutomaticTopUp | None) -> dict[str, object] | None:
    """Return an automatic top-up as the audit has it."""
    if rule is None:
        return None
    return {
        "threshold": money.decimal_string(rule.threshold_micros),
        "amount": money.decimal_string(rule.amount_micros),
        "monthly_ceiling": money.decimal_string(rule.monthly_ceiling_micros),
        "on": rule.is_on,
    }


def why(error: BadAmount) -> str:
    """Return which amounts can be paid, in the reader's language."""
    return _("Choose an amount from %(least)s to %(most)s, in whole units of the currency such as cents.") % {
        "least": money.shown(error.least_micros, error.currency),
        "most": money.shown(error.most_micros, error.currency),
    }


def refuse_other_currency(organization: Organization, currency: str) -> None:
    """Raise BadOrder for a currency that is not the organization's: money is never exchanged here."""
    if currency and currency != organization.currency:
        raise BadOrder("currency", _("This organization pays in %(currency)s.") % {"currency": organization.currency})


def _record_card(actor: Actor, card: Card, verb: str) -> None:
    audit.record(
        actor=actor, organization=card.organization, verb=verb, subject_id=card.public_id, after={"card": str(card)}
    )


def _record_rule(
    actor: Actor, organization: Organization, before: dict[str, object] | None, after: dict[str, object] | None
) -> None:
    if before != after:
        audit.record(
            actor=actor,
            organization=organization,
            verb="automatic_top_up.change",
            subject_id=organization.public_id,
            before=before,
            after=after,
        )
