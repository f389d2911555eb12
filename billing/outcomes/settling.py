"""A result that was accepted: its price is taken, from what was set aside for it or from the balance."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import F, Q

from billing import accounts, daily, ledger, rating, runway
from billing.errors import BadOutcome, EscrowClosed, HoldClosed, KeyReused
from billing.models import Account, Escrow, Hold, Outcome, PrepaidItem, Transfer
from billing.outcomes import periods, words
from billing.outcomes.periods import Period
from billing.outcomes.words import Item, Share
from billing.public_ids import new_public_id

Kind = Outcome.Kind


class _Source(NamedTuple):
    """What may pay, and up to how much."""

    account: Account
    hold: Hold | None
    free_micros: int


@transaction.atomic
def settle(
    *,
    organization: accounts.Organization,
    resource_id: str,
    key: str,
    amount_micros: int,
    shares: Sequence[Share],
    item: Item,
    at: datetime,
    period: Period | None = None,
) -> Outcome:
    """Take the price of one accepted result from what is set aside for its resource; once per key.

    `amount_micros` is no more than the item's own arithmetic says. In a period with a cap it may become less: the
    outcome says how much was taken, and what was not stays set aside until somebody releases it. Raises EscrowClosed,
    HoldClosed where less is left, BadOutcome for shares that are not the whole, KeyReused where the subject was paid by
    another key.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    known = _known(key, Kind.OUTCOME, organization, item)
    if known is not None:
        return known
    escrow = Escrow.objects.filter(resource_id=resource_id, organization=organization.pk, state=Escrow.State.OPEN)
    found = escrow.first()
    if found is None:
        raise EscrowClosed(resource_id)
    made = _outcome(
        kind=Kind.OUTCOME, organization=organization, resource_id=resource_id, key=key, amount_micros=amount_micros,
        shares=shares, item=item, at=at,
    )  # fmt: skip
    made.escrow = found
    _count(made, period)
    if made.amount_micros > found.left_micros:
        raise HoldClosed(key=resource_id, needed_micros=made.amount_micros, left_micros=found.left_micros)
    pending = Hold.objects.filter(resource_id=resource_id, state=Hold.State.PENDING).select_related("account")
    _take(made, [_Source(hold.account, hold, hold.left_micros) for hold in pending.order_by("pk")])
    escrow.update(posted_micros=F("posted_micros") + made.amount_micros)
    runway.refresh_if_burning(organization=organization, at=at)
    return made


@transaction.atomic
def charge(
    *,
    organization: accounts.Organization,
    resource_id: str,
    key: str,
    amount_micros: int,
    shares: Sequence[Share],
    item: Item,
    at: datetime,
    kind: Outcome.Kind = Kind.SHARE,
    period: Period | None = None,
) -> Outcome:
    """Take a price for which nothing was set aside: promotional credit, cash, and the rest is owed; once per key."""
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    known = _known(key, kind, organization, item)
    if known is not None:
        return known
    made = _outcome(
        kind=kind, organization=organization, resource_id=resource_id, key=key, amount_micros=amount_micros,
        shares=shares, item=item, at=at,
    )  # fmt: skip
    _count(made, period)
    sources = [_Source(account, None, max(0, account.free_micros)) for account in (payer.promo, payer.cash)]
    _take(made, [*sources, _Source(payer.receivable, None, made.amount_micros)])
    runway.refresh_if_burning(organization=organization, at=at)
    return made


def note(outcome: Outcome) -> None:
    """Write down what an invoice will say of it, where its money moves. Of nothing it says nothing."""
    if not outcome.amount_micros:
        return
    sign = -1 if outcome.kind == Kind.REVERSED else 1
    PrepaidItem.objects.create(
        key=f"outcome:{outcome.public_id}",
        kind=outcome.kind,
        organization_id=outcome.organization_id,
        currency=outcome.currency,
        resource_id=outcome.resource_id,
        name=outcome.name,
        project=outcome.project,
        starts_at=outcome.at,
        ends_at=outcome.at,
        amount_micros=sign * outcome.amount_micros,
        promo_micros=sign * outcome.promo_micros,
        at=outcome.at,
        outcome=outcome,
    )


def _known(key: str, kind: Outcome.Kind, organization: accounts.Organization, item: Item) -> Outcome | None:
    """What this key brought before. A subject is paid once, whatever the key."""
    mine = Q(organization=organization.pk, version=item.version, subject=item.subject, kind=kind)
    known = Outcome.objects.filter(Q(key=key) | mine).first()
    if known is not None:
        said = (known.key, known.organization_id, known.version, known.subject, known.quantity)
        if said != (key, organization.pk, item.version, item.subject, item.quantity):
            raise KeyReused(key)
    return known


def _outcome(
    *,
    kind: Outcome.Kind,
    organization: accounts.Organization,
    resource_id: str,
    key: str,
    amount_micros: int,
    shares: Sequence[Share],
    item: Item,
    at: datetime,
) -> Outcome:
    """The row of an outcome, unwritten and without its credit, or BadOutcome."""
    item.check()
    if not 0 <= amount_micros <= item.asked_micros:
        raise BadOutcome(f"{amount_micros} micros are asked for what costs {item.asked_micros}")
    copied: dict[str, Any] = {name: getattr(item, name) for name in Item.__slots__}
    return Outcome(
        public_id=new_public_id("out"),
        key=key,
        kind=kind,
        organization_id=organization.pk,
        resource_id=resource_id,
        currency=organization.currency,
        asked_micros=item.asked_micros,
        amount_micros=amount_micros,
        shares=words.checked(shares),
        at=at,
        **copied,
    )


def _count(outcome: Outcome, period: Period | None) -> None:
    """Count it in its period, and lower it to what the cap leaves."""
    if period is not None:
        outcome.period = period.starts_at
        outcome.amount_micros = periods.count(
            version=outcome.version,
            organization_id=outcome.organization_id,
            period=period,
            amount_micros=outcome.amount_micros,
        )


def _take(outcome: Outcome, sources: Sequence[_Source]) -> None:
    """Move the money to the revenue, and write down the outcome and its item."""
    taken, missing = rating.take_in_turn(outcome.amount_micros, [source.free_micros for source in sources])
    assert not missing, "what is left of an escrow is on its holds, and what is owed has no end"
    paid = [(source, micros) for source, micros in zip(sources, taken, strict=True) if micros]
    outcome.promo_micros = sum(micros for source, micros in paid if source.account.kind == Account.Kind.PROMO)
    outcome.save(force_insert=True)
    note(outcome)
    if not paid:
        return
    revenue = accounts.platform(Account.Kind.REVENUE, outcome.currency)
    daily.touch(since=outcome.at, through=outcome.at)
    ledger.move_all(
        [
            Transfer(
                key=f"outcome:{outcome.public_id}:{source.account.kind}",
                source=source.account,
                target=revenue,
                amount_micros=micros,
                reason=f"{outcome.name}: {outcome.subject}"[:200],
                hold=source.hold,
                effective_at=outcome.at,
            )
            for source, micros in paid
        ]
    )
