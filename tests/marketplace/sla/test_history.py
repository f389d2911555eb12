"""What of an instance's life counts: when it should have run, and when a fault of ours kept it from that."""

from datetime import UTC, datetime, timedelta

import pytest

from marketplace.sla.history import Move, told

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DAY = timedelta(hours=24)


def at(minutes):
    return NOON + timedelta(minutes=minutes)


def walk(*moves, until=100):
    """Return the minutes in which it should have run, and those in which it was down."""
    found = told(
        [Move(at(when), phase, reason) for when, phase, reason in moves], until=at(until), failed_counts_for=DAY
    )
    return [
        [((a - NOON).total_seconds() / 60, (b - NOON).total_seconds() / 60) for a, b in each]
        for each in (found.expected, found.down)
    ]


START = ((0, "placing", ""), (1, "provisioning", ""), (2, "verifying", ""), (3, "running", ""))


def test_what_runs_should_run():
    assert walk(*START) == [[(3, 100)], []]


@pytest.mark.parametrize("reason", ["user", "exited", "no_funds", "operator"])
def test_what_its_customer_stopped_is_not_down(reason):
    assert walk(*START, (50, "stopping", reason), (51, "stopped", reason)) == [[(3, 50)], []]


@pytest.mark.parametrize("reason", ["gpu_fault", "node_lost", "node_failed", "timed_out", "internal"])
def test_what_failed_by_our_fault_is_down_until_it_runs_again(reason):
    life = (*START, (50, "failed", reason), (55, "queued", ""), (56, "placing", ""), (60, "running", ""))
    assert walk(*life) == [[(3, 50), (60, 100)], [(50, 55), (55, 56), (56, 60)]]


def test_what_failed_counts_no_longer_than_a_day_when_nobody_starts_it():
    assert walk(*START, (50, "failed", "gpu_fault"), until=9000)[1] == [(50, 50 + 24 * 60)]


def test_what_was_down_and_found_no_room_is_still_down():
    life = (*START, (50, "failed", "node_lost"), (51, "queued", ""), (81, "failed", "no_capacity"))
    assert walk(*life)[1] == [(50, 51), (51, 81), (81, 100)]


def test_what_never_ran_is_not_down():
    assert walk((0, "placing", ""), (1, "provisioning", ""), (9, "failed", "node_failed")) == [[], []]


@pytest.mark.parametrize("reason", ["outbid", "capacity", "maintenance", "owner_recall"])
def test_an_announced_interruption_is_not_down(reason):
    life = ((30, "notified", reason), (40, "draining", reason), (41, "interrupted", reason), (60, "queued", ""))
    assert walk(*START, *life) == [[(3, 30), (30, 40)], []]


def test_a_fault_while_it_was_told_of_its_end_is_down():
    assert walk(*START, (30, "notified", "maintenance"), (35, "failed", "gpu_fault"))[1] == [(35, 100)]


def test_what_is_terminated_while_it_is_down_is_over():
    assert walk(*START, (50, "failed", "gpu_fault"), (55, "terminating", "user"))[1] == [(50, 55)]
