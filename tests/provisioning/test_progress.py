"""The steps of a start as people see them: done, under way, failed, and how long each usually takes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.cache import cache
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from provisioning import engine, progress
from provisioning.models import Instance, InstanceEvent
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent, Run
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


def stages(instance: Instance) -> dict[str, progress.Stage]:
    instance.refresh_from_db()
    return {stage.name: stage for stage in progress.stages(instance, at=timezone.now())}


def states(instance: Instance) -> list[str]:
    return [stage.state for stage in stages(instance).values()]


def elapsed(instance: Instance) -> list[int | None]:
    return [stage.elapsed_ms for stage in stages(instance).values()]


def test_a_start_is_shown_step_by_step(rent: Rent, fleet: Fleet, clock: time_machine.Traveller) -> None:
    instance = rent()
    clock.shift(timedelta(seconds=2))
    assert states(instance) == ["active", "waiting", "waiting", "waiting"]
    assert elapsed(instance) == [2000, None, None, None]
    assert engine.run_one(instance.pk, PLAN)  # place
    clock.shift(timedelta(seconds=1))
    assert states(instance) == ["active", "waiting", "waiting", "waiting"]
    assert engine.run_one(instance.pk, PLAN)  # create
    clock.shift(timedelta(seconds=4))
    assert states(instance) == ["done", "active", "waiting", "waiting"]
    assert elapsed(instance) == [3000, 4000, None, None]


def test_a_running_instance_has_done_all_and_runs(running: Instance) -> None:
    found = stages(running)
    assert list(found) == ["reserve", "prepare", "verify", "run"]
    assert states(running) == ["done", "done", "done", "active"]
    assert found["run"].finished_at is None
    assert found["run"].started_at == running.ready_at
    for before, after in [("reserve", "prepare"), ("prepare", "verify"), ("verify", "run")]:
        assert found[before].finished_at == found[after].started_at


def test_what_ended_has_done_all(running: Instance, actor: Actor, run_until_idle: Run) -> None:
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    assert states(running) == ["done", "done", "done", "done"]


def test_a_failed_start_shows_where_it_failed(rent: Rent, run_until_idle: Run, fleet: Fleet) -> None:
    for played in fleet.nodes.values():
        played.fails_to_prepare = "no space left"
    instance = rent()
    run_until_idle()
    assert states(instance) == ["done", "failed", "waiting", "waiting"]
    assert stages(instance)["prepare"].finished_at is not None


def test_a_lost_node_shows_as_a_failed_run(running: Instance) -> None:
    running.assignments.update(observed="gone")
    engine.wake(running.pk)
    engine.run_one(running.pk, PLAN)
    assert states(running) == ["done", "done", "done", "failed"]


def test_a_restart_shows_its_own_steps_from_its_wait_in_the_queue_on(
    clock: time_machine.Traveller, running: Instance, run_until_idle: Run, actor: Actor, fleet: Fleet
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    running.refresh_from_db()
    clock.shift(timedelta(hours=1))
    rentals.start(actor=actor, instance=running, at=timezone.now())
    clock.shift(timedelta(seconds=5))
    assert states(running) == ["active", "waiting", "waiting", "waiting"]
    assert elapsed(running) == [5000, None, None, None]
    fleet.sync()
    run_until_idle()
    assert states(running) == ["done", "done", "done", "active"]


def record(instance: Instance, *, old: str, new: str, milliseconds: int) -> None:
    InstanceEvent.objects.create(
        instance=instance, at=timezone.now(), run=99, old_phase=old, new_phase=new, milliseconds=milliseconds
    )


def typical(instance: Instance) -> list[int | None]:
    cache.clear()
    return [stage.typical_ms for stage in stages(instance).values()]


def test_nothing_is_typical_without_history(rent: Rent) -> None:
    assert typical(rent()) == [None, None, None, None]


def test_typical_is_the_median_of_what_went_on(rent: Rent) -> None:
    instance = rent()
    for queued, preparing in [(10, 1000), (20, 2000), (90, 60_000)]:
        record(instance, old="queued", new="placing", milliseconds=queued)
        record(instance, old="placing", new="provisioning", milliseconds=5)
        record(instance, old="provisioning", new="verifying", milliseconds=preparing)
    # How long it takes to fail or to be called off is not how long a step takes.
    for ending in ("failed", "stopping", "terminating"):
        for _ in range(5):
            record(instance, old="provisioning", new=ending, milliseconds=1)
    record(instance, old="running", new="stopping", milliseconds=10**9)
    assert typical(instance) == [25, 2000, None, None]


def test_typical_follows_recent_starts(rent: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TYPICAL_SAMPLE", 3)
    instance = rent()
    for milliseconds in (1, 1, 1, 500, 500, 500):
        record(instance, old="verifying", new="running", milliseconds=milliseconds)
    assert typical(instance)[2] == 500


def test_many_instances_cost_two_questions(
    rent: Rent, run_until_idle: Run, django_assert_num_queries: Callable[..., Any]
) -> None:
    instances = [rent() for _ in range(4)]
    run_until_idle()
    progress.typical_ms()
    for instance in instances:
        instance.refresh_from_db()
    with django_assert_num_queries(1):
        found = progress.of(instances, at=timezone.now())
    assert {stage.state for stage in found[instances[0].pk]} == {"done", "active"}


def pulling(instance: Instance, *told: dict[str, Any] | None) -> progress.Transfer | None:
    """Let each replica say how far its pull is, and return what people see of it."""
    Instance.objects.filter(pk=instance.pk).update(phase="provisioning")
    InstanceEvent.objects.create(instance=instance, at=timezone.now(), run=1, new_phase="provisioning")
    for row, word in zip(instance.assignments.order_by("replica"), told, strict=True):
        instance.assignments.filter(pk=row.pk).update(observed="preparing", progress=word)
    return stages(instance)["prepare"].transfer


def said(done: int, total: int | None, *, step: str = "pull") -> dict[str, Any]:
    return {"step": step, "done_bytes": done, "total_bytes": total, "bytes_per_s": 10}


def test_a_pull_is_summed_over_the_replicas(rent: Rent) -> None:
    found = pulling(rent(replicas=2), said(10, 100), said(30, 100))
    assert found == progress.Transfer(step="pull", replicas=2, done_bytes=40, total_bytes=200, bytes_per_s=20)
    assert (found.title, found.percent) == ("Pull the image", 20)


@pytest.mark.parametrize(
    ("told", "percent"),
    [((said(10, None), said(30, 100)), None), ((said(10, 0), None), None), ((said(300, 100), None), 100)],
)
def test_a_percentage_is_shown_only_where_the_whole_is_known(
    rent: Rent, told: tuple[dict[str, Any] | None, ...], percent: int | None
) -> None:
    found = pulling(rent(replicas=2), *told)
    assert found is not None
    assert found.percent == percent


def test_what_replicas_do_that_are_at_something_else_is_not_mixed_in(rent: Rent) -> None:
    found = pulling(rent(replicas=2), said(10, 100), said(7, 7, step="copy"))
    assert found is not None
    assert (found.step, found.done_bytes, found.replicas) == ("pull", 10, 1)


def test_a_replica_of_an_earlier_run_is_left_out(rent: Rent) -> None:
    instance = rent()
    pulling(instance, said(10, 100))
    instance.assignments.update(fence=7)
    assert stages(instance)["prepare"].transfer is None
