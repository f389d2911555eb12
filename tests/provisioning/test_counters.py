"""Counters of workloads: what goes backwards, jumps, comes twice or late; and that hours add up to the whole."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioning import counters
from provisioning.models import Assignment, CounterSample, Instance, Node
from provisioning.work import Counters, Work
from tests.conftest import Fleet, Rent, Run

pytestmark = pytest.mark.django_db

NAME = "tokens_total"
NOON = timezone.now().replace(minute=0, second=0, microsecond=0)
STEP = timedelta(seconds=15)


@pytest.fixture
def counting(rent: Rent, run_until_idle: Run) -> Instance:
    """An instance whose counter may grow by a hundred in a second."""
    rent(work=Work(counters=Counters(port=9000, names=(NAME,), most_per_s=100)))
    run_until_idle()
    return Instance.objects.get()


def reads(instance: Instance, at: datetime, value: Any, *, fence: int | None = None, name: str = NAME) -> None:
    row = Assignment.objects.select_related("node").get(instance=instance)
    sample = {"assignment": row.public_id, "fence": row.fence if fence is None else fence, "values": {name: value}}
    counters.take(row.node, at, {"samples": [sample]})


def grown(instance: Instance, since: datetime = NOON - STEP, until: datetime = NOON + timedelta(hours=1)) -> int:
    return counters.increase(instance, NAME, since=since, until=until)


def test_a_counter_grows_from_its_first_reading_on(counting: Instance) -> None:
    assert counters.seen_until(counting, NAME) is None
    for number, value in enumerate([1_000_000, 1_000_300, 1_000_450]):
        reads(counting, NOON + number * STEP, value)
    assert grown(counting) == 450
    assert grown(counting, NOON, NOON + STEP) == 300
    assert grown(counting, NOON + STEP / 3, NOON + STEP) == 200
    assert counters.seen_until(counting, NAME) == NOON + 2 * STEP
    assert [one.increase for one in counters.samples(counting, NAME, since=NOON, until=NOON + 2 * STEP)] == [300, 150]


def test_what_is_read_twice_or_comes_late_counts_once(counting: Instance) -> None:
    for at, value in [(NOON, 0), (NOON + 2 * STEP, 90), (NOON + 2 * STEP, 95), (NOON + STEP, 80), (NOON, 0)]:
        reads(counting, at, value)
    assert grown(counting) == 90
    assert CounterSample.objects.count() == 2


def test_a_counter_that_goes_backwards_has_begun_anew(counting: Instance) -> None:
    for number, value in enumerate([500, 700, 40, 60]):
        reads(counting, NOON + number * STEP, value)
    assert grown(counting) == 200 + 40 + 20
    assert list(CounterSample.objects.order_by("at").values_list("note", flat=True)) == ["first", "", "reset", ""]


def test_a_jump_counts_nothing_and_what_comes_after_it_counts(counting: Instance) -> None:
    for number, value in enumerate([0, 1500, 10**9, 10**9 + 10, 5000, 5100]):
        reads(counting, NOON + number * STEP, value)
    assert grown(counting) == 1500 + 10 + 100
    notes = CounterSample.objects.order_by("at").values_list("note", flat=True)
    assert list(notes) == ["first", "", "jump", "", "jump", ""]


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "9", 2**53 + 1, [1]])
def test_what_is_no_count_is_not_kept(counting: Instance, value: Any) -> None:
    reads(counting, NOON, value)
    assert not CounterSample.objects.exists()


def test_only_the_counters_of_a_nodes_own_run_and_of_its_order_are_kept(counting: Instance, fleet: Fleet) -> None:
    row = Assignment.objects.get(instance=counting)
    reads(counting, NOON, 5, fence=9)
    reads(counting, NOON, 5, name="other_total")
    other = Node.objects.exclude(pk=row.node_id).first()
    assert other is not None
    sample = {"assignment": row.public_id, "fence": row.fence, "values": {NAME: 5}}
    counters.take(other, NOON, {"samples": [sample]})
    for body in [{}, {"samples": 1}, {"samples": [1, {}]}, {"samples": [sample | {"values": 3}]}]:
        counters.take(Node.objects.get(pk=row.node_id), NOON, body)
    assert not CounterSample.objects.exists()


def test_a_node_tells_of_counters_in_its_journal(counting: Instance, fleet: Fleet, run_until_idle: Run) -> None:
    row = Assignment.objects.select_related("node").get(instance=counting)
    node = fleet.nodes[row.node.name]
    assert node.desired[row.public_id]["work"]["counters"]["port"] == 9000
    for value, ago_ms in [(10, 20_000), (25, 5_000)]:
        sample = {"assignment": row.public_id, "fence": row.fence, "values": {NAME: value}}
        node.tell("counters", ago_ms=ago_ms, samples=[sample])
    run_until_idle()
    now = timezone.now()
    assert counters.increase(counting, NAME, since=now - timedelta(minutes=1), until=now) == 15


@given(
    values=st.lists(st.integers(0, 3000), min_size=2, max_size=12),
    pauses=st.lists(st.integers(1, 40_000), min_size=12, max_size=12),
    cuts=st.lists(st.integers(0, 300_000), max_size=5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_times_that_follow_each_other_add_up_to_the_whole(
    counting: Instance, values: list[int], pauses: list[int], cuts: list[int]
) -> None:
    with transaction.atomic():
        at = NOON
        for value, pause_ms in zip(values, pauses, strict=False):
            at += timedelta(milliseconds=pause_ms)
            reads(counting, at, value)
        kept = sum(CounterSample.objects.values_list("increase", flat=True))
        moments = [
            NOON,
            *sorted(NOON + timedelta(milliseconds=cut) for cut in cuts if NOON + timedelta(milliseconds=cut) < at),
            at,
        ]
        parts = [grown(counting, *pair) for pair in pairwise(moments)]
        assert sum(parts) == kept
        assert min(parts) >= 0
        transaction.set_rollback(True)


def test_old_readings_are_forgotten(counting: Instance) -> None:
    reads(counting, NOON - timedelta(days=101), 1)
    reads(counting, NOON, 2)
    assert counters.forget(at=NOON, limit=10) == 1
    assert CounterSample.objects.count() == 1


def test_a_run_counts_from_nothing_and_what_grew_too_fast_counts_nothing(counting: Instance) -> None:
    """Whatever the order of the instance says: the bound is of whoever asks."""
    Instance.objects.update(counters={"port": 9000, "names": [NAME], "most_per_s": 0})
    counting.refresh_from_db()
    began = NOON - timedelta(seconds=5)
    assert counters.counted(counting, NAME, since=began, most_per_s=100) == []
    for number, value in enumerate([400, 1400, 10**9, 10**9 + 50]):
        reads(counting, NOON + number * STEP, value)
    (one,) = counters.counted(counting, NAME, since=began, most_per_s=100)
    assert (one.first, one.last, one.readings, one.units) == (400, 10**9 + 50, 4, 400 + 1000 + 50)
    (free,) = counters.counted(counting, NAME, since=began, most_per_s=0)
    assert free.units == 10**9 + 50
    (late,) = counters.counted(counting, NAME, since=NOON, most_per_s=100)
    assert late.units == 1000 + 50, "a first reading that is too high to be true counts nothing either"
