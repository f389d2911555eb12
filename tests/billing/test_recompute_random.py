"""Both calculators agree on random histories of use: tiers, minimums and commitments, and what spans cost.

A few hundred by default; `HISTORIES=100000 uv run pytest tests/billing/test_recompute_random.py` takes them all.
"""

import dataclasses
import os
import random
from datetime import UTC, datetime
from itertools import pairwise
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection

from billing import adjusting, floating, price_audit, recomputing, tiers
from billing.invoicing import pieces, proof
from billing.models import (
    UNITS,
    Account,
    Adjustment,
    Commitment,
    CommitmentPrice,
    PricePoint,
    PriceVersion,
    UsageSpan,
)
from tests.billing.makers import HOUR, NOON
from tests.billing.pricing import APRIL, MARCH, MAY, in_force, item, person

HISTORIES = int(os.environ.get("HISTORIES", "300"))
MS_PER_MONTH = 31 * 24 * 3_600_000
KINDS = ("promo", "cash", "receivable")

pytestmark = pytest.mark.django_db


def tiers_at_random(randomly):
    starts = sorted({randomly.randint(1, 900) for _ in range(randomly.randint(0, 4))})
    bounds = [0, *starts, None]
    return tuple((begin, end, randomly.randint(1, 5_000_000)) for begin, end in pairwise(bounds))


def price_everything(randomly):
    """Return thirty prices: flat ones, tiers of both kinds, some with minimums, and one that floats."""
    content = []
    for number in range(30):
        model = ("flat", "graduated", "volume")[number % 3]
        rows = tiers_at_random(randomly) if model != "flat" else ((0, None, randomly.randint(1, 5_000_000)),)
        minimum = randomly.choice([0, 0, randomly.randint(1, 50_000) * 10_000])
        content.append(item(f"sku-{number}", rows=rows, model=model, minimum_micros=minimum))
    found = list(in_force(*content, begins=MARCH - HOUR).values())
    series = floating.open_series(sku="spot", currency="USD", micros_per_unit_hour=999_999, by="x", at=MARCH - HOUR)
    for number in range(40):
        floating.append(
            series=series, micros_per_unit_hour=randomly.randint(1, 3_000_000), at=MARCH + number * HOUR * 30
        )
    return [*found, series]


def moment(randomly):
    return MARCH + randomly.randint(0, MS_PER_MONTH + 29 * 24 * 3_600_000) * (HOUR / 3_600_000)


def span_at_random(randomly, organization_id, prices):
    begin, end = sorted((moment(randomly), moment(randomly)))
    end = min(end, begin + randomly.choice([1, 30, 400]) * HOUR, MAY)
    price = randomly.choice(prices)
    return UsageSpan(
        organization_id=organization_id, resource_id=uuid4().hex, resource_name="x", quantity=randomly.randint(1, 9),
        price_version=price, started_at=begin, ended_at=end, charged_through=end,
        covered_by=randomly.choice(["", "", "", "rsv_1"]),
    )  # fmt: skip


