"""Costs cut by day, project, model and market: however they are cut, they add up to the charges to the micro."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import charging, floating, prices, usage
from billing.models import Charge, PriceVersion, UsageSpan
from marketplace import breakdown, forecast
from marketplace.access import Actor
from marketplace.models import Organization, Project
from provisioning.calendar import hour_of
from tests.billing.makers import make_organization
from tests.blocks import PRICE, Buyer, sell_blocks
from tests.conftest import Fleet

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = 24 * HOUR
MS = timedelta(milliseconds=1)
FORTNIGHT_MS = 14 * DAY // MS


@pytest.fixture
def price(db: None) -> PriceVersion:
    return prices.publish(
        sku="ofr_1/on_demand", currency="USD", micros_per_unit_hour=2_490_001, effective_from=NOON - 99 * DAY,
        by="test", at=NOON - 99 * DAY,
    )  # fmt: skip


@pytest.fixture
def spot(db: None) -> PriceVersion:
    series = floating.open_series(
        sku="ofr_1/spot", currency="USD", micros_per_unit_hour=1_000_003, by="test", at=NOON - 20 * DAY
    )
    for number in range(60):
        moment = NOON - 15 * DAY + number * 7 * HOUR
        floating.append(series=series, micros_per_unit_hour=700_001 + 13_337 * number, at=moment)
    return series


def used(organization: Organization, price: PriceVersion, *, name: str, start: datetime, end: datetime | None = None,
         quantity: int = 3, **labels: str) -> UsageSpan:  # fmt: skip
    usage.start(
        organization=organization, resource_id=name, resource_name=name, labels=labels, quantity=quantity,
        price_version=price, at=start,
    )  # fmt: skip
    if end is not None:
        usage.stop(resource_id=name, at=end)
    return UsageSpan.objects.get(resource_id=name)


def edges(first: datetime, days: int) -> list[datetime]:
    return breakdown.days(first, first + days * DAY)


SPANS = st.lists(
    st.tuples(
        st.integers(0, FORTNIGHT_MS), st.integers(0, FORTNIGHT_MS), st.integers(1, 9), st.booleans(), st.booleans(),
        st.sampled_from(["prj_a", "prj_b", ""]),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=SPANS, at_ms=st.integers(0, DAY // MS), first_hour=st.integers(0, 23), charged_ms=st.integers(0, 9 * 10**8)
)
def test_the_sums_are_the_ledgers_charges_to_the_micro(
    price: PriceVersion, spot: PriceVersion, spans: list[Any], at_ms: int, first_hour: int, charged_ms: int
) -> None:
    organization = make_organization(cash=10**9)
    now, begin = NOON + at_ms * MS, NOON - 15 * DAY
    for number, (start_ms, lasts_ms, quantity, is_open, floats, project) in enumerate(spans):
        start = begin + start_ms * MS
        end = min(start + lasts_ms * MS, now)
        version = spot if floats else price
        UsageSpan.objects.create(
            organization=organization, resource_id=f"ins_{number}_{organization.pk}", resource_name="x",
            quantity=quantity, price_version=version, started_at=start,
            ended_at=None if is_open else end, charged_through=start, labels={
                "project": project, "market": "spot" if floats else "on_demand",
            },
        )  # fmt: skip
    # Charged at some moment on the way and at the end: what was taken when makes no difference.
    for moment in (begin + charged_ms * MS, now):
        for span in UsageSpan.objects.filter(organization=organization):
            charging.charge_span(span=span, through=moment)
    charges = Charge.objects.filter(span__organization=organization)
    charged = charges.aggregate(micros=Sum("amount_micros", default=0))["micros"]
    found = breakdown.of(organization, edges(begin.replace(hour=first_hour) - DAY, 18), at=now)
    assert sum(cost.micros for cost in found) == charged
    for by in (["day"], ["project", "market"], []):
        assert sum(breakdown.summed(found, by).values()) == charged
    for market, version in (("spot", spot), ("on_demand", price)):
        of_market = charges.filter(span__price_version=version).aggregate(micros=Sum("amount_micros", default=0))
        assert sum(cost.micros for cost in breakdown.chosen(found, market=market)) == of_market["micros"]


def test_a_day_holds_what_was_used_in_it(acme: Organization, price: PriceVersion) -> None:
    used(acme, price, name="ins_1", start=NOON - DAY, end=NOON, project="prj_a", market="on_demand")
    found = breakdown.of(acme, edges(NOON.replace(hour=0) - DAY, 3), at=NOON + DAY)
    assert [(f"{cost.day:%m-%d}", cost.project, cost.micros) for cost in found] == [
        ("03-09", "prj_a", 12 * 7_470_003), ("03-10", "prj_a", 12 * 7_470_003),
    ]  # fmt: skip


def test_days_are_those_of_the_zone_even_where_clocks_change(acme: Organization, price: PriceVersion) -> None:
    # In London 2026-03-29 has 23 hours; the instance runs all of it and no longer.
    begin = datetime(2026, 3, 29, tzinfo=ZoneInfo("Europe/London"))
    used(acme, price, name="ins_1", start=begin.astimezone(UTC), end=begin.astimezone(UTC) + 23 * HOUR)
    found = breakdown.of(acme, edges(begin - 2 * DAY, 5), at=NOON + 99 * DAY)
    assert [(f"{cost.day:%m-%d}", cost.micros) for cost in found] == [("03-29", 23 * 7_470_003)]


def test_another_organizations_use_and_what_was_paid_ahead_by_a_reservation_cost_nothing(
    acme: Organization, price: PriceVersion, charlie: Any
) -> None:
    used(charlie.memberships.get().organization, price, name="ins_theirs", start=NOON - HOUR)
    usage.start(
        organization=acme, resource_id="ins_inside", resource_name="x", labels={}, quantity=8, price_version=price,
        at=NOON - HOUR, covered_by="rsv_1",
    )  # fmt: skip
    assert breakdown.of(acme, edges(NOON - DAY, 2), at=NOON) == []


def test_reserved_hours_stand_on_the_day_of_their_payment(
    actor: Actor, project: Project, fleet: Fleet, acme: Organization
) -> None:
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + HOUR)
    buyer.buy(2, 48, 58)
    today = buyer.at(0).replace(hour=0)
    found = breakdown.of(acme, edges(today, 1), at=buyer.at(1))
    assert [(cost.project, cost.model, cost.market, cost.micros) for cost in found] == [
        (project.public_id, "H200", "reserved", 2 * 10 * PRICE)
    ]
    assert breakdown.of(acme, edges(today, 1), at=buyer.at(1), project=project) == found


def test_it_is_one_query_however_much_there_is(acme: Organization, price: PriceVersion) -> None:
    for number in range(5):
        used(acme, price, name=f"ins_{number}", start=NOON - number * DAY, project=f"prj_{number}")
    with CaptureQueriesContext(connection) as captured:
        assert len(breakdown.of(acme, edges(NOON - 30 * DAY, 31), at=NOON)) > 10
    assert len(captured) == 1


def test_the_forecast_goes_on_as_it_is_now_until_the_month_ends() -> None:
    # 100 used, 3 an hour for the 60 hours that are left, 7 ordered, 11 of shares of a revenue.
    found = forecast.month_end_micros(
        used_micros=100, burn_micros_per_hour=3, ordered_micros=7, shares_micros=11, at=NOON, until=NOON + 60 * HOUR
    )
    assert found == 100 + 3 * 60 + 7 + 11


@given(
    used_micros=st.integers(0, 10**15), burn=st.integers(0, 10**12), ordered=st.integers(0, 10**12),
    shares=st.integers(0, 10**12), left_ms=st.integers(0, 31 * DAY // MS),
)  # fmt: skip
def test_the_forecast_is_rounded_once(used_micros: int, burn: int, ordered: int, shares: int, left_ms: int) -> None:
    found = forecast.month_end_micros(
        used_micros=used_micros, burn_micros_per_hour=burn, ordered_micros=ordered, shares_micros=shares,
        at=NOON, until=NOON + left_ms * MS,
    )  # fmt: skip
    assert abs((found - used_micros - ordered - shares) * 3_600_000 - burn * left_ms) <= 1_800_000
