"""The auction as a pure function: its rules, its closed forms, and its book."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace import auction
from marketplace.auction import Bid, Outcome, Rules

UNIT = 1_000_000


def rules(**overrides: int | str | None) -> Rules:
    ordinary = {
        "offer": "ofr_1", "tick": "2026-11-26T12:00:00Z", "currency": "USD", "capacity_gpus": 8,
        "reserve_micros": 500_000, "hysteresis_bp": 1000, "rise_bp": 2000, "last_charged_micros": None,
    }  # fmt: skip
    return Rules(**{**ordinary, **overrides})  # type: ignore[arg-type]


def bid(name: str, gpus: int, price: int, *, runs: bool = False, placed: int = 0) -> Bid:
    return Bid(name, gpus, price, runs, placed)


def test_losers_set_the_price_of_the_winners() -> None:
    found = auction.clear(rules(), [bid("a", 4, 900_000), bid("b", 4, 800_000), bid("c", 2, 700_000)])
    assert (found.winners, found.price_micros) == (("a", "b"), 700_000)
    assert (found.demanded_gpus, found.allocated_gpus, found.demand) == (
        10, 8, ((900_000, 4), (800_000, 8), (700_000, 10)),
    )  # fmt: skip


def test_without_a_loser_everybody_pays_the_reserve() -> None:
    assert auction.clear(rules(), [bid("a", 8, 900_000)]).price_micros == 500_000
    assert auction.clear(rules(), []).price_micros == 500_000


def test_a_bid_that_lost_for_its_size_alone_cannot_make_a_winner_pay_more_than_it_bid() -> None:
    found = auction.clear(rules(), [bid("gang", 16, 2_000_000), bid("small", 2, 600_000)])
    assert (found.winners, found.price_micros, found.passed_over) == (("small",), 600_000, 1)


def test_whoever_runs_stays_until_outbid_by_more_than_the_hysteresis() -> None:
    runs = bid("runs", 8, 600_000, runs=True)
    assert auction.clear(rules(), [runs, bid("new", 8, 660_000)]).winners == ("runs",)
    assert auction.clear(rules(), [runs, bid("new", 8, 660_001)]).winners == ("new",)


def test_ties_go_to_the_first_and_then_to_the_lower_id() -> None:
    bids = [bid("b", 8, 600_000, placed=1), bid("a", 8, 600_000, placed=2), bid("c", 8, 600_000, placed=1)]
    assert auction.clear(rules(), bids).winners == ("b",)


def test_what_is_charged_rises_slowly_and_falls_at_once() -> None:
    busy = [bid("a", 8, 2_000_000), bid("b", 8, 1_900_000)]
    found = auction.clear(rules(last_charged_micros=1_000_000), busy)
    assert (found.price_micros, found.charged_micros) == (1_900_000, 1_200_000)
    assert auction.clear(rules(last_charged_micros=1_000_000), []).charged_micros == 500_000
    assert auction.clear(rules(reserve_micros=1, last_charged_micros=1, rise_bp=1), busy).charged_micros == 2


def test_what_an_organization_bids_beyond_the_cap_loses_and_raises_nobodys_price() -> None:
    theirs = [bid(f"a{n}", 2, 900_000 - n)._replace(owner="org_a") for n in range(4)]
    other = bid("b", 2, 600_000)._replace(owner="org_b")
    found = auction.clear(rules(cap_bp=5000), [*theirs, other])
    assert (found.winners, found.price_micros, found.capped) == (("a0", "a1", "b"), 500_000, 2)
    assert auction.clear(rules(cap_bp=1), [theirs[0], bid("one", 1, 600_000)]).winners == ("one",)
    free = auction.clear(rules(), [*theirs, other])
    assert (free.winners, free.price_micros, free.capped) == (("a0", "a1", "a2", "a3"), 600_000, None)


def test_without_a_cap_the_book_and_what_is_published_say_what_they_said_before_there_were_caps() -> None:
    bids = [bid("a", 4, 900_000)._replace(owner="org_a")]
    assert auction.book(rules(), bids) == (
        b'{"capacity_gpus":8,"currency":"USD","curve_bids_min":1,"hysteresis_bp":1000,"last_charged_micros":null,'
        b'"offer":"ofr_1","reserve_micros":500000,"rise_bp":2000,"tick":"2026-11-26T12:00:00Z"}\na 4 900000 0 0\n'
    )
    published = auction.clear(rules(), bids).published()
    assert b"capped" not in published
    assert auction.replay(auction.book(rules(), bids)).published() == published
    assert auction.book(rules(cap_bp=5000), bids).endswith(b"a 4 900000 0 0 org_a\n")


books = st.tuples(
    st.builds(
        rules,
        capacity_gpus=st.integers(0, 40),
        reserve_micros=st.integers(1, 60),
        hysteresis_bp=st.integers(0, 5000),
        rise_bp=st.integers(1, 10_000),
        last_charged_micros=st.none() | st.integers(1, 100),
        cap_bp=st.sampled_from([0, 1, 3000, 6000, 10_000]),
    ),
    st.lists(
        st.tuples(
            st.integers(1, 20), st.integers(1, 100), st.booleans(), st.integers(0, 3),
            st.sampled_from(["org_a", "org_b", "org_c"]),
        ),
        max_size=25,
    ).map(lambda rows: [Bid(f"bid_{n:02}", *row) for n, row in enumerate(rows)]),
)  # fmt: skip


def won_by(bids: list[Bid]) -> dict[str, int]:
    """How many GPUs the bids of each organization have."""
    found: dict[str, int] = {}
    for one in bids:
        found[one.owner] = found.get(one.owner, 0) + one.gpus
    return found


@given(books, st.randoms())
def test_every_auction_keeps_its_promises(market: tuple[Rules, list[Bid]], rng: random.Random) -> None:
    held, bids = market
    found = auction.clear(held, bids)
    won = [one for one in bids if one.id in found.winners]
    lost = [one for one in bids if one.id not in found.winners and one.price_micros >= held.reserve_micros]
    assert sum(one.gpus for one in won) == found.allocated_gpus <= held.capacity_gpus
    assert all(one.price_micros >= found.price_micros >= held.reserve_micros for one in won)
    assert found.price_micros in {held.reserve_micros, *(one.price_micros for one in lost)} | {
        min((one.price_micros for one in won), default=held.reserve_micros)
    }
    assert held.reserve_micros <= found.charged_micros
    assert found.charged_micros <= found.price_micros
    # Nobody wins more than the cap, and nobody lost who would have fitted: what is left of the GPUs, or of the share of
    # its organization, is too small for each loser that ranks behind all winners.
    most, theirs = held.cap_gpus or held.capacity_gpus, won_by(won)
    assert max(theirs.values(), default=0) <= most
    left = held.capacity_gpus - found.allocated_gpus
    assert all(one.gpus > min(left, most - theirs.get(one.owner, 0)) for one in lost)
    # What lost for the cap alone sets no price.
    assert (found.capped is None) == (held.cap_bp == 0)
    if found.capped == len(lost):
        assert found.price_micros == held.reserve_micros
    shuffled = rng.sample(bids, len(bids))
    assert auction.clear(held, shuffled) == found
    assert auction.book(held, shuffled) == auction.book(held, bids)
    assert auction.replay(auction.book(held, bids)).published() == found.published()


@given(books, st.integers(1, 99))
def test_bidding_more_never_turns_a_winner_into_a_loser(market: tuple[Rules, list[Bid]], more: int) -> None:
    held, bids = market
    for name in auction.clear(held, bids).winners:
        raised = [one._replace(price_micros=one.price_micros + more) if one.id == name else one for one in bids]
        assert name in auction.clear(held, raised).winners


def mean(n: int, m: int, reserve: int, of: Callable[[Outcome], int], *, times: int = 20_000) -> float:
    rng = random.Random(4)
    held = rules(capacity_gpus=m, reserve_micros=max(1, reserve), hysteresis_bp=0)
    total = 0
    for _ in range(times):
        bids = [bid(f"{k}", 1, rng.randrange(1, UNIT), placed=k) for k in range(n)]
        total += of(auction.clear(held, bids))
    return total / times / UNIT


@pytest.mark.parametrize(("n", "m"), [(10, 3), (16, 6), (4, 3)])
def test_the_mean_price_of_n_unit_bidders_for_m_units_is_the_closed_form(n: int, m: int) -> None:
    """Bids are uniform on [0, 1], so the price is the (m+1)-th highest of n: (n - m) / (n + 1) in the mean."""
    assert mean(n, m, 0, lambda found: found.price_micros) == pytest.approx((n - m) / (n + 1), abs=0.004)


@pytest.mark.parametrize(("reserve", "revenue"), [(0, 1 / 3), (UNIT // 2, 5 / 12)])
def test_the_reserve_earns_what_myerson_says(reserve: int, revenue: float) -> None:
    """Two bidders, one unit: 1/3 without a reserve, 5/12 with the best one, 1/2 (Myerson 1981)."""
    earned = mean(2, 1, reserve, lambda found: found.price_micros * len(found.winners), times=40_000)
    assert earned == pytest.approx(revenue, abs=0.005)


def test_a_unit_bidder_gains_nothing_by_bidding_anything_but_what_it_is_worth() -> None:
    rng = random.Random(7)
    held = rules(capacity_gpus=2, reserve_micros=1, hysteresis_bp=0)
    for _ in range(2000):
        others = [bid(f"o{k}", 1, rng.randrange(1, 100)) for k in range(4)]
        worth, lie = rng.randrange(1, 100), rng.randrange(1, 100)

        def gain(price: int, others: list[Bid] = others, worth: int = worth) -> int:
            found = auction.clear(held, [*others, bid("me", 1, price)])
            return worth - found.price_micros if "me" in found.winners else 0

        assert gain(worth) >= gain(lie)


def test_the_curve_is_short_however_many_prices_are_bid() -> None:
    found = auction.clear(rules(), [bid(f"{n}", 1, 500_000 + n) for n in range(1234)])
    assert len(found.demand) <= auction.CURVE_STEPS_MAX
    assert found.demand[0] == (501_233, 1)
    assert found.demand[-1] == (500_000, 1234)


@given(books)
def test_no_step_of_the_curve_shows_what_fewer_than_three_bids_ask_for(market: tuple[Rules, list[Bid]]) -> None:
    held, bids = market
    found = auction.clear(replace(held, curve_bids_min=auction.CURVE_BIDS_MIN), bids)
    prices = [bid.price_micros for bid in bids if bid.price_micros >= held.reserve_micros]
    above = 0
    for price, gpus in found.demand:
        assert gpus == sum(bid.gpus for bid in bids if bid.price_micros >= price)
        within = sum(one >= price for one in prices)
        assert within - above >= 3
        above = within
    assert above in {len(prices), 0}
    assert bool(found.demand) == (len(prices) >= 3)
    assert found.demanded_gpus == sum(bid.gpus for bid in bids if bid.price_micros >= held.reserve_micros)


def test_a_book_from_before_steps_held_several_bids_gives_again_what_was_published() -> None:
    old = auction.book(rules(), [bid("a", 4, 900_000), bid("b", 4, 800_000)])
    old = old.replace(b'"curve_bids_min":1,', b"")
    assert b"curve" not in old
    assert auction.replay(old).demand == ((900_000, 4), (800_000, 8))
