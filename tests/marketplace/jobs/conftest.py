"""Jobs on the played fleet: submit them, let them go as far as they can, and end what runs as a test wants."""

from dataclasses import dataclass
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from marketplace.access import Actor
from marketplace.jobs import running, spec, submitting
from marketplace.models import OPEN_JOBS, Attempt, Job, Project, Task
from provisioning import engine, instances
from provisioning.models import Assignment, Instance
from provisioning.steps import PLAN
from tests.conftest import Fleet, Run

ROUNDS_MAX = 30


@dataclass
class Works:
    """Acme's jobs as Alice submits them."""

    actor: Actor
    project: Project
    fleet: Fleet
    settle: Run

    def submit(self, text: str, **folders: str) -> list[Job]:
        at = timezone.now()
        with transaction.atomic():
            specs = spec.from_file(text, at=at)
            return submitting.submit(actor=self.actor, project=self.project, specs=specs, folders=folders, at=at)

    def one(self, **fields: Any) -> Job:
        """Submit one job; what differs from a task on one H200 is named."""
        at = timezone.now()
        values = {"offer": "h200-narvik", "command": ["work"], "time_limit": "1h"} | fields
        with transaction.atomic():
            specs = spec.from_values([{name: value for name, value in values.items() if value is not None}], at=at)
            (job,) = submitting.submit(actor=self.actor, project=self.project, specs=specs, folders={}, at=at)
        return job

    def go(self) -> None:
        """Let jobs, workflows and nodes do all that they can now."""
        for _ in range(ROUNDS_MAX):
            before = self._seen()
            self.look()
            self.settle()
            if self._seen() == before:
                return
        raise AssertionError("still moving")

    def look(self) -> None:
        for job_id in list(Job.objects.filter(state__in=OPEN_JOBS).order_by("pk").values_list("pk", flat=True)):
            running.work_on(job_id)

    def _seen(self) -> list[Any]:
        tasks = Task.objects.order_by("pk").values_list("pk", "state", "attempts")
        instances = Instance.objects.order_by("pk").values_list("pk", "phase")
        return [*tasks, *instances, *Job.objects.order_by("pk").values_list("pk", "state")]

    def running(self, job: Job) -> list[Attempt]:
        """The attempts under way, by their task."""
        live = Attempt.objects.filter(job=job, state="running").select_related("instance", "task")
        return list(live.order_by("task__index"))

    def exits(self, attempt: Attempt, code: int = 0) -> None:
        """Let the command of an attempt end when its node is asked next."""
        for node in self.fleet.nodes.values():
            node.exit_codes[attempt.instance.public_id] = code
        engine.wake(attempt.instance_id)

    def exit_all(self, job: Job, code: int = 0) -> None:
        for attempt in self.running(job):
            self.exits(attempt, code)

    def phase(self, attempt: Attempt) -> str:
        """Where its instance stands now."""
        return Instance.objects.get(pk=attempt.instance_id).phase

    def takes_back(self, attempt: Attempt) -> None:
        """Let the platform take the GPUs of an attempt back."""
        instance = Instance.objects.get(pk=attempt.instance_id)
        instances.stop(instance=instance, at=timezone.now(), reason=instances.Reason.RESERVATION_END)

    def lose(self, attempt: Attempt) -> None:
        """Let its node lose an attempt."""
        rows = Assignment.objects.filter(instance=attempt.instance_id).exclude(observed="gone")
        rows.update(observed="gone", message="The node is off.")
        engine.wake(attempt.instance_id)
        for _ in range(5):
            engine.run_one(attempt.instance_id, PLAN)


@pytest.fixture
def works(actor: Actor, project: Project, fleet: Fleet, run_until_idle: Run) -> Works:
    return Works(actor, project, fleet, run_until_idle)


def latest(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def states(job: Job) -> list[str]:
    return list(Task.objects.filter(job=job).order_by("index").values_list("state", flat=True))


def tries(job: Job, index: int = 0) -> list[tuple[int, str, str]]:
    """Number, state and reason of each attempt at a task."""
    rows = Attempt.objects.filter(job=job, task__index=index).order_by("number")
    return list(rows.values_list("number", "state", "reason"))
