"""The breaker: never more than 2 % of a pool in ten minutes, and silence of many is our own network."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from provisioning import nodes
from provisioning.health import breaker
from provisioning.models import Breaker

IS_OUR_FAULT = nodes.is_our_fault
START = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.mark.parametrize(("pool", "most"), [(0, 1), (1, 1), (99, 1), (100, 2), (149, 2), (150, 3), (37_504, 750)])
def test_two_percent_and_at_least_one(pool: int, most: int) -> None:
    assert breaker.nodes_max(pool) == most


@pytest.mark.parametrize(
    ("silent", "fleet", "is_ours"),
    [(2, 3, False), (3, 3, True), (3, 600, False), (3, 599, True), (187, 37_504, False), (188, 37_504, True)],
)
def test_more_than_half_a_percent_and_at_least_three(silent: int, fleet: int, is_ours: bool) -> None:
    assert breaker.is_our_network(silent=silent, fleet=fleet) is is_ours


@given(
    pool=st.integers(1, 400),
    asked=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1800)), max_size=80),
)
def test_in_no_ten_minutes_are_more_nodes_acted_on_than_allowed(pool: int, asked: list[tuple[int, int]]) -> None:
    admitted: list[tuple[int, datetime]] = []
    for node, seconds in sorted(asked, key=lambda one: one[1]):
        at = START + timedelta(seconds=seconds)
        acted_on = {who for who, when in admitted if when > at - breaker.WINDOW}
        if breaker.admits(node, acted_on=acted_on, pool=pool):
            admitted.append((node, at))
    for _, end in admitted:
        window = {who for who, when in admitted if end - breaker.WINDOW < when <= end}
        assert len(window) <= max(1, pool * 2 // 100)


def nodes_of(fleet: Any) -> list[Any]:
    return [fleet.nodes[name].node for name in ("h200-1", "h200-2")]


def test_the_second_node_of_a_small_pool_opens_it_and_a_manager_closes_it(fleet: Any) -> None:
    first, second = nodes_of(fleet)
    at = timezone.now()
    assert breaker.admit(node=first, at=at)
    assert breaker.admit(node=first, at=at + timedelta(minutes=1)), "the same node again"
    assert not breaker.admit(node=second, at=at + timedelta(minutes=2))
    opened = Breaker.objects.get(offer=fleet.h200)
    assert opened.opened_at is not None
    assert "1 of 2 nodes" in opened.reason
    assert not breaker.admit(node=first, at=at + timedelta(hours=1)), "open until somebody closes it"
    assert breaker.admit(node=fleet.nodes["l40s-1"].node, at=at), "another pool goes on"
    breaker.close(breaker=opened, at=at + timedelta(minutes=3))
    assert breaker.admit(node=second, at=at + timedelta(minutes=4))


def test_after_ten_minutes_the_next_node_may_be_acted_on(fleet: Any) -> None:
    first, second = nodes_of(fleet)
    at = timezone.now()
    assert breaker.admit(node=first, at=at)
    assert breaker.admit(node=second, at=at + breaker.WINDOW)


def test_three_that_fall_silent_within_a_minute_stop_everything(fleet: Any) -> None:
    one, two, three = (played.node for played in fleet.nodes.values())
    at = timezone.now()
    assert not breaker.note_silence(node_ids=[one.pk, two.pk], at=at)
    assert not breaker.note_silence(node_ids=[two.pk], at=at + timedelta(seconds=10)), "the same one again"
    assert not breaker.note_silence(node_ids=[three.pk], at=at + timedelta(seconds=90)), "not within a minute"
    assert breaker.note_silence(node_ids=[one.pk, two.pk], at=at + timedelta(seconds=100))
    assert breaker.is_open()
    assert not breaker.admit(node=one, at=at + timedelta(seconds=101))
    breaker.close(breaker=Breaker.objects.get(offer=None), at=at + timedelta(seconds=110))
    assert breaker.admit(node=one, at=at + timedelta(seconds=111))


def test_old_marks_are_forgotten(fleet: Any) -> None:
    first, _ = nodes_of(fleet)
    at = timezone.now()
    breaker.admit(node=first, at=at - timedelta(days=2))
    assert breaker.purge(at=at) == 1


def test_where_so_many_fall_silent_nobody_is_given_up_until_a_manager_closes_it(
    fleet: Any, running: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(nodes, "is_our_fault", IS_OUR_FAULT)
    at = timezone.now() + timedelta(hours=1)
    nodes.notice_silence(at=at, limit=100)
    assert breaker.is_open()
    nodes.notice_silence(at=at + timedelta(seconds=5), limit=100)
    running.refresh_from_db()
    assert (running.phase, running.health) == ("running", "unreachable")
    assert running.assignments.get().observed == "running"
    breaker.close(breaker=Breaker.objects.get(offer=None), at=at + timedelta(seconds=10))
    nodes.notice_silence(at=at + timedelta(seconds=15), limit=100)
    assert running.assignments.get().observed == "gone"
