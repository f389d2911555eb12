"""Tiers and commitments as arithmetic: any split gives the same total, more use never costs less, nothing is lost."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import tiers
from billing.errors import BadTiers
from billing.rating import MILLISECONDS_PER_HOUR, rounded_micros
from billing.tiers import Promise, Terms, Use

HOUR = MILLISECONDS_PER_HOUR
MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 7)]
GRADUATED = Terms("graduated", 2_500_000, ((0, 2_500_000), (100, 2_000_000), (1000, 1_500_000)))
VOLUME = Terms("volume", 10_000_000, ((0, 10_000_000), (15, 5_000_000)))

prices = st.integers(1, 10**9)
quantities = st.integers(0, 10**12)


@st.composite
def terms(draw, model=None):
    model = model or draw(st.sampled_from(["flat", "graduated", "volume"]))
    starts = sorted(draw(st.sets(st.integers(1, 10**5), max_size=5)))
    found = [(0, draw(prices)), *((start, draw(prices)) for start in starts)]
    if model == "flat":
        return Terms("flat", found[0][1])
    return Terms(model, found[0][1], tuple(found))


def use(unit_ms, said=GRADUATED, *, version=1, sku="a", month=0, is_over=False, base=0, since=0):
    return Use(
        price_version_id=version, sku=sku, effective_from=MONTHS[0] + timedelta(hours=since), terms=said,
        month=MONTHS[month], is_over=is_over, unit_ms=unit_ms, base_micros=base,
    )  # fmt: skip


def promise(size, *, is_spend=False, key=1, price=1_000_000, last=6, **overrides):
    size_micros = size if is_spend else rounded_micros(size * price)
    ordinary = {
        "key": key, "is_spend": is_spend, "size": size * HOUR if is_spend else size, "prices": {"a": price},
        "starts_at": MONTHS[0], "ends_at": datetime(2026, last + 1, 1, tzinfo=UTC), "committed_micros": size_micros,
    }  # fmt: skip
    return Promise(**(ordinary | overrides))


@given(terms(), st.lists(quantities, max_size=12))
def test_any_split_of_the_use_costs_the_same_as_all_at_once(said, parts):
    posted = total = 0
    for part in parts:
        total += part
        posted += rounded_micros(tiers.product(said, total)) - posted  # what each close posts
    assert posted == rounded_micros(tiers.product(said, sum(parts)))


@given(terms("graduated"), quantities, quantities)
def test_with_graduated_tiers_more_use_never_costs_less(said, less, more):
    less, more = sorted((less, more))
    assert tiers.product(said, less) <= tiers.product(said, more)


@given(terms("graduated"), quantities)
def test_graduated_tiers_cost_between_their_cheapest_and_their_dearest_hour(said, unit_ms):
    rates = [micros for _, micros in said.tiers]
    assert min(rates) * unit_ms <= tiers.product(said, unit_ms) <= max(rates) * unit_ms


@given(terms("graduated"), quantities)
def test_graduated_tiers_agree_with_a_walk_through_their_boundaries(said, unit_ms):
    total, bounds = 0, [*(hours * HOUR for hours, _ in said.tiers[1:]), None]
    at = 0
    for (_, micros), bound in zip(said.tiers, bounds, strict=True):
        upto = unit_ms if bound is None else min(bound, unit_ms)
        total += micros * max(0, upto - at)
        at = max(at, upto)
    assert tiers.product(said, unit_ms) == total


def test_a_volume_tier_turns_back_what_was_asked_before():
    at_fifteen = rounded_micros(tiers.product(VOLUME, 15 * HOUR))
    at_sixteen = rounded_micros(tiers.product(VOLUME, 16 * HOUR))
    assert (at_fifteen, at_sixteen) == (150_000_000, 80_000_000)  # OpenMeter's example: -150 and +80
    assert at_sixteen - at_fifteen == -70_000_000


def test_a_volume_tier_holds_up_to_and_including_its_end():
    assert tiers.product(VOLUME, 15 * HOUR) == 15 * HOUR * 10_000_000
    assert tiers.product(VOLUME, 15 * HOUR + 1) == (15 * HOUR + 1) * 5_000_000
    assert tiers.product(VOLUME, 0) == 0


@given(st.lists(st.integers(0, 10**9), max_size=8), st.integers(1, 10**9), st.booleans())
def test_a_commitment_is_never_drawn_below_zero_and_nothing_is_lost(uses, size, is_spend):
    one = promise(size, is_spend=is_spend)
    rated, drawn = tiers.rate([use(ms, month=n % 6, version=n) for n, ms in enumerate(uses)], [one])
    found = drawn[one.key]
    assert sum(each.covered_unit_ms for each in rated) == found.unit_ms
    assert sum(each.committed_micros for each in rated) == rounded_micros(found.product) <= one.committed_micros
    if not is_spend:
        assert found.unit_ms == min(size, sum(uses))
    for each in rated:
        assert 0 <= each.covered_unit_ms <= each.use.unit_ms
        overage = each.use.unit_ms - each.covered_unit_ms
        assert each.listed_micros == rounded_micros(tiers.product(GRADUATED, overage))


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6), st.integers(1, 10**9), st.booleans())
def test_a_commitment_that_is_read_again_in_a_later_month_goes_on_where_it_was(uses, size, is_spend):
    each = [use(ms, month=n, version=n) for n, ms in enumerate(uses)]
    whole, at_once = tiers.rate(each, [promise(size, is_spend=is_spend)])
    first, _ = tiers.rate(each[:1], [promise(size, is_spend=is_spend)])
    before = first[0].covered_unit_ms
    later, drawn = tiers.rate(
        each[1:], [promise(size, is_spend=is_spend, unit_ms_before=before, product_before=before * 1_000_000)]
    )
    assert [row.amount_micros for row in later] == [row.amount_micros for row in whole[1:]]
    assert (drawn[1].unit_ms, drawn[1].product) == (at_once[1].unit_ms, at_once[1].product)


def test_what_a_commitment_covers_counts_for_no_tier():
    (rated,), _ = tiers.rate([use(150 * HOUR)], [promise(60 * HOUR)])
    assert rated.covered_unit_ms == 60 * HOUR
    assert rated.committed_micros == 60 * 1_000_000
    assert rated.listed_micros == 90 * 2_500_000  # the first tier only


def test_a_commitment_covers_its_own_things_in_its_own_months():
    one = promise(10**9, last=1)
    rated, drawn = tiers.rate([use(HOUR), use(HOUR, month=1, version=2), use(HOUR, sku="b", version=3)], [one])
    assert [row.covered_unit_ms for row in rated] == [HOUR, 0, 0]
    assert drawn[1].unit_ms == HOUR


def test_a_minimum_is_asked_once_when_the_month_is_over():
    said = Terms("flat", 1_000_000, (), 100_000_000)
    running, _ = tiers.rate([use(HOUR, said)], [])
    assert running[0].minimum_micros == 0
    over, _ = tiers.rate([use(HOUR, said, is_over=True), use(2 * HOUR, said, version=2, since=5, is_over=True)], [])
    assert [row.minimum_micros for row in over] == [0, 97_000_000]
    unused, _ = tiers.rate([use(0, said, is_over=True)], [])
    assert unused[0].rated_micros == 0


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "count"),
        ([(0, None, 1)] * 21, "count"),
        ([(0, 10, 5), (20, None, 4)], "gap"),
        ([(5, None, 5)], "gap"),
        ([(0, 10, 5)], "gap"),
        ([(0, 10, 5), (9, None, 4)], "overlap"),
        ([(0, None, 5), (10, None, 4)], "overlap"),
        ([(0, 10, 5), (0, None, 4)], "overlap"),
        ([(0, 0, 5), (0, None, 4)], "order"),
        ([(0, None, 0)], "price"),
        ([(0, None, 10**16)], "price"),
    ],
)
def test_tiers_that_do_not_follow_each_other_are_refused(rows, problem):
    with pytest.raises(BadTiers) as refusal:
        tiers.tiers_of(rows)
    assert refusal.value.problem == problem


def test_tiers_are_kept_by_where_they_begin():
    assert tiers.tiers_of([(0, 10, 5), (10, None, 4)]) == [[0, 5], [10, 4]]
