"""Periods that fall due: what was stated is charged, what was not is estimated, and an estimate is trued up once."""

from datetime import datetime
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Q

from billing.models import Outcome
from billing.outcomes import costs, reversing, settling
from billing.outcomes.words import Item, Share
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.models import Acceptance, Organization, RevenuePeriod, RevenueStatement
from marketplace.revenue_share import amounts

State = RevenuePeriod.State
Basis = RevenuePeriod.Basis
log = structlog.get_logger("marketplace.revenue")


def close_due(*, at: datetime, limit: int) -> int:
    """Charge the periods whose statements are due or final, the oldest first; return how many. Safe to repeat."""
    due = RevenuePeriod.objects.filter(
        Q(state=State.OPEN, due_at__lte=at) | Q(state=State.ESTIMATED, final_at__lte=at)
    ).order_by("due_at", "pk")
    closed = 0
    for key in list(due.values_list("pk", flat=True)[:limit]):
        try:
            closed += close(key, at=at)
        except Exception:  # one that cannot be charged must not keep the others from it
            log.exception("not charged", period=key)
    return closed


@transaction.atomic
def close(key: int, *, at: datetime) -> bool:
    """Charge one period as far as it is due; return whether anything was."""
    rows = RevenuePeriod.objects.select_for_update(no_key=True, of=("self",))
    period = rows.select_related("version__contract__seller", "organization").get(pk=key)
    said = period.statements.order_by("-number").first()
    if period.state == State.OPEN and period.due_at <= at:
        _charge_first(period, said, at=at)
    elif period.state == State.ESTIMATED and period.final_at <= at:
        _true_up(period, said, at=at)
    else:
        return False
    return True


def metered_micros(period: RevenuePeriod, *, until: datetime) -> int:
    """Return what the use that this agreement covers would have cost by the list in a period, until a moment."""
    agreed = Acceptance.objects.filter(version=period.version_id, organization=period.organization_id).first()
    if agreed is None:
        return 0
    return costs.covered_micros(resource_id=agreed.public_id, since=period.starts_at, until=min(until, period.ends_at))


def so_far(period: RevenuePeriod, *, at: datetime) -> amounts.Due:
    """Return what a period would cost if what was stated last were final and it ended now."""
    said = period.statements.order_by("-number").first()
    return amounts.due(
        written.of(period.version.terms)["revenue"],
        revenue_micros=said.revenue_micros if said else 0,
        metered_micros=metered_micros(period, until=at),
    )


def shares_of(terms: Terms, seller: Organization) -> list[Share]:
    """Return whose parts of what is charged are which."""
    named = [share["to"] for share in terms["shares"] if share["to"].startswith("org_")]
    known = {one.public_id: one for one in Organization.objects.filter(public_id__in=named)}
    known[written.SELLER] = seller
    return [Share(known.get(share["to"]), share["bps"]) for share in terms["shares"]]


def _charge_first(period: RevenuePeriod, said: RevenueStatement | None, *, at: datetime) -> None:
    terms = written.of(period.version.terms)["revenue"]
    metered = metered_micros(period, until=period.ends_at)
    if said is not None:
        basis, revenue, least = Basis.REPORTED, said.revenue_micros, metered
    else:
        rule, micros = amounts.estimated_micros(terms, last_micros=_last_micros(period), metered_micros=metered)
        basis = Basis(rule)
        revenue = micros if basis == Basis.LAST_STATEMENT else 0
        least = metered
    asked = amounts.due(_with_metered(terms, basis), revenue_micros=revenue, metered_micros=least)
    _take(period, asked, revenue_micros=revenue, suffix="" if said else " (estimate)", at=at)
    state = State.CLOSED if said else State.ESTIMATED
    period.move_to(
        state, at=at, message=f"Charged by {basis.label}"[:200], basis=basis, revenue_micros=revenue,
        metered_micros=metered, charged_micros=asked.total_micros, closed_at=at if said else None,
    )  # fmt: skip


def _with_metered(terms: dict[str, Any], basis: RevenuePeriod.Basis) -> dict[str, Any]:
    """An estimate by the metered cost asks at least that, whatever the terms say of statements."""
    return {**terms, "true_up": "metered_cost"} if basis == Basis.METERED_COST else terms


def _last_micros(period: RevenuePeriod) -> int | None:
    """What was stated last for an earlier period."""
    earlier = RevenueStatement.objects.filter(
        period__version=period.version_id, period__organization=period.organization_id,
        period__starts_at__lt=period.starts_at,
    )  # fmt: skip
    found = earlier.order_by("-period__starts_at", "-number").first()
    return found.revenue_micros if found else None


def _true_up(period: RevenuePeriod, said: RevenueStatement | None, *, at: datetime) -> None:
    """Close an estimated period: by a statement that came after all, or as it was estimated."""
    if said is None:
        period.move_to(State.CLOSED, at=at, message="No statement came: the estimate stands", closed_at=at)
        return
    terms = written.of(period.version.terms)["revenue"]
    asked = amounts.due(terms, revenue_micros=said.revenue_micros, metered_micros=period.metered_micros or 0)
    change = asked.total_micros - period.charged_micros
    if change > 0:
        _charge_missing(period, change, subject=f"{period.label} (correction)", key="correction", at=at)
    elif change < 0:
        _give_back(period, -change, at=at)
    period.move_to(
        State.CLOSED, at=at, message="Corrected by the customer's statement", closed_at=at, basis=Basis.REPORTED,
        revenue_micros=said.revenue_micros, charged_micros=asked.total_micros,
    )  # fmt: skip


def _take(period: RevenuePeriod, asked: amounts.Due, *, revenue_micros: int, suffix: str, at: datetime) -> None:
    terms = written.of(period.version.terms)
    if asked.share_micros:
        settling.charge(
            organization=period.organization,
            resource_id=period.public_id,
            key=f"revenue:{period.public_id}:share",
            amount_micros=asked.share_micros,
            shares=shares_of(terms, period.version.contract.seller),
            item=_item(period, f"{period.label}{suffix}", revenue_micros, 1, bps=terms["revenue"]["share_bps"]),
            at=at,
        )
    if asked.missing_micros:
        _charge_missing(period, asked.missing_micros, subject=f"{period.label}{suffix}", key="least", at=at)


def _charge_missing(period: RevenuePeriod, micros: int, *, subject: str, key: str, at: datetime) -> None:
    settling.charge(
        organization=period.organization,
        resource_id=period.public_id,
        key=f"revenue:{period.public_id}:{key}",
        amount_micros=micros,
        shares=shares_of(written.of(period.version.terms), period.version.contract.seller),
        item=_item(period, subject, 1, micros),
        kind=Outcome.Kind.TRUE_UP,
        at=at,
    )


def _item(period: RevenuePeriod, subject: str, quantity: int, micros_per_unit: int, *, bps: int = 10_000) -> Item:
    return Item(
        name=period.version.contract.title, project="", quantity=quantity, unit="revenue",
        micros_per_unit=micros_per_unit, bps=bps, version=period.version.public_id, subject=subject,
    )  # fmt: skip


def _give_back(period: RevenuePeriod, micros: int, *, at: datetime) -> None:
    """Give back what an estimate charged too much, the newest of it first."""
    charged = Outcome.objects.filter(resource_id=period.public_id, of=None).order_by("-pk")
    for one in charged:
        part = min(micros, reversing.left_micros(one))
        if part:
            reversing.reverse(
                key=f"revenue:{period.public_id}:back:{one.public_id}", of=one, amount_micros=part,
                reason=f"The statement of {period.label} is less than its estimate", at=at,
            )  # fmt: skip
        micros -= part
