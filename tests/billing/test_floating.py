"""Prices that float: what use costs between two moments, however often the price moved between them."""

from datetime import timedelta
from functools import partial

import pytest
from django.db import DatabaseError, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, charging, floating, prices, usage
from billing.errors import RetroactivePrice
from billing.models import Charge, Hold, PricePoint, PriceVersion, Runway, UsageSpan
from marketplace import spend
from marketplace.portal import spending
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    at_the_same_moment,
    hold_money,
    make_organization,
    make_price,
    start,
    wallet,
)

MS = timedelta(milliseconds=1)


def make_series(micros=1_000_000, *, at=NOON):
    return floating.open_series(
        sku="ofr_1/spot", currency="USD", micros_per_unit_hour=micros, by="operator@example.com", at=at
    )


@pytest.mark.django_db
def test_a_span_costs_each_price_for_as_long_as_it_held(acme):
    series = make_series(1_000_000)
    start(acme, price_version=series, quantity=2)
    floating.append(series=series, micros_per_unit_hour=1_500_000, at=NOON + HOUR / 2)
    floating.append(series=series, micros_per_unit_hour=500_000, at=NOON + HOUR)
    span = usage.stop(resource_id="ins_1", at=NOON + 2 * HOUR)
    assert span.charged_micros == 2 * (500_000 + 750_000 + 500_000)
    assert wallet(acme).promo_micros == 10 * USD - span.charged_micros
    assert books.check(at=NOON + 2 * HOUR) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(st.tuples(st.integers(1, 3_600_000), st.integers(1, 9_999_999)), max_size=8),
    began=st.integers(0, 7_200_000),
    looks=st.lists(st.integers(1, 10_000_000), max_size=4),
    lasts=st.integers(0, 10_000_000),
)
def test_the_difference_of_two_sums_is_what_millisecond_after_millisecond_would_cost(
    acme, db, moves, began, looks, lasts
):
    with transaction.atomic():
        series = make_series(777_777)
        points, at = [(0, 777_777)], 0
        for later, micros in moves:
            at += later
            points.append((at, micros))
        end = began + lasts
        actions = [(ms, 1, partial(floating.append, series=series, micros_per_unit_hour=micros, at=NOON + ms * MS))
                   for ms, micros in points[1:]]  # fmt: skip
        actions.append((began, 0, partial(start, acme, price_version=series, quantity=3, at=NOON + began * MS)))
        actions += [
            (ms, 2, partial(charging.charge_due, at=NOON + ms * MS)) for ms in looks if began + 60_000 <= ms < end
        ]
        actions.append((end, 3, partial(usage.stop, resource_id="ins_1", at=NOON + end * MS)))
        for _, _, act in sorted(actions, key=lambda action: action[:2]):
            act()
            assert books.check(at=NOON + timedelta(days=1)) == []
        span = UsageSpan.objects.get()
        exact = 0
        for (since, micros), (until, _) in zip(points, [*points[1:], (10**12, 0)], strict=True):
            exact += 3 * micros * max(0, min(end, until) - max(began, since))
        assert span.charged_micros == usage.amount_micros(span=span, at=NOON + timedelta(days=1))
        assert span.charged_micros == (2 * exact + 3_600_000) // 7_200_000
        day = [(NOON - HOUR, NOON + HOUR), (NOON + HOUR, NOON + 30 * HOUR)]
        assert sum(micros for micros, _ in spend.spent(acme, day, at=NOON + 24 * HOUR)) == span.charged_micros
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_a_price_never_moves_within_time_that_was_charged(acme):
    series = make_series()
    span = start(acme, price_version=series)
    charging.charge_span(span=span, through=NOON + timedelta(seconds=90))
    point = floating.append(series=series, micros_per_unit_hour=500_000, at=NOON + timedelta(seconds=60))
    assert point.starts_at == NOON + timedelta(seconds=90)
    charging.charge_span(span=span, through=NOON + timedelta(seconds=91))
    assert books.check(at=NOON + HOUR) == []
    with pytest.raises(RetroactivePrice):
        floating.append(series=series, micros_per_unit_hour=1, at=NOON)


