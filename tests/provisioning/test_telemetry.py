"""Readings over time: kept in sets, summed up in order and twice alike, and energy that a reset neither turns negative
nor doubles."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioning import partitions, rollups, telemetry
from provisioning.models import Gpu, Node, RollUp
from provisioning.protocol import Report
from provisioning.readings import readings
from tests.conftest import Fleet

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _own_partitions() -> Iterator[None]:
    """What a rolled back test made is not there any more; the process must not think so."""
    telemetry._prepared.clear()
    yield
    telemetry._prepared.clear()


@pytest.fixture
def node(fleet: Fleet) -> Node:
    return Node.objects.get(name="h200-1")


def report(node: Node, gpus: dict[str, dict[str, Any]], *, epoch: int = 1) -> tuple[int, Report]:
    """Return what a node would say of these GPUs: their meters by uuid."""
    energy = [
        {"uuid": uuid, "millijoules": one["millijoules"], "driver_epoch": epoch}
        for uuid, one in gpus.items()
        if "millijoules" in one
    ]
    meters = [{"uuid": uuid, **{name: value for name, value in one.items() if name != "millijoules"}}
              for uuid, one in gpus.items()]  # fmt: skip
    said = Report(
        node=node.public_id, key="", boot_id="", agent_epoch=1, seq=1, desired_seen=0, telemetry=meters, energy=energy
    )
    return node.pk, said


def samples(node: Node, *values: tuple[int, dict[str, Any]], epoch: int = 1, gpu: int = 0) -> None:
    """Record samples of one GPU, each so many seconds after noon."""
    for second, one in values:
        told = report(node, {f"GPU-{node.name}-{gpu}": one}, epoch=one.pop("epoch", epoch))
        telemetry.record([told], at=NOON + second * SECOND)


def rows(table: str, columns: str = "at, energy_mj") -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM {table} ORDER BY 1")
        return cursor.fetchall()


def catch_up(at: datetime = NOON + timedelta(hours=2, minutes=1)) -> None:
    for _ in range(8):
        rollups.catch_up(at=at)


def energy(table: str = "provisioning_minute") -> list[int | None]:
    return [one for _, one in rows(table)]


# Samples


def test_a_batch_of_nodes_is_two_statements_and_one_row_each(fleet: Fleet) -> None:
    nodes = list(Node.objects.order_by("pk"))
    said = [report(one, {gpu.uuid: {"power_mw": 1} for gpu in one.gpus.all()}) for one in nodes]
    telemetry.record(said[:1], at=NOON - timedelta(minutes=1))
    with CaptureQueriesContext(connection) as captured:
        assert telemetry.record(said, at=NOON) == len(nodes)
    assert len([query for query in captured.captured_queries if "SAVEPOINT" not in query["sql"]]) == 2


def test_a_replay_and_a_second_sample_in_ten_seconds_change_nothing(node: Node) -> None:
    samples(node, (1, {"power_mw": 5}), (9, {"power_mw": 9}), (1, {"power_mw": 7}))
    assert rows("provisioning_sample", "at, power_mw") == [(NOON, [5])]


def test_gpus_of_others_are_not_written_down(node: Node) -> None:
    mine, theirs = Gpu.objects.get(uuid="GPU-h200-1-0"), Gpu.objects.get(uuid="GPU-h200-2-0")
    told = {theirs.uuid: {"power_mw": 1}, mine.uuid: {"power_mw": 2}, "GPU-nobody": {"power_mw": 3}}
    telemetry.record([report(node, told)], at=NOON)
    (((_, ids, power)),) = rows("provisioning_sample", "at, gpu_ids, power_mw")
    assert dict(zip(ids, power, strict=True))[mine.pk] == 2
    assert theirs.pk not in ids
    assert telemetry.record([report(node, {theirs.uuid: {"power_mw": 1}})], at=NOON + timedelta(minutes=1)) == 0


@pytest.mark.parametrize(
    "lie",
    [{"power_mw": float("nan")}, {"power_mw": float("inf")}, {"power_mw": -1}, {"power_mw": 10**12},
     {"power_mw": True}, {"power_mw": "12"}, {"power_mw": [1]}, {"temperature_c": 5000}, {"utilization_percent": 101},
     {"memory_used_mib": -5}, {"made_up": 5}],
)  # fmt: skip
def test_an_absurd_value_is_left_out_and_spoils_nothing_else(lie: dict[str, Any]) -> None:
    assert readings([{"uuid": "GPU-1", "sm_clock_mhz": 100, **lie}]) == [{"uuid": "GPU-1", "sm_clock_mhz": 100}]


@pytest.mark.parametrize("lie", [-1, float("nan"), 2**60, "5", None])
def test_negative_or_absurd_energy_is_nobody_s(node: Node, lie: Any) -> None:
    samples(node, (0, {"millijoules": lie, "power_mw": 3}))
    assert rows("provisioning_sample", "at, millijoules, power_mw") == [(NOON, [None], [3])]


def test_what_a_gpu_does_not_tell_is_null_and_never_zero(node: Node) -> None:
    samples(node, (0, {"utilization_percent": None, "power_mw": 3}))
    assert rows("provisioning_sample", "at, utilization_percent, power_mw") == [(NOON, [None], [3])]
    catch_up()
    columns = "at, utilization_percent_sum, utilization_percent_last, power_mw_sum, energy_mj"
    assert rows("provisioning_minute", columns) == [(NOON, None, None, 3, None)]


def test_readings_that_cannot_be_kept_cost_no_report(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "RECORD", "SELECT 1 FROM no_such_table")
    assert telemetry.record([report(node, {"GPU-h200-1-0": {"power_mw": 1}})], at=NOON) == 0
    assert Node.objects.filter(pk=node.pk).exists()


# Sums


def test_minutes_and_hours_hold_least_mean_most_and_last(node: Node) -> None:
    samples(node, (0, {"power_mw": 10}), (10, {"power_mw": 40}), (50, {"power_mw": 20}), (70, {"power_mw": 5}))
    catch_up()
    columns = "at, power_mw_min, power_mw_max, power_mw_sum, power_mw_count, power_mw_last, samples"
    assert rows("provisioning_minute", columns) == [
        (NOON, 10, 40, 70, 3, 20, 3),
        (NOON + timedelta(minutes=1), 5, 5, 5, 1, 5, 1),
    ]
    assert rows("provisioning_hour", columns) == [(NOON, 5, 40, 75, 4, 5, 4)]


def test_what_is_not_over_is_not_summed_up(node: Node) -> None:
    samples(node, (0, {"power_mw": 1}))
    rollups.catch_up(at=NOON + 60 * SECOND)
    rollups.catch_up(at=NOON + 60 * SECOND)
    assert rows("provisioning_minute") == []
    rollups.catch_up(at=NOON + 60 * SECOND + rollups.GRACE)
    assert len(rows("provisioning_minute")) == 1


def test_a_worker_that_was_away_catches_up_some_steps_at_a_time(node: Node) -> None:
    samples(node, *((60 * minute, {"millijoules": 1000 * minute}) for minute in range(0, 90, 10)))
    steps = [rollups.catch_up(at=NOON + timedelta(hours=3), minutes=30, hours=1) for _ in range(12)]
    assert max(steps) <= 31
    assert sum(one or 0 for one in energy()) == 80_000
    assert energy("provisioning_hour") == [50_000, 30_000]


def test_a_sample_that_comes_late_is_summed_up_after_all(node: Node) -> None:
    samples(node, (0, {"millijoules": 1000}), (120, {"millijoules": 4000}))
    catch_up(NOON + timedelta(minutes=60) + rollups.GRACE)
    assert energy() == [None, 3000]
    samples(node, (60, {"millijoules": 2000}))
    catch_up(NOON + timedelta(minutes=60) + rollups.GRACE)
    assert energy() == [None, 1000, 2000]
    assert energy("provisioning_hour") == [3000]


def test_a_sample_that_comes_too_late_moves_no_mark(node: Node) -> None:
    samples(node, (0, {"millijoules": 1}), (7300, {"millijoules": 2}))
    catch_up(NOON + timedelta(hours=3))
    before = list(RollUp.objects.order_by("level").values_list("until", flat=True))
    samples(node, (10, {"millijoules": 1}))
    assert list(RollUp.objects.order_by("level").values_list("until", flat=True)) == before


@pytest.mark.parametrize(
    ("values", "joules"),
    [
        ([(0, 1000, 1), (10, 1500, 1), (70, 2500, 1)], [500, 1000]),
        # The counter fell: what was used between the two samples is not known, and not guessed.
        ([(0, 9000, 1), (10, 200, 1), (20, 300, 1)], [100]),
        # A new driver epoch whose counter has passed the old value already.
        ([(0, 1000, 1), (10, 5000, 2), (20, 6000, 2)], [1000]),
        # A gap loses nothing: the counter went on.
        ([(0, 1000, 1), (3000, 900_000, 1)], [None, 899_000]),
        # No GPU draws that much.
        ([(0, 0, 1), (10, 10**12, 1), (20, 10**12 + 5, 1)], [5]),
        # A sample without a counter between two that have one.
        ([(0, 1000, 1), (10, None, 1), (20, 1700, 1)], [700]),
    ],
)
def test_energy_is_what_the_counter_grew_by_in_one_epoch(
    node: Node, values: list[tuple[int, int | None, int]], joules: list[int | None]
) -> None:
    samples(node, *((second, {"millijoules": value, "epoch": epoch}) for second, value, epoch in values))
    catch_up()
    assert energy() == joules


STEPS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 400_000), st.sampled_from(["on", "on", "on", "reset", "silent"])),
    min_size=1,
    max_size=15,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, cut=st.integers(7, 90))
def test_energy_of_minutes_and_hours_is_what_was_used_but_for_resets(node: Node, steps: Any, cut: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM provisioning_sample; DELETE FROM provisioning_minute; DELETE FROM provisioning_hour"
        )
    RollUp.objects.all().delete()
    at, counter, epoch, told = 0, 5000, 1, [(0, 5000, 1)]
    samples(node, (0, {"millijoules": 5000}))
    for slots, grown, what in steps:
        at += 10 * slots
        counter, epoch = (grown, epoch + 1) if what == "reset" else (counter + grown, epoch)
        if what != "silent":
            samples(node, (at, {"millijoules": counter, "epoch": epoch}))
            told.append((at, counter, epoch))
    used = sum(now - before for (_, before, old), (_, now, new) in pairwise(told) if old == new)
    end = NOON + timedelta(hours=1 + at // 3600, minutes=1)
    for _ in range(3 + (at // 60 + 61) // cut):
        rollups.catch_up(at=end, minutes=cut)
    assert sum(one or 0 for one in energy()) == used
    assert min((one for one in energy() if one is not None), default=0) >= 0
    assert sum(one or 0 for one in energy("provisioning_hour")) == used
    RollUp.objects.update(until=NOON)
    for _ in range(3 + (at // 60 + 61) // cut):
        rollups.catch_up(at=end, minutes=cut)
    assert sum(one or 0 for one in energy()) == used


def test_a_sweep_begins_no_step_after_its_time_and_the_next_one_goes_on(node: Node) -> None:
    samples(node, (0, {"power_mw": 1}))
    rollups.catch_up(at=NOON)
    assert rollups.catch_up(at=NOON + timedelta(hours=2), budget_s=0) == 0
    assert rollups.catch_up(at=NOON + timedelta(hours=2)) == 30


# Partitions


def names(table: partitions.Table) -> list[str]:
    return [name for _, name in partitions._partitions(table)]


def test_partitions_are_made_ahead_and_dropped_when_they_are_too_old(node: Node) -> None:
    samples(node, (0, {"power_mw": 1}))
    assert names(partitions.SAMPLE) == ["provisioning_sample_20300101"]
    partitions.sweep(at=NOON)
    assert names(partitions.SAMPLE) == [f"provisioning_sample_{day}" for day in (20291231, *range(20300101, 20300105))]
    assert names(partitions.HOUR) == ["provisioning_hour_20291201", "provisioning_hour_20300101"]
    assert partitions.sweep(at=NOON + timedelta(days=2, hours=11)) == 1
    assert rows("provisioning_sample", "at, power_mw") == [(NOON, [1])]
    partitions.sweep(at=NOON + timedelta(days=2, hours=12))
    assert rows("provisioning_sample", "at, power_mw") == []


def test_a_sweep_that_was_away_for_long_drops_some_at_a_time(node: Node) -> None:
    partitions.prepare(partitions.SAMPLE, since=NOON - timedelta(days=30), until=NOON)
    assert [partitions.sweep(at=NOON) for _ in range(5)] == [10, 10, 8, 0, 0]


# Questions


def test_a_series_has_the_gpu_s_points_at_each_resolution(node: Node) -> None:
    samples(node, *((10 * n, {"power_mw": 100 + n, "millijoules": 1000 * n}) for n in range(12)))
    catch_up()
    gpu = Gpu.objects.get(uuid="GPU-h200-1-0")
    asked: dict[str, Any] = {"of": [gpu], "since": NOON, "until": NOON + timedelta(hours=1)}
    (fine,) = telemetry.series(**asked)
    assert (fine.uuid, fine.step, len(fine.points)) == (gpu.uuid, telemetry.SLOT, 12)
    assert [point.energy_mj for point in fine.points] == [None, *[1000] * 11]
    (minutes,) = telemetry.series(**asked, step=telemetry.MINUTE)
    assert [(point.at, point.power_mw, point.energy_mj) for point in minutes.points] == [
        (NOON, 102.5, None), (NOON + timedelta(minutes=1), 108.5, 6000),
    ]  # fmt: skip
    (hours,) = telemetry.series(**asked, step=telemetry.HOUR)
    assert [point.power_mw for point in hours.points] == [105.5]
    assert json.dumps([point.energy_mj for point in hours.points]) == "[null]"
