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


class Due(NamedTuple):
    """One accepted result of an escrow: its key, its price, who shares it, and what its line says."""

    key: str
    amount_micros: int
    shares: Sequence[Share]
    item: Item
    period: Period | None = None


@transaction.atomic
def settle_all(
    *, organization: accounts.Organization, resource_id: str, due: Sequence[Due], at: datetime
) -> list[Outcome]:
    """Take the prices of results of one escrow in their order, each once per key; one that is refused refuses all.

    A price is no more than the item's own arithmetic says. In a period with a cap it may become less: the outcome says
    how much was taken, and what was not stays set aside until somebody releases it. Raises EscrowClosed, HoldClosed
    where less is left, BadOutcome for shares that are not the whole, KeyReused where a subject was paid by another key.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    escrow = Escrow.objects.filter(resource_id=resource_id, organization=organization.pk, state=Escrow.State.OPEN)
    known, found = _known_all(due, organization), escrow.first()
    made: list[Outcome] = []
    left = found.left_micros if found else 0
    for one in due:
        if _known_among(known, one, organization) is not None:
            continue
        if found is None:
            raise EscrowClosed(resource_id)
        outcome = _outcome(
            kind=Kind.OUTCOME, organization=organization, resource_id=resource_id, key=one.key,
            amount_micros=one.amount_micros, shares=one.shares, item=one.item, at=at,
        )  # fmt: skip
        outcome.escrow = found
        _count(outcome, one.period)
        if outcome.amount_micros > left:
            raise HoldClosed(key=resource_id, needed_micros=outcome.amount_micros, left_micros=left)
        left -= outcome.amount_micros
        made.append(outcome)
        known.append(outcome)
    if made:
        pending = Hold.objects.filter(resource_id=resource_id, state=Hold.State.PENDING).select_related("account")
        _take(made, [_Source(hold.account, hold, hold.left_micros) for hold in pending.order_by("pk")])
        escrow.update(posted_micros=F("posted_micros") + sum(outcome.amount_micros for outcome in made))
        runway.refresh_if_burning(organization=organization, at=at)
    by_key = {outcome.key: outcome for outcome in known}
    return [by_key[one.key] for one in due]


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
    _take([made], [*sources, _Source(payer.receivable, None, made.amount_micros)])
    runway.refresh_if_burning(organization=organization, at=at)
    return made


def note(outcomes: Sequence[Outcome]) -> None:
    """Write down what invoices will say of outcomes, where their money moves. Of nothing they say nothing."""
    PrepaidItem.objects.bulk_create(_line(outcome) for outcome in outcomes if outcome.amount_micros)


def _line(outcome: Outcome) -> PrepaidItem:
    sign = -1 if outcome.kind == Kind.REVERSED else 1
    return PrepaidItem(
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


def _known(key: str, kind: Kind, organization: accounts.Organization, item: Item) -> Outcome | None:
    """What this key brought before. A subject is paid once, whatever the key."""
    mine = Q(organization=organization.pk, version=item.version, subject=item.subject, kind=kind)
    known = Outcome.objects.filter(Q(key=key) | mine).first()
    if known is not None:
        _check_same(known, key, item, organization)
    return known


def _known_all(due: Sequence[Due], organization: accounts.Organization) -> list[Outcome]:
    """What these keys, or their subjects under other keys, brought before. One query."""
    mine = Q(organization=organization.pk, kind=Kind.OUTCOME, version__in={one.item.version for one in due})
    mine &= Q(subject__in=[one.item.subject for one in due])
    return list(Outcome.objects.filter(Q(key__in=[one.key for one in due]) | mine))


def _known_among(known: Sequence[Outcome], due: Due, organization: accounts.Organization) -> Outcome | None:
    subject = (organization.pk, Kind.OUTCOME, due.item.version, due.item.subject)
    for one in known:
        if one.key == due.key or (one.organization_id, one.kind, one.version, one.subject) == subject:
            _check_same(one, due.key, due.item, organization)
            return one
    return None


def _check_same(known: Outcome, key: str, item: Item, organization: accounts.Organization) -> None:
    said = (known.key, known.organization_id, known.version, known.subject, known.quantity)
    if said != (key, organization.pk, item.version, item.subject, item.quantity):
        raise KeyReused(key)


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


def _take(outcomes: Sequence[Outcome], sources: Sequence[_Source]) -> None:
    """Move the money of outcomes in their order to the revenue, and write them down with their items."""
    paid: list[tuple[Outcome, _Source, int]] = []
    free = [source.free_micros for source in sources]
    for outcome in outcomes:
        taken, missing = rating.take_in_turn(outcome.amount_micros, free)
        assert not missing, "what is left of an escrow is on its holds, and what is owed has no end"
        free = [before - micros for before, micros in zip(free, taken, strict=True)]
        mine = [(outcome, source, micros) for source, micros in zip(sources, taken, strict=True) if micros]
        outcome.promo_micros = sum(micros for _, source, micros in mine if source.account.kind == Account.Kind.PROMO)
        paid += mine
    Outcome.objects.bulk_create(outcomes)
    note(outcomes)
    if not paid:
        return
    revenue = accounts.platform(Account.Kind.REVENUE, paid[0][0].currency)
    daily.touch(since=paid[0][0].at, through=paid[0][0].at)
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
            for outcome, source, micros in paid
        ]
    )
