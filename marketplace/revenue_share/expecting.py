"""What shares of revenue will ask of organizations in a month: what their open periods come to that fall due in it.

A period is charged when it is due, so a budget of that month has to pay for it, and not one of the month that it is of.
"""

from collections.abc import Collection
from datetime import datetime

from django.db.models import OuterRef, Subquery

from billing.months import next_month
from marketplace.contracts import terms as written
from marketplace.models import RevenuePeriod, RevenueStatement
from marketplace.revenue_share import amounts, closing


def in_month(organization_ids: Collection[int], *, at: datetime) -> dict[int, int]:
    """Return by organization what open periods that are due before the month of `at` ends will ask of it.

    That is what each would be charged now: by what was stated last, else by the rule for what is overdue, never less
    than its minimum, with the hours that it covers until now. One query, and one for each agreement that is metered.
    """
    found: dict[int, int] = {}
    for period, said, last in _due(organization_ids, until=next_month(at)):
        terms = written.of(period.version.terms)["revenue"]
        asks_hours = "metered_cost" in (terms["true_up"], terms["if_overdue"])
        metered = closing.metered_micros(period, until=at) if asks_hours else 0
        asked = amounts.first(terms, said_micros=said, last_micros=last, metered_micros=metered).due
        found[period.organization_id] = found.get(period.organization_id, 0) + asked.total_micros
    return found


def _due(organization_ids: Collection[int], *, until: datetime) -> list[tuple[RevenuePeriod, int | None, int | None]]:
    """Return the open periods that are due before a moment, with what was stated last of each and of one before it."""
    newest = RevenueStatement.objects.filter(period=OuterRef("pk")).order_by("-number")
    earlier = RevenueStatement.objects.filter(
        period__version=OuterRef("version"), period__organization=OuterRef("organization"),
        period__starts_at__lt=OuterRef("starts_at"),
    ).order_by("-period__starts_at", "-number")  # fmt: skip
    rows = RevenuePeriod.objects.filter(
        organization__in=organization_ids, state=RevenuePeriod.State.OPEN, due_at__lt=until
    )
    annotated = rows.select_related("version").annotate(
        said=Subquery(newest.values("revenue_micros")[:1]), last=Subquery(earlier.values("revenue_micros")[:1])
    )
    return [(row, row.said, row.last) for row in annotated]
