"""Whatever happens in whatever order: tasks are counted right, tried one at a time, end, and cost no more than said."""

from collections import Counter
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books
from billing.models import Transfer, UsageSpan
from marketplace.jobs import cancelling, running
from marketplace.models import Attempt, Job, Task, TaskState
from provisioning import instances
from provisioning.errors import ProvisioningError
from provisioning.models import GpuHold, Instance, Phase
from tests.marketplace.jobs.conftest import Works, latest
from tests.marketplace.jobs.test_running import dies

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
THINGS = ("look", "die", "settle", "succeed", "fail", "lose", "stop", "take back", "late", "cancel")

pytestmark = pytest.mark.django_db


def do(works: Works, job: Job, thing: str, which: int, clock: time_machine.Traveller) -> None:
    """Let one thing happen to the job, or to one of its attempts if any runs."""
    if thing in {"succeed", "fail", "stop", "take back", "lose"}:
        live = works.running(job)
        if live:
            happen_to(works, live[which % len(live)], thing)
    elif thing == "look":
        running.work_on(job.pk)
    elif thing == "die":
        dies(job, which * 5)
    elif thing == "settle":
        works.settle()
    elif thing == "late":
        clock.shift(timedelta(minutes=which * 5 + 1))
    elif which > 8 and not cancelling.why_not_cancelled(latest(job)):
        cancelling.cancel(actor=works.actor, job=job, at=timezone.now())


def happen_to(works: Works, attempt: Attempt, thing: str) -> None:
    if thing == "stop":
        with suppress(ProvisioningError):
            instances.terminate(instance=Instance.objects.get(pk=attempt.instance_id), at=timezone.now())
    elif thing == "take back":
        with suppress(ProvisioningError):
            works.takes_back(attempt)
    elif thing != "lose":
        works.exits(attempt, 0 if thing == "succeed" else 7)
    elif works.phase(attempt) == Phase.RUNNING:
        works.lose(attempt)


def check(job: Job) -> None:
    now, tasks = latest(job), list(Task.objects.filter(job=job))
    states = Counter(task.state for task in tasks)
    assert {state: getattr(now, state) for state in TaskState.values} == {
        state: states[state] for state in TaskState.values
    }
    live = Counter(Attempt.objects.filter(job=job, state="running").values_list("task", flat=True))
    assert live == Counter(task.pk for task in tasks if task.state == TaskState.RUNNING)
    for task in tasks:
        assert task.failures <= job.retries + 1
        assert task.attempts == task.tries.count()
        assert (task.state == TaskState.SUCCEEDED) == (task.tries.filter(state="succeeded").count() == 1)
    assert now.most_micros is not None
    assert now.spent_micros <= now.most_micros
    names = list(Attempt.objects.filter(job=job).values_list("instance__public_id", flat=True))
    charged = sum(UsageSpan.objects.filter(resource_id__in=names).values_list("charged_micros", flat=True))
    back = Transfer.objects.filter(key__in=[f"service-credit:attempt:{name}" for name in names])
    assert charged - sum(back.values_list("amount_micros", flat=True)) <= now.most_micros
    assert now.spent_micros == sum(Attempt.objects.filter(job=job).values_list("cost_micros", flat=True))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(things=st.lists(st.tuples(st.sampled_from(THINGS), st.integers(0, 11)), max_size=14))
def test_whatever_happens_a_job_ends_and_its_counts_and_costs_hold(works: Works, things: list[tuple[str, int]]) -> None:
    nodes = works.fleet.nodes
    with time_machine.travel(NOON, tick=False) as clock, transaction.atomic():
        # Each example begins with the same world: what is rolled back the nodes have to forget, too.
        works.fleet.nodes = deepcopy(nodes)
        job = works.one(array=4, retries=1, time_limit="30m")
        for thing, which in things:
            do(works, job, thing, which, clock)
            check(job)
        for _ in range(12):
            works.exit_all(job)
            works.go()
            clock.shift(timedelta(minutes=3))
        check(job)
        assert not latest(job).is_open
        assert set(Instance.objects.values_list("phase", flat=True)) <= {Phase.TERMINATED}
        assert not GpuHold.objects.filter(released_at=None).exists()
        assert books.check(at=timezone.now()) == []
        transaction.set_rollback(True)
    works.fleet.nodes = nodes