def promise_at_random(randomly, organization_id, prices):
    """Return a commitment with its prices, of one or two months, to one thing or to several."""
    is_spend = randomly.random() < 0.5
    chosen = randomly.sample(prices[:-1], 3 if is_spend else 1)
    begin, end = randomly.choice([(MARCH, APRIL), (MARCH, MAY), (APRIL, MAY)])
    rates = [max(1, price.micros_per_unit_hour * 4 // 5) for price in chosen]
    hours = randomly.randint(1, 3000)
    row = Commitment(
        key=uuid4(), organization_id=organization_id, currency="USD", kind="spend" if is_spend else "hours",
        state="agreed", committed_micros=randomly.randint(1, 10**5) * 10_000 if is_spend else hours * rates[0],
        committed_unit_hours=0 if is_spend else hours, discount_bps=2000, starts_at=begin, ends_at=end, note="x",
        proposed_by_id=person(), decided_by_id=person("bob"), proposed_at=MARCH - HOUR, decided_at=MARCH - HOUR,
    )  # fmt: skip
    agreed = [
        CommitmentPrice(
            commitment=row, organization_id=organization_id, sku=price.sku, name="x", unit=UNITS["gpu"],
            list_micros_per_unit_hour=price.micros_per_unit_hour, micros_per_unit_hour=rate, starts_at=begin,
            ends_at=end, is_agreed=True,
        )
        for price, rate in zip(chosen, rates, strict=True)
    ]  # fmt: skip
    return row, agreed


def histories(randomly, count, prices):
    """Write down `count` customers with one to five spans each over two months; a third have a commitment."""
    model = apps.get_model("marketplace", "Organization")
    customers = model.objects.bulk_create(
        [model(name=f"Customer {number}", currency="USD") for number in range(count)], batch_size=2000
    )
    Account.objects.bulk_create(
        [Account(organization=row, kind=kind, currency="USD") for row in customers for kind in KINDS], batch_size=5000
    )
    spans = [span_at_random(randomly, row.pk, prices) for row in customers for _ in range(randomly.randint(1, 5))]
    UsageSpan.objects.bulk_create(spans, batch_size=5000)
    promised = [promise_at_random(randomly, row.pk, prices) for row in customers if randomly.random() < 0.33]
    Commitment.objects.bulk_create([row for row, _ in promised], batch_size=2000)
    CommitmentPrice.objects.bulk_create([price for _, each in promised for price in each], batch_size=2000)
    return [row.pk for row in customers]


def test_both_calculators_agree_on_random_histories():
    seed = random.SystemRandom().getrandbits(64)
    print(f"random histories of seed {seed}")
    randomly = random.Random(seed)
    prices = price_everything(randomly)
    customers = histories(randomly, HISTORIES, prices)
    # As often as anybody likes, but at least once in the month after: a close reads two months.
    for at in (MARCH + randomly.randint(1, 700) * HOUR, APRIL + randomly.randint(1, 700) * HOUR, MAY + HOUR):
        adjusting.post_due(at=at, seconds=10**6)
    assert Adjustment.objects.count() > HISTORIES
    assert list(recomputing.findings(at=datetime(2026, 6, 1, tzinfo=UTC))) == []
    with connection.cursor() as cursor:
        for rule, statement in price_audit.RULES.items():
            cursor.execute(statement, {"at": NOON})
            assert (rule, cursor.fetchall()) == (rule, [])
    points = {series.pk: list(PricePoint.objects.filter(price_version=series).order_by("starts_at"))
              for series in PriceVersion.objects.filter(is_floating=True)}  # fmt: skip
    for some in (customers[begin : begin + 2000] for begin in range(0, len(customers), 2000)):
        check_what_spans_cost(some, points)


@pytest.mark.parametrize("fault", ["product", "_draw", "_raise_to_minimum"])
def test_a_calculator_that_errs_is_found(monkeypatch, fault):
    right = getattr(tiers, fault)

    def wrong(*args):
        if fault == "product":
            return right(*args) + 3_600_000  # a micro too much
        return None if fault == "_raise_to_minimum" else right(args[0], dataclasses.replace(args[1], size=1), args[2])

    monkeypatch.setattr(tiers, fault, wrong)
    randomly = random.Random(5)
    histories(randomly, 40, price_everything(randomly))
    adjusting.post_due(at=MAY + HOUR)
    assert list(recomputing.findings(at=MAY + 2 * HOUR))


def check_what_spans_cost(customers, points):
    found = pieces.uninvoiced(customers, cutoff=APRIL)
    spans = UsageSpan.objects.select_related("price_version").in_bulk(
        [piece.span_id for each in found.values() for piece in each]
    )
    for each in found.values():
        for piece in each:
            assert proof._cost(spans[piece.span_id], points, piece.through) == piece.whole_micros
