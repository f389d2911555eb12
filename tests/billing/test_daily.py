"""The daily summary is the charges to the micro, in whichever order things are charged, corrected and summed up."""

import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.db.models import Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, charging, daily, floating, prepayments, usage
from billing.models import Charge, DailyRevenue, RevenueToSum, Unit, UsageSpan
from tests.billing.makers import HOUR, NOON, make_organization, make_price, start

pytestmark = pytest.mark.django_db

MS = timedelta(milliseconds=1)
DAY = 24 * HOUR
DAY_MS = DAY // MS
RULE = "daily_revenue_adds_up_to_the_charges"

# A span: from when on, for how long, how much, at which of the prices, and until when its corrected end goes back.
SPANS = st.lists(
    st.tuples(
        st.integers(0, 4 * DAY_MS), st.integers(0, 4 * DAY_MS), st.integers(1, 9), st.integers(0, 3),
        st.integers(0, 3 * DAY_MS),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
# What happens next: a charge of one span, a stop of one (perhaps before what was charged), a sweep.
STEPS = st.lists(st.tuples(st.sampled_from(["charge", "stop", "sum"]), st.integers(0, 3)), max_size=9)


@pytest.fixture
def prices(db):
    series = floating.open_series(sku="ofr_1/spot", currency="USD", micros_per_unit_hour=700_001, by="x", at=NOON)
    for turn in range(1, 40):
        floating.append(series=series, micros_per_unit_hour=700_001 + 13_337 * (turn % 7), at=NOON + turn * 5 * HOUR)
    still = make_price(sku="ofr_1/on_demand", micros_per_unit_hour=2_490_001)
    disk = make_price(sku="disk", micros_per_unit_hour=97, unit=Unit.GIB)
    return [(still, "gpu", ""), (series, "gpu", ""), (disk, "volume", ""), (still, "gpu", "rsv_1")]


def summed(*names):
    rows = DailyRevenue.objects.values_list(*names).annotate(total=Sum("micros"))
    return {tuple(key): micros for *key, micros in rows}


def contradictions(at):
    return [finding for finding in books.check(at=at) if finding.rule == RULE]


def by_hand():
    """What each market brought in each day, from what `floating` says of each span at each midnight."""
    found = Counter()
    for span in UsageSpan.objects.filter(covered_by="").select_related("price_version"):
        market = "storage" if span.meter == "volume" else span.labels["market"]
        edge, before = span.started_at.replace(hour=0, minute=0, second=0, microsecond=0), 0
        while edge < span.charged_through:
            edge += DAY
            upto = floating.amounts_micros([(span, min(edge, span.charged_through))])[0]
            found[(edge - DAY).date(), market] += upto - before
            before = upto
    return {key: micros for key, micros in found.items() if micros}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=SPANS, steps=STEPS)
def test_its_days_are_the_charges_to_the_micro_however_late_they_come_and_are_corrected(prices, spans, steps):
    with transaction.atomic():
        organization = make_organization(cash=10**9)
        made = []
        for number, (begin_ms, lasts_ms, quantity, kind, back_ms) in enumerate(spans):
            price, meter, covered_by = prices[kind]
            begins = NOON + begin_ms * MS
            usage.start(
                organization=organization, resource_id=f"res_{number}", resource_name="x", quantity=quantity,
                labels={"offer": "ofr_1", "market": "spot" if price.is_floating else "on_demand"}, meter=meter,
                price_version=price, covered_by=covered_by, at=begins,
            )  # fmt: skip
            made.append((f"res_{number}", meter, begins + lasts_ms * MS, back_ms * MS))
        now = NOON + 9 * DAY
        for what, number in [*steps, *[("charge", number) for number in range(4)], ("sum", 0)]:
            resource, meter, ends, back = made[number % len(made)]
            if what == "charge":
                charging.charge_span(span=UsageSpan.objects.get(resource_id=resource), through=ends)
            elif what == "stop":
                usage.stop(resource_id=resource, meter=meter, at=ends - back)
            else:
                daily.sum_up(at=now)
            assert contradictions(now) == []
        assert not RevenueToSum.objects.exists()
        total = Charge.objects.aggregate(total=Sum("amount_micros", default=0))["total"]
        assert sum(summed("day").values()) == total
        assert summed("day", "market") == by_hand()
        transaction.set_rollback(True)


def test_a_correction_makes_its_days_anew_and_no_other(acme):
    price = make_price()
    span = start(acme, resource_id="ins_1", price_version=price)
    charging.charge_span(span=span, through=NOON + 3 * DAY)
    assert daily.sum_up(at=NOON) == 4
    DailyRevenue.objects.update(summed_at=NOON - DAY)
    usage.stop(resource_id="ins_1", at=NOON + DAY)
    assert daily.sum_up(at=NOON) == 3  # from the day of the new end to that of the last charge
    half_a_day = price.micros_per_unit_hour * span.quantity * 12
    assert summed("day") == {(date(2026, 3, 2),): half_a_day, (date(2026, 3, 3),): half_a_day}
    assert [row.summed_at for row in DailyRevenue.objects.order_by("day")] == [NOON - DAY, NOON]
    assert daily.sum_up(at=NOON) == 0


def test_a_sweep_takes_the_newest_days_and_leaves_the_rest_to_the_next(acme):
    charging.charge_span(span=start(acme, resource_id="ins_1", price_version=make_price()), through=NOON + 5 * DAY)
    assert daily.sum_up(at=NOON, limit=4) == 4
    assert min(summed("day")) == (date(2026, 3, 4),)
    assert contradictions(NOON + 9 * DAY) == []
    assert (daily.sum_up(at=NOON), daily.sum_up(at=NOON)) == (2, 0)
    assert contradictions(NOON + 9 * DAY) == []
    assert min(summed("day")) == (date(2026, 3, 2),)


def test_hours_that_were_paid_ahead_count_under_their_reservation_when_they_are_earned(acme):
    prepayments.earn(key="rsv_1:4", currency="USD", amount_micros=900, reason="x", at=NOON)
    assert daily.sum_up(at=NOON) == 1
    assert summed("day", "thing", "market") == {(date(2026, 3, 2), "rsv_1", "reserved"): 900}
    assert contradictions(NOON) == []


def test_a_day_that_says_a_micro_more_or_less_is_found(acme):
    charging.charge_span(span=start(acme, resource_id="ins_1", price_version=make_price()), through=NOON + DAY)
    daily.sum_up(at=NOON)
    DailyRevenue.objects.filter(day=date(2026, 3, 2)).update(micros=1)
    (finding,) = contradictions(NOON + DAY)
    assert "days say" in finding.detail
    # While a later day is still to be summed up, those before it are looked at all the same.
    daily.touch(since=NOON + DAY, through=NOON + DAY)
    assert len(contradictions(NOON + DAY)) == 1


@pytest.mark.django_db(transaction=True)
def test_what_is_charged_while_a_sweep_works_is_summed_up_by_the_next():
    acme = make_organization(cash=10**9)
    span = start(acme, resource_id="ins_1", price_version=make_price())
    charging.charge_span(span=span, through=NOON + HOUR)
    charged, swept = threading.Event(), threading.Event()

    def charge_slowly():
        try:
            with transaction.atomic():
                charging.charge_span(span=span, through=NOON + 2 * HOUR)
                charged.set()
                assert swept.wait(10)
        finally:
            charged.set()
            connections.close_all()

    other = threading.Thread(target=charge_slowly)
    other.start()
    assert charged.wait(10)
    assert daily.sum_up(at=NOON) == 1
    hour = span.micros_per_unit_hour * span.quantity
    assert summed("day") == {(date(2026, 3, 2),): hour}
    swept.set()
    other.join()
    assert contradictions(NOON + DAY) == []
    assert daily.sum_up(at=NOON) == 1
    assert summed("day") == {(date(2026, 3, 2),): 2 * hour}


def test_days_are_utc_whatever_the_connection_says(acme):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL TIME ZONE 'Asia/Tokyo'")
    late = datetime(2026, 3, 2, 23, tzinfo=UTC)
    charging.charge_span(
        span=start(acme, resource_id="ins_1", price_version=make_price(), at=late), through=late + HOUR
    )
    daily.sum_up(at=NOON)
    assert list(summed("day")) == [(date(2026, 3, 2),)]
    assert contradictions(NOON + DAY) == []
