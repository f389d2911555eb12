"""Periods that fall due: what was stated is charged, what was not is estimated, and an estimate is trued up once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from marketplace.money import plain
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


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What a period costs and how that comes about: as it was charged, or as it would be now while it is open.

    `metered` are the lines of the metered cost, as `_lines` writes them.
    """

    due: amounts.Due
    steps: list[amounts.Step]
    metered: list[dict[str, Any]]


def reckoned(period: RevenuePeriod, *, at: datetime) -> Reckoning:
    """Return the arithmetic of a period: by what was stated last if it were final and it ended now, or as charged."""
    terms = amounts.by_rule(written.of(period.version.terms)["revenue"], period.basis)
    if period.state == State.OPEN:
        said, lines = period.statements.order_by("-number").first(), _lines(period, until=at)
        by = {"revenue_micros": said.revenue_micros if said else 0, "metered_micros": _sum(lines)}
    else:
        lines = period.metered_lines
        by = {"revenue_micros": period.revenue_micros or 0, "metered_micros": period.metered_micros or 0}
    return Reckoning(amounts.due(terms, **by), list(amounts.steps(terms, **by)), lines)


def _lines(period: RevenuePeriod, *, until: datetime) -> list[dict[str, Any]]:
    """Return what the use that this agreement covers would have cost by the list in a period, span by span."""
    agreed = Acceptance.objects.filter(version=period.version_id, organization=period.organization_id).first()
    if agreed is None:
        return []
    used = costs.metered(covered_by=agreed.public_id, since=period.starts_at, until=min(until, period.ends_at))
    return [
        {
            "usage": one.span.public_id, "resource": one.span.resource_id, "name": one.span.resource_name,
            "project": one.span.labels.get("project", ""), "gpus": one.span.quantity,
            "since": one.since.isoformat(), "until": one.until.isoformat(),
            "micros_per_gpu_hour": one.span.price_version.micros_per_unit_hour, "micros": one.amount_micros,
        }
        for one in used
    ]  # fmt: skip


def metered_micros(period: RevenuePeriod, *, until: datetime) -> int:
    """Return what the use that this agreement covers would have cost by the list in a period, until a moment."""
    return _sum(_lines(period, until=until))


def _sum(lines: Iterable[Mapping[str, Any]]) -> int:
    return sum(int(line["micros"]) for line in lines)


def shares_of(terms: Terms, seller: Organization) -> list[Share]:
    """Return whose parts of what is charged are which."""
    named = [share["to"] for share in terms["shares"] if share["to"].startswith("org_")]
    known = {one.public_id: one for one in Organization.objects.filter(public_id__in=named)}
    known[written.SELLER] = seller
    return [Share(known.get(share["to"]), share["bps"]) for share in terms["shares"]]


def _charge_first(period: RevenuePeriod, said: RevenueStatement | None, *, at: datetime) -> None:
    terms = written.of(period.version.terms)["revenue"]
    lines = _lines(period, until=period.ends_at)
    metered = _sum(lines)
    first = amounts.first(
        terms, said_micros=said.revenue_micros if said else None, last_micros=_last_micros(period),
        metered_micros=metered,
    )  # fmt: skip
    basis = Basis(first.rule) if said is None else Basis.REPORTED
    _take(period, first.due, revenue_micros=first.revenue_micros, suffix="" if said else " (estimate)", at=at)
    state = State.CLOSED if said else State.ESTIMATED
    period.move_to(
        state, at=at, message=f"Charged by {basis.label}"[:200], basis=basis,
        revenue_micros=first.revenue_micros, metered_micros=metered, metered_lines=lines,
        charged_micros=first.due.total_micros, closed_at=at if said else None,
    )  # fmt: skip


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
    lines = _lines(period, until=period.ends_at)
    metered = _sum(lines)
    asked = amounts.due(terms, revenue_micros=said.revenue_micros, metered_micros=metered)
    change = asked.total_micros - period.charged_micros
    if change > 0:
        words = f"{period.label} (correction): {_less(period, asked.total_micros, period.charged_micros)}"
        _charge_missing(period, change, unit="correction", subject=words, at=at)
    elif change < 0:
        _give_back(period, -change, at=at)
    period.move_to(
        State.CLOSED, at=at, message="Corrected by the customer's statement", closed_at=at, basis=Basis.REPORTED,
        revenue_micros=said.revenue_micros, metered_micros=metered, metered_lines=lines,
        charged_micros=asked.total_micros,
    )  # fmt: skip


def _take(period: RevenuePeriod, asked: amounts.Due, *, revenue_micros: int, suffix: str, at: datetime) -> None:
    terms = written.of(period.version.terms)
    bps = terms["revenue"]["share_bps"]
    if asked.share_micros:
        settling.charge(
            organization=period.organization,
            resource_id=period.public_id,
            key=f"revenue:{period.public_id}:share",
            amount_micros=asked.share_micros,
            shares=shares_of(terms, period.version.contract.seller),
            item=_item(
                period,
                f"{period.label}{suffix}: {plain(bps * 10_000)} % x {plain(revenue_micros)} {period.currency}",
                revenue_micros,
                1,
                unit="revenue",
                bps=bps,
            ),
            at=at,
        )
    if asked.missing_micros:
        words = f"{period.label}{suffix}: {_less(period, asked.total_micros, asked.share_micros)}"
        unit = "metered_cost" if asked.is_metered else "minimum"
        _charge_missing(period, asked.missing_micros, unit=unit, subject=words, at=at)


def _less(period: RevenuePeriod, micros: int, less: int) -> str:
    """Return a difference as a line of an invoice says it, such as `400 - 150 USD`."""
    return f"{plain(micros)} - {plain(less)} {period.currency}"


def _charge_missing(period: RevenuePeriod, micros: int, *, unit: str, subject: str, at: datetime) -> None:
    """Charge what is missing to a `minimum` or a `metered_cost`, or by a `correction`."""
    settling.charge(
        organization=period.organization,
        resource_id=period.public_id,
        key=f"revenue:{period.public_id}:{'correction' if unit == 'correction' else 'least'}",
        amount_micros=micros,
        shares=shares_of(written.of(period.version.terms), period.version.contract.seller),
        item=_item(period, subject, 1, micros, unit=unit),
        kind=Outcome.Kind.TRUE_UP,
        at=at,
    )


def _item(
    period: RevenuePeriod,
    subject: str,
    quantity: int,
    micros_per_unit: int,
    *,
    bps: int = 10_000,
    unit: str = "revenue",
) -> Item:
    return Item(
        name=period.version.contract.title, project="", quantity=quantity, unit=unit,
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
