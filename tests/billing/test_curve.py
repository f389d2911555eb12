"""Guaranteed performance: recorded curves with faults injected against the closed form, to the micro."""

from datetime import timedelta
from fractions import Fraction
from math import floor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.outcomes import curve
from billing.outcomes.curve import Curve, Hour
from tests.billing.makers import HOUR, NOON

STEPS = ((10_000, 500), (9_500, 2_500), (8_000, 10_000))
THROUGHPUT = Curve("throughput", 2_500_000, STEPS)  # 2,500 tokens a second
HOUR_MS = 3_600_000
PAID = 19_999_999


def hour(increase_milli, *, up_ms=HOUR_MS, number=0, **overrides):
    begins = NOON + number * HOUR
    facts = {"up_ms": up_ms, "read_ms": up_ms, "increase_milli": increase_milli, "paid_micros": PAID} | overrides
    return Hour(begins, begins + HOUR, **facts)


def recorded(seed, hours):
    """A throughput curve, a reading each 15 seconds, never below its floor: what a healthy workload looks like."""
    random = Random(seed)
    for _ in range(hours):
        yield [15 * (2_500_000 + random.randrange(0, 400_000)) for _ in range(240)]


def by_hand(readings, *, paid=PAID):
    """The closed form in fractions, which shares nothing with the code: rate over floor, its step, half up."""
    rate = Fraction(sum(readings), 3600)
    share = rate / 2_500_000
    credit = Fraction(0)
    for below, bps in STEPS:
        if floor(share * 10_000) < below:
            credit = max(credit, Fraction(bps, 10_000))
    return floor(paid * credit + Fraction(1, 2))


def test_ten_thousand_healthy_hours_give_nothing():
    verdicts = [curve.judge(hour(sum(readings)), THROUGHPUT) for readings in recorded(1, 10_000)]
    assert {(one.credit_bps, one.credit_micros) for one in verdicts} == {(0, 0)}
    assert all(one.achieved_bps >= 10_000 for one in verdicts)


@pytest.mark.parametrize("fault", ["stall", "throttle", "brief"])
def test_faults_in_recorded_curves_credit_exactly_the_closed_form(fault):
    random = Random(7)
    credited = 0
    for readings in recorded(2, 300):
        begin = random.randrange(0, 240)
        length, left = {"stall": (60, 0), "throttle": (200, 70), "brief": (6, 50)}[fault]
        faulty = [each * left // 100 if begin <= n < begin + length else each for n, each in enumerate(readings)]
        verdict = curve.judge(hour(sum(faulty)), THROUGHPUT)
        assert verdict.credit_micros == by_hand(faulty)
        credited += verdict.credit_micros > 0
    assert credited or fault == "brief"


@given(
    increase=st.integers(0, 12_000_000_000),
    up=st.integers(0, HOUR_MS),
    down=st.integers(0, HOUR_MS),
    degraded=st.integers(0, HOUR_MS),
    paid=st.integers(0, 10**12),
    returned=st.integers(0, 10**12),
    metric=st.sampled_from(["throughput", "availability", "gpu_health"]),
    cap=st.integers(1, 10_000),
)
def test_a_credit_follows_from_its_evidence_alone_and_never_passes_what_was_paid(
    increase, up, down, degraded, paid, returned, metric, cap
):
    degraded = min(degraded, up)
    floor_milli = 2_500_000 if metric == "throughput" else 99_500
    one = Curve(metric, floor_milli, STEPS, cap)
    seen = hour(increase, up_ms=up, down_ms=down, degraded_ms=degraded, paid_micros=paid, returned_micros=returned)
    assert Hour.read(seen.as_json()) == seen
    verdict = curve.judge(seen, one)
    assert 0 <= verdict.credit_micros <= max(0, paid - returned)
    assert verdict.credit_bps <= cap
    if up + down < 60_000:
        assert verdict == curve.Verdict(None, None, 0, 0)
        return
    good = {"throughput": Fraction(increase * 1000), "availability": Fraction(up * 100_000),
            "gpu_health": Fraction((up - degraded) * 100_000)}[metric]  # fmt: skip
    share = floor(good / (up + down) / floor_milli * 10_000)
    bps = min(cap, max((credit for below, credit in STEPS if share < below), default=0))
    assert (verdict.achieved_bps, verdict.credit_bps) == (share, bps)
    assert verdict.credit_micros == min(max(0, paid - returned), floor(Fraction(paid * bps, 10_000) + Fraction(1, 2)))


def test_what_nobody_read_and_what_hardly_ran_is_not_judged():
    assert curve.judge(hour(None), THROUGHPUT).achieved_bps is None
    assert curve.judge(hour(0, up_ms=59_999), THROUGHPUT).achieved_bps is None
    assert curve.judge(hour(0, up_ms=60_000), THROUGHPUT).credit_micros == PAID
    down = Hour(NOON, NOON + timedelta(hours=1), up_ms=0, down_ms=HOUR_MS, increase_milli=None, paid_micros=0)
    assert curve.judge(down, Curve("availability", 99_500, STEPS)).credit_bps == 10_000


def test_at_the_very_floor_nothing_is_credited_and_a_thousandth_below_it_the_first_step_is():
    at_floor = 2_500_000 * 3600
    assert curve.judge(hour(at_floor), THROUGHPUT).credit_bps == 0
    assert curve.judge(hour(at_floor - 1), THROUGHPUT).credit_bps == 500
