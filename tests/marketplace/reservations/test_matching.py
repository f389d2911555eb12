"""Filling orders is exact: beside every other way to fill a small book, none is cheaper."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace import matching
from marketplace.matching import OFFER, Short, Supply

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

supplies = st.lists(
    st.builds(Supply, source=st.integers(0, 4), price_micros=st.integers(1, 9), gpus=st.integers(1, 4)),
    max_size=4,
    unique_by=lambda supply: supply.source,
)
books = st.lists(supplies, min_size=1, max_size=3)


def cheapest_of_all_ways(supply: list[Supply], gpus: int) -> int | None:
    """Return the least that any way to take so many GPUs costs, by trying them all."""
    ways = product(*(range(one.gpus + 1) for one in supply))
    costs = [
        sum(count * one.price_micros for count, one in zip(way, supply, strict=True))
        for way in ways
        if sum(way) == gpus
    ]
    return min(costs, default=None)


@given(book=books, gpus=st.integers(1, 8))
def test_no_other_way_to_fill_an_order_is_cheaper(book: list[list[Supply]], gpus: int) -> None:
    supply = {NOON + number * HOUR: hour for number, hour in enumerate(book)}
    least = [cheapest_of_all_ways(hour, gpus) for hour in book]
    assert [matching.cost_micros(hour, gpus) for hour in book] == least
    window = {"starts_at": NOON, "ends_at": NOON + len(book) * HOUR}
    if None in least:
        with pytest.raises(Short) as short:
            matching.fill(supply, gpus=gpus, **window)  # type: ignore[arg-type]
        assert short.value.hour == NOON + least.index(None) * HOUR
        return
    legs = matching.fill(supply, gpus=gpus, **window)  # type: ignore[arg-type]
    assert sum(leg.amount_micros for leg in legs) == sum(cost for cost in least if cost is not None)
    for number, hour in enumerate(book):
        at = NOON + number * HOUR
        here = [leg for leg in legs if leg.starts_at <= at < leg.ends_at]
        assert sum(leg.gpus for leg in here) == gpus
        for leg in here:
            assert any(one.source == leg.source and one.price_micros == leg.price_micros and leg.gpus <= one.gpus
                       for one in hour)  # fmt: skip


@given(hour=supplies, gpus=st.integers(1, 8))
def test_what_is_taken_first_is_cheaper_or_came_first(hour: list[Supply], gpus: int) -> None:
    """No source is left waiting while one behind it in the order of price and time is taken."""
    try:
        legs = matching.fill({NOON: hour}, starts_at=NOON, ends_at=NOON + HOUR, gpus=gpus)
    except Short:
        return
    taken = {leg.source: leg.gpus for leg in legs}
    order = matching.in_turn(hour)
    for before, after in pairwise(order):
        assert not taken.get(after.source) or taken[before.source] == before.gpus
    assert [(one.price_micros, one.source == OFFER) for one in order] == sorted(
        (one.price_micros, one.source == OFFER) for one in hour
    )


@given(costs=st.lists(st.none() | st.integers(0, 9), max_size=12), hours=st.integers(1, 5))
def test_the_cheapest_start_is_the_cheapest_and_then_the_earliest(costs: list[int | None], hours: int) -> None:
    runs = [(n, costs[n : n + hours]) for n in range(len(costs) - hours + 1)]
    whole = [(sum(cost for cost in run if cost is not None), n) for n, run in runs if None not in run]
    best = min(whole, default=None)
    assert matching.cheapest_start(costs, hours=hours) == ((best[1], best[0]) if best else None)


intervals = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 5)).map(lambda pair: (pair[0], sum(pair))), max_size=12
)


@given(reserved=intervals)
def test_where_no_hour_exceeds_the_capacity_first_fit_gives_everybody_one_unchanging_node(
    reserved: list[tuple[int, int]],
) -> None:
    """Why counts suffice: each reservation of a node keeps one node, though nobody chose it before its start."""
    capacity = max((sum(first <= hour < last for first, last in reserved) for hour in range(15)), default=0)
    busy_until = [0] * capacity
    for first, last in sorted(reserved):
        node = next((number for number, until in enumerate(busy_until) if until <= first), None)
        assert node is not None
        busy_until[node] = last