@pytest.mark.django_db
def test_the_same_amount_again_adds_no_point():
    series = make_series()
    assert make_series(5) == series
    floating.append(series=series, micros_per_unit_hour=1_000_000, at=NOON + HOUR)
    assert PricePoint.objects.count() == 1
    assert floating.price_now(series, at=NOON + HOUR) == 1_000_000
    assert floating.price_now(make_price(), at=NOON) == 2_500_000


@pytest.mark.django_db
@pytest.mark.parametrize("change", [
    lambda point: PricePoint.objects.filter(pk=point.pk).update(micros_per_unit_hour=1),
    lambda point: point.delete(),
    lambda point: PricePoint.objects.create(
        price_version=point.price_version, starts_at=NOON - HOUR, micros_per_unit_hour=1, sum_micro_ms=0),
    lambda point: PricePoint.objects.create(
        price_version=point.price_version, starts_at=NOON + HOUR, micros_per_unit_hour=1, sum_micro_ms=7),
    lambda point: PriceVersion.objects.create(
        sku="ofr_1/spot", currency="USD", micros_per_unit_hour=1, is_floating=True, effective_from=NOON,
        published_at=NOON),
])  # fmt: skip
def test_the_database_refuses_points_that_change_or_come_out_of_order(change):
    point = make_series().points.get()
    with pytest.raises(DatabaseError), transaction.atomic():
        change(point)


@pytest.mark.django_db
def test_the_runway_burns_what_the_last_point_says(acme):
    series = make_series(1_000_000)
    start(acme, price_version=series, quantity=2)
    assert Runway.objects.get().exhausts_at == NOON + 7.5 * HOUR
    floating.append(series=series, micros_per_unit_hour=4_000_000, at=NOON + HOUR)
    runway = Runway.objects.get()
    assert (runway.burn_micros_per_hour, runway.exhausts_at) == (8_000_000, NOON + HOUR + HOUR * 13 / 8)
    assert spending.of(acme, at=NOON + 2 * HOUR).per_hour_micros == 8_000_000
    assert books.check(at=NOON + 2 * HOUR) == []


@pytest.mark.django_db
def test_going_on_at_another_price_ends_the_span_and_keeps_what_is_held(acme):
    series = make_series()
    start(acme, price_version=series)
    hold_money(acme, 9 * USD)
    still = prices.publish(
        sku="ofr_1/notice", currency="USD", micros_per_unit_hour=250_000, effective_from=NOON + HOUR, by="x", at=NOON
    )
    for _ in range(2):
        usage.reprice(resource_id="ins_1", price_version=still, at=NOON + HOUR)
    assert sum(hold.left_micros for hold in Hold.objects.all()) == 7 * USD
    usage.stop(resource_id="ins_1", at=NOON + 2 * HOUR)
    assert [span.charged_micros for span in UsageSpan.objects.order_by("started_at")] == [2_000_000, 500_000]
    usage.reprice(resource_id="ins_1", price_version=series, at=NOON + 3 * HOUR)
    assert UsageSpan.objects.count() == 2
    assert books.check(at=NOON + 2 * HOUR) == []


@pytest.mark.django_db(transaction=True)
def test_a_price_that_moves_while_others_charge_start_and_stop_keeps_the_books_right():
    organizations = [make_organization(promo=100 * USD) for _ in range(3)]
    series = make_series()
    for number, organization in enumerate(organizations):
        start(organization, price_version=series, resource_id=f"ins_{number}")
    for turn in range(1, 6):
        at = NOON + turn * timedelta(seconds=61)
        outcomes = at_the_same_moment(
            partial(floating.append, series=series, micros_per_unit_hour=1_000_000 + turn, at=at),
            partial(charging.charge_due, at=at + timedelta(milliseconds=turn)),
            partial(charging.charge_due, at=at + 2 * timedelta(milliseconds=turn)),
            partial(usage.stop, resource_id=f"ins_{turn % 3}", at=at),
            partial(start, organizations[turn % 3], price_version=series, resource_id=f"new_{turn}", at=at),
        )
        assert outcomes == ["done"] * 5
        assert books.check(at=at + timedelta(seconds=1)) == []
    assert Charge.objects.filter(amount_micros__gt=0).count() > 5
