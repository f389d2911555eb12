"""Commitments: so much use in whole months at prices of their own, proposed by one person and agreed by another."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet

from billing import accounts, decisions, notices, prices, repeats
from billing.errors import AlreadyCommitted, AlreadyDecided, BadCommitment, CurrencyMismatch, KeyReused
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Commitment, CommitmentPrice, Notice, PriceVersion
from billing.months import month_of, next_month
from billing.moves import move
from billing.notices import News
from billing.tiers import HOURS_MAX, MICROS_MAX

MONTHS_MAX = 60
WHOLE_BPS = 10_000

State = Commitment.State
MOVES: Mapping[str, tuple[str, ...]] = {
    State.PROPOSED: (State.OFFERED, State.AGREED, State.DECLINED),
    State.OFFERED: (State.AGREED, State.DECLINED),
    State.AGREED: (),
    State.DECLINED: (),
}
# What operators may do: once it is offered, its customer answers.
FOR_OPERATORS: Mapping[str, tuple[str, ...]] = {State.PROPOSED: MOVES[State.PROPOSED]}


@transaction.atomic
def propose(
    *,
    organization: accounts.Organization,
    currency: str,
    kind: str,
    skus: Sequence[str],
    amount: int,
    discount_bps: int,
    starts_at: datetime,
    months: int,
    note: str,
    by: int,
    key: UUID,
    at: datetime,
    names: Mapping[str, str] | None = None,
) -> Commitment:
    """Propose a commitment, once per key; nothing holds yet. `by` is a person's id.

    `amount` is micros for a `spend` and unit-hours of one thing for `hours`. Its prices are those of the list now,
    less the discount, rounded half up to a micro; `names` are what things are called that have no name there.
    Raises BadCommitment, which names what cannot be.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    promised = {"committed_micros" if kind == Commitment.Kind.SPEND else "committed_unit_hours": amount}
    first = repeats.find(
        Commitment, key, organization_id=organization.pk, currency=currency, kind=kind, discount_bps=discount_bps,
        starts_at=starts_at, ends_at=_end(starts_at, months), note=note, **promised,
    )  # fmt: skip
    if first is not None:
        if set(first.prices.values_list("sku", flat=True)) != set(skus):
            raise KeyReused(str(key))
        return first
    if currency != organization.currency:
        raise CurrencyMismatch(expected=organization.currency, found=currency)
    check(kind, skus, amount, currency, starts_at=starts_at, months=months, at=at)
    if not 0 <= discount_bps < WHOLE_BPS:
        raise BadCommitment("discount_bps", "a discount leaves something to pay")
    ends_at = _end(starts_at, months)
    found = listed(skus, currency=currency, at=at)
    agreed = {sku: _discounted(price.micros_per_unit_hour, discount_bps) for sku, price in found.items()}
    is_spend = kind == Commitment.Kind.SPEND
    made = Commitment.objects.create(
        key=key,
        organization_id=organization.pk,
        currency=currency,
        kind=kind,
        committed_micros=amount if is_spend else amount * agreed[skus[0]],
        committed_unit_hours=0 if is_spend else amount,
        discount_bps=discount_bps,
        starts_at=starts_at,
        ends_at=ends_at,
        note=note,
        proposed_by_id=by,
        proposed_at=at,
    )
    _keep_prices(made, found, agreed, names or {})
    return made


def _keep_prices(
    made: Commitment, found: Mapping[str, PriceVersion], agreed: Mapping[str, int], names: Mapping[str, str]
) -> None:
    CommitmentPrice.objects.bulk_create(
        CommitmentPrice(
            commitment=made,
            organization_id=made.organization_id,
            sku=sku,
            name=price.name or names.get(sku, sku),
            unit=price.unit,
            list_micros_per_unit_hour=price.micros_per_unit_hour,
            micros_per_unit_hour=agreed[sku],
            starts_at=made.starts_at,
            ends_at=made.ends_at,
        )
        for sku, price in found.items()
    )


@transaction.atomic
def agree(*, commitment: Commitment, by: int, at: datetime) -> None:
    """Let a commitment hold that its customer has signed: from its first month on. `by` is another person than the
    proposer. Raises as `offer` does.
    """
    decisions.check_person(commitment, State.AGREED, by=by)
    mine = _checked(commitment, at=at)
    decisions.decide(commitment, State.AGREED, by=by, at=at, moves=FOR_OPERATORS)
    mine.update(is_agreed=True)


@transaction.atomic
def offer(*, commitment: Commitment, by: int, at: datetime) -> None:
    """Offer a proposed commitment to its customer, who accepts it or not. `by` is another person than the proposer.

    Raises BadCommitment once its first month began, and AlreadyCommitted where another covers one of its things then.
    """
    decisions.check_person(commitment, State.OFFERED, by=by)
    _checked(commitment, at=at)
    decisions.decide(commitment, State.OFFERED, by=by, at=at, moves=FOR_OPERATORS)
    organization_id, until = commitment.organization_id, commitment.starts_at.isoformat()
    facts = {"left_micros": str(commitment.committed_micros), "currency": commitment.currency, "until": until}
    key = f"commitment-offered:{commitment.public_id}"
    notices.tell([News(organization_id, Notice.Kind.COMMITMENT_OFFERED, key, facts)], at=at)


