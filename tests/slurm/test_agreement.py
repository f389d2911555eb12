"""After 50 random creates, kills and restarts, squeue and our rows say the same."""

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Project
from provisioning.drivers import slurm_job, slurmrest
from provisioning.drivers.slurmrest import Slurm
from provisioning.errors import NoCapacity, OutsideFault, ProvisioningError
from provisioning.models import Assignment, Cluster, GpuHold, Instance, Quota, SlurmJob
from tests.conftest import order
from tests.packages import needs
from tests.slurm.cluster import NODES, SlurmCluster, fresh
from tests.slurm.stage import SlurmStage

pytestmark = [pytest.mark.django_db, needs("slurmctld")]

SEED = 20261126
AT_REST = {"running", "stopped", "terminated", "failed"}


@pytest.fixture(scope="module")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Daemons of its own: what is killed here must not trouble the other tests."""
    yield from fresh()


class Storm:
    """Customers, and everything that goes wrong around them."""

    def __init__(self, slurm: SlurmStage, project: Project, actor: Actor) -> None:
        self.slurm, self.project, self.actor = slurm, project, actor
        self.dice = random.Random(SEED)
        self.done: Counter[str] = Counter()
        self.breaks = ""

    def deeds(self) -> list[Callable[[], None]]:
        """Return 50 deeds in an order of chance; how many of each does not depend on how they go."""
        often = {
            self.create: 24,
            self.end: 12,
            self.restart: 6,
            self.kill_job: 4,
            self.kill_daemon: 3,
            self.kill_node: 1,
        }
        deeds = [deed for deed, count in often.items() for _ in range(count)]
        self.dice.shuffle(deeds)
        return deeds

    def create(self) -> None:
        """Rent; some workers die before their submit, some right after it."""
        self.breaks = self.dice.choice(["", "", "", "before", "after"])
        replicas = self.dice.choice([1, 1, 1, 2])
        command = self.dice.choice([["sleep", "1000"], ["sleep", "1000"], ["true"], ["false"]])
        wanted = order(
            self.slurm.offer, gpus=replicas * self.dice.choice([1, 2, 4]), replicas=replicas, command=command
        )
        try:
            with transaction.atomic():
                rentals.rent(actor=self.actor, project=self.project, order=wanted, at=timezone.now())
        except NoCapacity:
            self.done["no capacity"] += 1

    def submit(self, submit: Any, slurm: Slurm, **job: Any) -> int:
        broken, self.breaks = self.breaks, ""
        if broken == "before":
            raise OutsideFault("killed before the submit")
        job_id: int = submit(slurm, **job)
        if broken == "after":
            raise OutsideFault("killed after the submit")
        return job_id

    def one(self, *phases: str) -> Instance | None:
        found = list(Instance.objects.filter(phase__in=phases).order_by("pk"))
        return self.dice.choice(found) if found else None

    def end(self) -> None:
        verb = self.dice.choice([rentals.stop, rentals.terminate])
        if (instance := self.one("queued", "placing", "provisioning", "running", "failed", "stopped")) is not None:
            self.say(verb, instance)

    def restart(self) -> None:
        if (instance := self.one("stopped", "failed")) is not None:
            self.say(rentals.start, instance)

    def say(self, verb: Any, instance: Instance) -> None:
        try:
            with transaction.atomic():
                verb(actor=self.actor, instance=instance, at=timezone.now())
        except ProvisioningError:
            self.done["refused"] += 1

    def kill_job(self) -> None:
        if jobs := self.slurm.daemons.queue():
            self.slurm.daemons.run("scancel", "-n", self.dice.choice(jobs)[0])

    def kill_daemon(self) -> None:
        name = self.dice.choice(["slurmctld", "slurmrestd"])
        self.slurm.daemons.stop(name, how=signal.SIGKILL)
        self.slurm.look()
        self.slurm.daemons.start(name)
        self.slurm.daemons.wait_for_controller()

    def kill_node(self) -> None:
        """The node's daemon dies and comes back; its jobs live on."""
        name = self.dice.choice(NODES)
        self.slurm.daemons.stop(name, how=signal.SIGKILL)
        self.slurm.daemons.start(name)


def disagreements(slurm: SlurmStage) -> list[str]:
    """Return what squeue and our rows say differently: which jobs there are, with how many GPUs, and where they stand.

    A job that waits in Slurm stands nowhere yet, and is "preparing" here.
    """
    there = {(name, gpus.rpartition(":")[2], node) for name, _, node, gpus in slurm.daemons.queue()}
    live = Assignment.objects.exclude(observed__in=["gone", "exited", "failed"]).select_related("node__slurm")
    places = {row.pk: row.node.slurm.name if row.observed in {"prepared", "running"} else "" for row in live}
    ours = {(row.public_id, str(len(row.gpu_uuids)), places[row.pk]) for row in live}
    return sorted(map(str, there ^ ours))


@pytest.fixture
def storm(slurm: SlurmStage, project: Project, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> Storm:
    Quota.objects.update(limit=1000)
    storm = Storm(slurm, project, actor)
    submit = Slurm.submit
    monkeypatch.setattr(Slurm, "submit", lambda self, **job: storm.submit(submit, self, **job))
    monkeypatch.setattr("provisioning.drivers.slurm.SETTLED_AFTER", timedelta(seconds=1))
    monkeypatch.setattr("provisioning.engine.BACK_OFF_S", (0.2, 0.5))
    monkeypatch.setattr(slurmrest, "TIMEOUT_S", 2)
    return storm


def test_squeue_and_our_rows_agree_after_fifty_random_creates_kills_and_restarts(
    slurm: SlurmStage, storm: Storm
) -> None:
    for deed in storm.deeds():
        deed()
        storm.slurm.turn()
        storm.slurm.look()
    for name in NODES:
        # A node that registers is heard at once, and not only by the controller's next round.
        slurm.daemons.restart(name)
    # After a restart the controller lets some jobs wait for its own reasons; what waits, waits on both sides.
    waits = Assignment.objects.filter(observed__in=["preparing", "prepared"])
    calm = Instance.objects.exclude(phase__in=AT_REST).exclude(assignments__in=waits)
    moving = Assignment.objects.exclude(observed__in=["running", "gone", "preparing", "prepared"])
    slurm.run(lambda: not calm.exists() and not moving.exists() and not disagreements(slurm))
    living = Assignment.objects.exclude(observed="gone")
    running = living.filter(observed="running")
    assert set(running.values_list("instance__phase", flat=True)) <= {"running"}
    held = GpuHold.objects.filter(released_at=None)
    assert set(held.values_list("assignment", flat=True)) == set(living.values_list("pk", flat=True))
    with Slurm(Cluster.objects.get()) as rest:
        ours = [job for job in rest.jobs() if job.comment.startswith(slurm_job.mark(slurm.cluster))]
    started = Counter(job.name for job in ours if job.comment.endswith(slurm_job.STARTED))
    assert max(started.values()) == 1
    assert SlurmJob.objects.count() >= len(started)
