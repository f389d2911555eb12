"""How fast costs and revenue are added up, of many spans, each beside a bare statement over the same rows.

    uv run python -m tests.bench.costs --spans 300000 --json

Fills a database of its own with a month of use of a thousand organizations, spread over offers and markets, a third
of it at prices that float, and looks at one organization's overview, at all budgets, and at the console's revenue.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests import schema
from tests.bench import machine
from tests.bench.stage import set_up

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
NOW = datetime(2026, 10, 31, 12, tzinfo=UTC)
ORGANIZATIONS, OFFERS = 1000, 10
POINTS = 2000
ROUNDS = 5

FILL = """
INSERT INTO billing_usagespan (public_id, organization_id, resource_id, resource_name, labels, meter, quantity,
    price_version_id, covered_by, started_at, ended_at, charged_micros, charged_through, invoiced_micros)
SELECT 'spn_' || lpad(n::text, 20, 'a'), %(first)s + n %% %(organizations)s, 'ins_' || n, 'run', jsonb_build_object(
        'project', 'prj_' || n %% %(organizations)s, 'offer', offers[1 + n %% cardinality(offers)],
        'market', CASE WHEN n %% 3 = 0 THEN 'spot' ELSE 'on_demand' END
    ), 'gpu', 1 + n %% 8, CASE WHEN n %% 3 = 0 THEN %(floating)s ELSE %(flat)s END, '', began,
    began + (1 + n * 37 %% 48) * interval '1 hour', 0, began + (1 + n * 37 %% 48) * interval '1 hour', 0
FROM (
    SELECT n, %(begin)s::timestamptz + (n::bigint * 7919 %% 2500000) * interval '1 second' AS began,
        %(offers)s::text[] AS offers
    FROM generate_series(1, %(spans)s) AS n
) one
"""
# What each costs, as if it had been charged.
CHARGE = """
UPDATE billing_usagespan span SET charged_micros = div(2 * other.quantity * CASE WHEN price.is_floating
    THEN last.upto - first.upto
    ELSE price.micros_per_unit_hour::numeric * 1000 * extract(epoch FROM other.ended_at - other.started_at)
END + 3600000, 7200000)
FROM billing_usagespan other JOIN billing_priceversion price ON price.id = other.price_version_id
LEFT JOIN LATERAL (
    SELECT sum_micro_ms + micros_per_unit_hour * round(1000 * extract(epoch FROM other.started_at - starts_at)) AS upto
    FROM billing_pricepoint WHERE price_version_id = price.id AND starts_at <= other.started_at
    ORDER BY starts_at DESC LIMIT 1
) first ON true
LEFT JOIN LATERAL (
    SELECT sum_micro_ms + micros_per_unit_hour * round(1000 * extract(epoch FROM other.ended_at - starts_at)) AS upto
    FROM billing_pricepoint WHERE price_version_id = price.id AND starts_at <= other.ended_at
    ORDER BY starts_at DESC LIMIT 1
) last ON true
WHERE other.id = span.id
"""
BARE = """
SELECT organization_id, date_trunc('day', started_at, 'UTC'), labels ->> 'offer', sum(quantity * 2490000::numeric)
FROM billing_usagespan GROUP BY 1, 2, 3
"""


def main() -> int:
    """Run the benchmark; the last line of the output is JSON."""
    parser = argparse.ArgumentParser("python -m tests.bench.costs", description=__doc__)
    parser.add_argument("--spans", type=int, default=300_000, help="spans in the month (default: 300000)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    given = parser.parse_args()
    here = machine.facts()
    with set_up() as stage:
        os.environ.update(stage.environ)
        import django

        django.setup()
        schema.fill()
        figures = run(given.spans, (lambda text: None) if given.json else print)
    print(machine.last_line("costs", figures, here))
    return 0


def run(spans: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill and look."""
    from marketplace import breakdown, budget_counters
    from marketplace.budget_counters import Whose
    from marketplace.console import revenue
    from marketplace.models import Organization

    say(f"Filling {spans} spans ...")
    fill(spans)
    organizations = list(Organization.objects.filter(name__startswith="bench").order_by("pk"))
    edges = breakdown.days(BEGIN, BEGIN + timedelta(days=31))
    owners = [Whose(organization.pk) for organization in organizations]
    looks: dict[str, Callable[[], Any]] = {
        "bare_ms": bare,
        "overview_ms": lambda: breakdown.of(organizations[0], edges, at=NOW),
        "budgets_ms": lambda: budget_counters.measure_money(owners, NOW),
        "revenue_ms": lambda: revenue.sold(edges[0], edges[-1]),
        "sum_up_month_ms": lambda: sum_up(BEGIN, edges[-1] - timedelta(days=1)),
        "sum_up_today_ms": lambda: sum_up(NOW, NOW),
    }
    sum_up(BEGIN, edges[-1] - timedelta(days=1))
    figures: dict[str, Any] = {"spans": spans, "organizations": len(organizations), "budgets": len(owners)}
    for name, look in looks.items():
        look()
        figures[name] = round(min(timed(look) for _ in range(ROUNDS)))
        say(f"{name}: {figures[name]}")
    return figures


