"""Workers that are killed, or hang, at each step of an instance's life: nothing is lost and nothing happens twice."""

import os
import signal
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils.timezone import now

from billing import books
from billing.models import UsageSpan
from marketplace import rentals
from marketplace.access import Actor
from provisioning import engine
from provisioning.engine import Plan
from provisioning.models import Assignment, GpuHold, Instance, Quota, Workflow
from provisioning.steps import PLAN, STEPS
from tests.conftest import Fleet, Rent
from tests.scenarios.deaths import _no_nudges, die, in_a_process_that_dies, in_a_process_that_hangs

__all__ = ["_no_nudges"]


def deadly(step: str, when: str) -> Plan:
    """Return the plan in which a worker is killed before or after it did a step; the outcome is not recorded."""

    def step_and_die(instance: Instance) -> Any:
        if when == "before":
            die()
        outcome = STEPS[step](instance)
        if when == "after":
            die()
        return outcome

    return Plan(
        steps={**STEPS, step: step_and_die}, deadlines=PLAN.deadlines, on_failure=PLAN.on_failure, fail=PLAN.fail
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_no_nudges")
@pytest.mark.parametrize("when", ["before", "after", "after the commit"])
@pytest.mark.parametrize("step", [name for name in STEPS if name != "rest"])
def test_a_worker_killed_in_any_step_loses_and_doubles_nothing(
    rent: Rent, fleet: Fleet, actor: Actor, project: Any, step: str, when: str
) -> None:
    with time_machine.travel(now(), tick=False) as clock:
        instance, is_killed = rent(), False
        for _ in range(60):
            for workflow_id in engine.due(limit=10):
                is_there = Instance.objects.get(pk=instance.pk).workflow.step == step
                if is_there and not is_killed:
                    in_a_process_that_dies(lambda pk=workflow_id: (engine.run_one(pk, deadly(step, when)), die()))
                    is_killed = True
                    if when != "after the commit":
                        assert engine.due(limit=10) == [], "its lease is still held"
                        clock.shift(engine.LEASE + timedelta(seconds=1))
                else:
                    engine.run_one(workflow_id, PLAN)
            fleet.sync()
            instance = Instance.objects.get(pk=instance.pk)
            if instance.phase == "running" and instance.workflow.step == "watch" and not engine.due(limit=1):
                rentals.terminate(actor=actor, instance=instance, at=now())
            if instance.phase == "terminated":
                break
        assert (is_killed, instance.phase) == (True, "terminated")
        assert Assignment.objects.filter(instance=instance).count() == 1
        assert not GpuHold.objects.filter(released_at=None).exists()
        assert Quota.objects.get(project=project).held == 0
        assert UsageSpan.objects.count() == 1
        assert not UsageSpan.objects.filter(ended_at=None).exists()
        assert books.check(at=now()) == []


def everything() -> list[Any]:
    tables = (Instance, Workflow, Assignment, GpuHold, UsageSpan, Quota)
    return [list(table.objects.order_by("pk").values()) for table in tables]


def hanging(step: str) -> Plan:
    """Return the plan in which a worker hangs once it did a step, before the outcome is recorded."""

    def step_and_hang(instance: Instance) -> Any:
        outcome = STEPS[step](instance)
        os.kill(os.getpid(), signal.SIGSTOP)
        return outcome

    return Plan(
        steps={**STEPS, step: step_and_hang}, deadlines=PLAN.deadlines, on_failure=PLAN.on_failure, fail=PLAN.fail
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_no_nudges")
@pytest.mark.parametrize("step", ["place", "create", "prepare", "verify"])
def test_a_worker_that_hangs_beyond_its_lease_changes_nothing_when_it_wakes_up(
    rent: Rent, fleet: Fleet, step: str
) -> None:
    wake = None
    with time_machine.travel(now(), tick=False) as clock:
        instance = rent()
        for _ in range(40):
            for workflow_id in engine.due(limit=10):
                if wake is None and Workflow.objects.get(pk=workflow_id).step == step:
                    wake = in_a_process_that_hangs(lambda pk=workflow_id: engine.run_one(pk, hanging(step)))
                    assert engine.due(limit=10) == [], "its lease is still held"
                    clock.shift(engine.LEASE + timedelta(seconds=1))
                else:
                    engine.run_one(workflow_id, PLAN)
            fleet.sync()
        instance.refresh_from_db()
        assert instance.phase == "running"
        before = everything()
        assert wake is not None
        wake()
        assert everything() == before
        assert Assignment.objects.count() == GpuHold.objects.filter(released_at=None).count() == 1
        assert UsageSpan.objects.count() == 1
