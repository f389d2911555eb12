"""Exact, rounded once, and the same however often somebody looks."""

from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import rating
from tests.billing.makers import NOON

prices = st.integers(min_value=1, max_value=10**12)
uses = st.integers(min_value=0, max_value=10**15)


@given(price=prices, unit_ms=uses)
def test_an_amount_is_the_exact_product_rounded_half_up(price, unit_ms):
    exact = Fraction(price * unit_ms, 3_600_000)
    amount = rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=unit_ms)
    assert Fraction(-1, 2) < amount - exact <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("price", "unit_ms", "amount"),
    [(2_500_000, 3_600_000, 2_500_000), (1, 1_800_000, 1), (1, 1_799_999, 0), (3, 600_000, 1), (10**12, 0, 0)],
)
def test_halves_are_rounded_up(price, unit_ms, amount):
    assert rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=unit_ms) == amount


@given(price=prices, slices=st.lists(st.integers(min_value=0, max_value=10**10), max_size=30))
def test_charging_in_any_slices_takes_exactly_what_the_whole_costs(price, slices):
    used = charged = 0
    for unit_ms in slices:
        used += unit_ms
        due = rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=used) - charged
        assert due >= 0
        charged += due
    assert charged == rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=sum(slices))


@given(price=prices, unit_ms=uses, more_price=uses, more_ms=uses)
def test_more_use_or_a_higher_price_never_costs_less(price, unit_ms, more_price, more_ms):
    less = rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=unit_ms)
    assert rating.amount_micros(micros_per_unit_hour=price + more_price, unit_milliseconds=unit_ms + more_ms) >= less


@given(
    quantity=st.integers(min_value=1, max_value=300_000),
    start=st.integers(min_value=0, max_value=10**9),
    length=st.integers(min_value=-(10**6), max_value=10**12),
)
def test_use_is_quantity_times_whole_milliseconds_and_never_negative(quantity, start, length):
    begin = NOON + timedelta(milliseconds=start)
    end = begin + timedelta(milliseconds=length)
    assert rating.unit_milliseconds(quantity=quantity, start=begin, end=end) == quantity * max(0, length)


@given(at=st.datetimes())
def test_a_moment_belongs_to_the_millisecond_that_began_last(at):
    whole = rating.whole_millisecond(at)
    assert whole.microsecond % 1000 == 0
    assert timedelta(0) <= at - whole < timedelta(milliseconds=1)


@given(amount=uses, available=st.lists(st.integers(min_value=-(10**6), max_value=10**15), max_size=6))
def test_sources_are_emptied_in_their_order_and_nothing_is_lost(amount, available):
    shares, missing = rating.take_in_turn(amount, available)
    assert sum(shares) + missing == amount
    assert all(0 <= share <= max(0, there) for share, there in zip(shares, available, strict=True))
    last = max((n for n, share in enumerate(shares) if share), default=0)
    assert all(share == max(0, there) for share, there in zip(shares[:last], available[:last], strict=True))
    assert missing == max(0, amount - sum(max(0, there) for there in available))