@transaction.atomic
def accept(*, commitment: Commitment, by: int, at: datetime) -> None:
    """Accept what was offered, for the customer: it holds from its first month on. Raises as `offer` does.

    AlreadyDecided for what was not offered, or answered already.
    """
    mine = _checked(commitment, at=at)
    _answered(commitment, State.AGREED, by=by, at=at)
    mine.update(is_agreed=True)


@transaction.atomic
def refuse(*, commitment: Commitment, by: int, at: datetime) -> None:
    """Refuse what was offered, for the customer."""
    accounts.lock(organization_id=commitment.organization_id, currency=commitment.currency)
    _answered(commitment, State.DECLINED, by=by, at=at)


def _answered(commitment: Commitment, state: str, *, by: int, at: datetime) -> None:
    if not move(commitment, state, {State.OFFERED: MOVES[State.OFFERED]}, answered_by_id=by, answered_at=at):
        raise AlreadyDecided("it is not offered, or was answered already")
    commitment.refresh_from_db()


def _checked(commitment: Commitment, *, at: datetime) -> QuerySet[CommitmentPrice]:
    """Return the prices of a commitment that may hold, with its customer's accounts locked."""
    accounts.lock(organization_id=commitment.organization_id, currency=commitment.currency)
    if commitment.starts_at <= at:
        raise BadCommitment("starts_at", "its first month began already")
    mine = CommitmentPrice.objects.filter(commitment=commitment)
    others = CommitmentPrice.objects.filter(
        organization=commitment.organization_id,
        is_agreed=True,
        sku__in=mine.values("sku"),
        starts_at__lt=commitment.ends_at,
        ends_at__gt=commitment.starts_at,
    ).exclude(commitment=commitment)
    if others.exists():
        raise AlreadyCommitted("another commitment covers one of these things at that time")
    return mine


@transaction.atomic
def decline(*, commitment: Commitment, by: int, at: datetime) -> None:
    """Give up a proposal; whoever made it may do so too."""
    accounts.lock(organization_id=commitment.organization_id, currency=commitment.currency)
    decisions.decide(commitment, State.DECLINED, by=by, at=at, moves=FOR_OPERATORS)


def of_organization(organization: accounts.Organization, *, agreed_only: bool = True) -> QuerySet[Commitment]:
    """Return an organization's commitments with their prices, the newest first."""
    found = Commitment.objects.filter(organization=organization.pk).prefetch_related("prices")
    found = found.select_related("proposed_by", "decided_by").order_by("-starts_at", "-pk")
    return found.filter(state=State.AGREED) if agreed_only else found


def waiting() -> QuerySet[Commitment]:
    """Return the proposals that wait for a second person."""
    return Commitment.objects.filter(state=State.PROPOSED).select_related("organization", "proposed_by").order_by("-pk")


def agreed(organization_ids: Collection[int], *, since: datetime) -> QuerySet[Commitment]:
    """Return the agreed commitments of organizations whose term was not over at a moment."""
    rows = Commitment.objects.filter(Q(organization__in=organization_ids, state=State.AGREED, ends_at__gt=since))
    return rows.prefetch_related("prices").order_by("pk")


def check(
    kind: str, skus: Sequence[str], amount: int, currency: str, *, starts_at: datetime, months: int, at: datetime
) -> None:
    """Raise BadCommitment for what nobody can promise."""
    if kind not in Commitment.Kind.values:
        raise BadCommitment("kind", f"{kind} is neither spend nor hours")
    if not skus or len(set(skus)) != len(skus):
        raise BadCommitment("skus", "a commitment is to some things, each named once")
    if kind == Commitment.Kind.HOURS and len(skus) != 1:
        raise BadCommitment("skus", "hours are of one thing")
    most = MICROS_MAX if kind == Commitment.Kind.SPEND else HOURS_MAX // 1000
    if not 0 < amount <= most:
        raise BadCommitment("amount", "it is more than nothing")
    if kind == Commitment.Kind.SPEND and amount % minor_unit_micros(currency):
        raise BadCommitment("amount", "an amount can be paid: it is in whole minor units")
    if starts_at != month_of(starts_at):
        raise BadCommitment("starts_at", "a term begins with a month, in UTC")
    if starts_at <= at:
        raise BadCommitment("starts_at", "its first month began already")
    if not 1 <= months <= MONTHS_MAX:
        raise BadCommitment("months", f"a term has 1 to {MONTHS_MAX} months")


def listed(skus: Sequence[str], *, currency: str, at: datetime) -> dict[str, PriceVersion]:
    """Return what things cost by the list; raise BadCommitment for one that nobody can commit to."""
    found = prices.current(skus=skus, currency=currency, at=at)
    for sku in skus:
        if sku not in found:
            raise BadCommitment("skus", f"{sku} is not for sale in {currency}")
        if found[sku].is_floating:
            raise BadCommitment("skus", f"the market makes the price of {sku}")
    return {sku: found[sku] for sku in skus}


def _end(starts_at: datetime, months: int) -> datetime:
    for _ in range(min(months, MONTHS_MAX)):
        starts_at = next_month(starts_at)
    return starts_at


def _discounted(micros: int, discount_bps: int) -> int:
    return max(1, (micros * (WHOLE_BPS - discount_bps) + WHOLE_BPS // 2) // WHOLE_BPS)
