"""What an organization's use cost, cut by day, project, GPU model and market, in one statement for any number of spans.

A slice of a span costs what the span costs until the slice's end less what it
costs until its beginning, both as they are charged. So the slices of a span add
up to its charges to the micro, however the days are cut. What was paid ahead
for reserved hours stands on the day of its payment under the market `reserved`,
and what was given back of it is negative; what tiers, minimums and commitments
make of use stands under `adjustment` on the day when it was posted, and what
results cost under `outcome` on the day on which they were accepted.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from billing import daily
from marketplace.models import Organization, Project
from marketplace.spend import BESIDE, UP_TO

# What costs can be told apart by. The order is that of columns.
DIMENSIONS = ("day", "project", "model", "market")
STORAGE, RESERVED, ADJUSTMENT, OUTCOME = daily.STORAGE, daily.RESERVED, daily.ADJUSTMENT, daily.OUTCOME
DAYS_MAX = 366

# Each span with the days that it touches: `number`, and where that day begins and ends.
DAYS = """
CROSS JOIN LATERAL (
    SELECT number, (%(edges)s::timestamptz[])[number] AS began, (%(edges)s::timestamptz[])[number + 1] AS till
    FROM generate_series(
        greatest(1, width_bucket(span.started_at, %(edges)s::timestamptz[])),
        least(%(days)s, width_bucket(coalesce(span.ended_at, %(now)s), %(edges)s::timestamptz[]))
    ) AS number
) slice
"""
SLICE = f"{UP_TO.format(moment='slice.till')} - {UP_TO.format(moment='slice.began')}"
WITHIN = """
    span.covered_by = '' AND span.started_at < %(until)s AND coalesce(span.ended_at, 'infinity') > %(since)s
"""
COSTS = f"""
WITH part AS (
    SELECT slice.number, coalesce(span.labels ->> 'project', '') AS project, span.labels ->> 'offer' AS offer,
        CASE WHEN span.meter = 'volume' THEN '{STORAGE}' ELSE coalesce(span.labels ->> 'market', '') END AS market,
        {SLICE} AS micros
    FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id {DAYS}
    WHERE span.organization_id = ANY (%(organizations)s) AND {WITHIN}
    UNION ALL
    SELECT width_bucket(beside.effective_at, %(edges)s::timestamptz[]), coalesce(project.public_id, ''),
        offer.public_id, beside.kind, beside.micros
    FROM ({BESIDE}) beside LEFT JOIN marketplace_project project ON project.id = beside.project_id
    LEFT JOIN marketplace_offer offer ON offer.id = beside.offer_id
    WHERE beside.effective_at >= %(since)s AND beside.effective_at < %(until)s
), summed AS (
    SELECT number, project, offer, market, sum(micros) AS micros FROM part GROUP BY number, project, offer, market
)
SELECT number, project, coalesce(offer.gpu_model, CASE WHEN market = '{STORAGE}' THEN market ELSE '' END), market,
    sum(micros)::bigint
FROM summed LEFT JOIN marketplace_offer offer ON offer.public_id = summed.offer
WHERE %(project)s::text IS NULL OR project = %(project)s
GROUP BY 1, 2, 3, 4 HAVING sum(micros) <> 0 ORDER BY 1, 2, 3, 4
"""  # noqa: S608  nothing in it comes from outside


@dataclass(frozen=True, slots=True)
class Cost:
    """What one project spent on one GPU model (or `storage`) on one market in one day. Ids and codes, no words."""

    day: datetime
    project: str
    model: str
    market: str
    micros: int

    def key(self, by: Sequence[str]) -> tuple[Any, ...]:
        """Return what it is told apart by."""
        return tuple(getattr(self, name) for name in by)


def days(since: datetime, until: datetime) -> list[datetime]:
    """Return the midnights from `since` on, in its zone, and the end: the edges of the days in between."""
    assert since < until
    edges = [since]
    # Arithmetic within one zone is of wall clocks, so these are midnights even where clocks change.
    midnight = since.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    while midnight < until:
        edges.append(midnight)
        midnight += timedelta(days=1)
    return [*edges, until]


def of(
    organization: Organization, edges: Sequence[datetime], *, at: datetime, project: Project | None = None
) -> list[Cost]:
    """Return what was spent between these edges of days until `at`, in the order of days. One query."""
    with connection.cursor() as cursor:
        given = {"organizations": [organization.pk], "project": project.public_id if project else None}
        cursor.execute(COSTS, given | window(edges, at=at))
        return [Cost(edges[number - 1], *row) for number, *row in cursor.fetchall()]


def window(edges: Sequence[datetime], *, at: datetime) -> dict[str, Any]:
    """Return what the statements need to know about the days."""
    assert 2 <= len(edges) <= DAYS_MAX + 1
    return {"edges": list(edges), "days": len(edges) - 1, "since": edges[0], "until": edges[-1], "now": at}


def chosen(costs: Iterable[Cost], *, project: str = "", model: str = "", market: str = "") -> list[Cost]:
    """Return those of one project, GPU model or market, where one is named."""
    wanted = {name: value for name, value in (("project", project), ("model", model), ("market", market)) if value}
    return [cost for cost in costs if all(getattr(cost, name) == value for name, value in wanted.items())]


def summed(costs: Iterable[Cost], by: Sequence[str]) -> dict[tuple[Any, ...], int]:
    """Return the sums by what they are told apart by, in the order in which that came first."""
    found: dict[tuple[Any, ...], int] = defaultdict(int)
    for cost in costs:
        found[cost.key(by)] += cost.micros
    return dict(found)