def timed(look: Callable[[], Any]) -> float:
    began = time.monotonic()
    look()
    return 1000 * (time.monotonic() - began)


def sum_up(since: datetime, through: datetime) -> None:
    """Let the summary of some days be worked out anew."""
    from billing import daily

    daily.touch(since=since, through=through)
    daily.sum_up(at=NOW)


def bare() -> None:
    """Read and add up the same rows by the plainest statement there is."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(BARE)
        cursor.fetchall()


def fill(spans: int) -> None:
    """Make organizations, offers, prices and spans."""
    from django.db import connection

    from billing import floating, prices
    from billing.models import PricePoint
    from marketplace.models import Offer, Organization
    from provisioning.models import Site

    operator = Organization.objects.create(name="operator", is_supplier=True)
    site = Site.objects.create(
        slug="narvik", name="Narvik", city="Narvik", country="NO", jurisdiction="NO", latitude="68.4", longitude="17.4",
        grid_zone="NO4", power_source="hydro", pue="1.10",
    )  # fmt: skip
    offers = [
        Offer.objects.create(
            slug=f"offer-{number}", name=f"Offer {number}", supplier=operator, site=site, gpu_model=f"GPU{number}",
            gpu_memory_gib=80, gpus_per_node=8, interconnect="NVLink", max_gpus=64,
        )
        for number in range(OFFERS)
    ]  # fmt: skip
    first = Organization.objects.bulk_create([Organization(name=f"bench {number}") for number in range(ORGANIZATIONS)])
    flat = prices.publish(
        sku="flat/on_demand", currency="USD", micros_per_unit_hour=2_490_000, effective_from=BEGIN, by="bench", at=BEGIN
    )
    series = floating.open_series(
        sku="float/spot", currency="USD", micros_per_unit_hour=1_000_000, by="bench", at=BEGIN - timedelta(hours=1)
    )
    step, total, points = timedelta(days=31) / POINTS, 3_600_000 * 1_000_000, []
    for number in range(POINTS):
        micros = 900_000 + number % 7 * 10_000
        at = BEGIN + number * (step - timedelta(microseconds=step.microseconds))
        points.append(PricePoint(price_version=series, starts_at=at, micros_per_unit_hour=micros, sum_micro_ms=total))
        total += micros * ((step - timedelta(microseconds=step.microseconds)) // timedelta(milliseconds=1))
    PricePoint.objects.bulk_create(points, batch_size=1000)
    with connection.cursor() as cursor:
        cursor.execute(
            FILL,
            {
                "first": first[0].pk, "organizations": ORGANIZATIONS, "offers": [offer.public_id for offer in offers],
                "floating": series.pk, "flat": flat.pk, "begin": BEGIN, "spans": spans,
            },
        )  # fmt: skip
        cursor.execute(CHARGE)
        cursor.execute("VACUUM ANALYZE")


if __name__ == "__main__":
    sys.exit(main())
