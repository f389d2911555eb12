"""A market that plays a trace: tenants order by the real verbs, nodes are played in bulk, and time is moved by hand.

Blocks and what runs inside them are in `reserving`, the figures at the end in `outcome`.
"""

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from billing import charging, holds
from marketplace import delivery, recalls, rentals, spot, spot_terms, tenants, waiting
from marketplace.access import person
from marketplace.errors import MarketError
from marketplace.models import Offer, Project, User, WaitingOrder
from provisioning import engine, interruptions
from provisioning.drivers.fake import FakeDriver, State
from provisioning.drivers.protocol import Observation
from provisioning.drivers.registry import DRIVERS
from provisioning.errors import NoCapacity
from provisioning.models import (
    CHARGED_PHASES,
    Assignment,
    Gpu,
    Instance,
    Node,
    WipeRecord,
    Workflow,
)
from provisioning.steps import PLAN
from tests.bench import outcome, reserving, world
from tests.bench.trace import GRID_MICROS, NOTICE, PRICE_MICROS, RESERVE_MICROS, TICK, Job

LONGEST_WAIT = timedelta(days=29)
TURNS_MAX = 100
SWEPT_AT_ONCE = 1000


class BulkDriver(FakeDriver):
    """The pretended data centre, as fast as a benchmark needs it."""

    def destroy(self, assignment: Assignment) -> bool:
        self.things[assignment.public_id] = Observation(state=State.GONE)
        gpus = Gpu.objects.filter(node=assignment.node_id, uuid__in=assignment.gpu_uuids)
        at = timezone.now()
        WipeRecord.objects.bulk_create(
            [
                WipeRecord(
                    gpu=gpu, assignment=assignment, method="simulated", result="ok", at=at, fence=assignment.fence
                )
                for gpu in gpus
            ],
            ignore_conflicts=True,
        )
        return True


@dataclass
class Replay:
    """The market with its tenants, the jobs, and what happens when."""

    clock: Any
    jobs: list[Job]
    gpus: int
    speed: str
    events: list[tuple[datetime, int, str, Job | None]] = field(default_factory=list)
    count: Iterator[int] = field(default_factory=itertools.count)
    by_instance: dict[int, Job] = field(default_factory=dict)
    waiting: dict[int, Job] = field(default_factory=dict)
    entering: dict[int, datetime] = field(default_factory=dict)
    entered_s: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    def run(self) -> dict[str, Any]:
        self._open()
        begin = self.jobs[0].at
        for submitted in self.jobs:
            self.plan(submitted.at, "submit", submitted)
        self.plan(begin + TICK, "tick")
        # Until the last job is submitted: what runs longer is cut, so that a tail of few jobs does not count as idle.
        at, end = begin, self.jobs[-1].at
        while self.events and self.events[0][0] <= end:
            before = at
            at, _, kind, job = heapq.heappop(self.events)
            if self.speed != "max":
                time.sleep((at - before).total_seconds() / float(self.speed))
            self.clock.move_to(max(at, timezone.now()))
            getattr(self, f"_{kind}")(*([job] if job else []))
        self.clock.move_to(end)
        waits = {job.number for job in self.waiting.values()}
        self.ends.update(outcome.at_the_end(job, waits) for job in self.jobs if job.done < job.duration)
        self._charge(end)
        return outcome.figures(self, begin, end)

    def plan(self, at: datetime, kind: str, job: Job | None = None) -> None:
        heapq.heappush(self.events, (at, next(self.count), kind, job))

    def _open(self) -> None:
        """Make the fleet, its offer with both markets, and a customer for each virtual cluster."""
        DRIVERS["fake"] = BulkDriver()
        engine.nudge = lambda workflow_id: None  # type: ignore[assignment]  # We walk them ourselves.
        waiting.WAITS_MAX = len(self.jobs)  # A trace has no tenant that looks before it submits.
        at = timezone.now()
        offer = world.make_offer(price_micros=PRICE_MICROS)
        world.grow([offer], gpus=self.gpus)
        Node.objects.update(driver="fake")
        spot_terms.set_terms(
            offer=offer, by="replay", at=at, is_enabled=True, reserve_micros=RESERVE_MICROS,
            grid_micros=GRID_MICROS, interval_s=int(TICK.total_seconds()),
            min_notice_s=int(NOTICE.total_seconds()),
        )  # fmt: skip
        reserving.sell(offer)
        self.offer = Offer.objects.select_related("site").get(pk=offer.pk)
        self.actors, self.projects = {}, {}
        names = sorted({job.tenant for job in self.jobs})
        customers = world.make_customers(len(names))
        for name, project_id in zip(names, customers.projects, strict=True):
            project = Project.objects.select_related("organization").get(pk=project_id)
            user = User.objects.get(memberships__organization=project.organization)
            tenants.rename_organization(actor=person(user), organization=project.organization, name=name)
            self.actors[name], self.projects[name] = person(user), project

    def _submit(self, job: Job) -> None:
        replicas, gpus = job.shape
        who: dict[str, Any] = {"actor": self.actors[job.tenant], "project": self.projects[job.tenant]}
        order = rentals.Order(offer=self.offer, command=["train"], gpus=gpus, replicas=replicas)
        at = timezone.now()
        if job.market == "reserved" and reserving.book(self, job, at=at):
            return
        try:
            with transaction.atomic():
                if job.market == "spot":
                    bid = spot.bid(**who, order=order, max_price_micros=job.bids_micros, at=at)
                    self.watch(job, bid.instance)
                    return
                instance = rentals.rent(**who, order=order, at=at)
        except NoCapacity:
            self._wait(job, who, order, at)
        except MarketError as refusal:
            self._turn_away(refusal)
        else:
            self.watch(job, instance)
            self._walk()

    def _wait(self, job: Job, who: dict[str, Any], order: rentals.Order, at: datetime) -> None:
        """Let a job wait, unless it wants more GPUs than the fleet has."""
        until = at + LONGEST_WAIT
        try:
            entry = waiting.wait(**who, order=order, max_micros_per_gpu_hour=PRICE_MICROS, until=until, at=at)
        except MarketError as refusal:
            self._turn_away(refusal)
        else:
            self.waiting[entry.pk] = job
            self.ends["waited"] += 1

    def _turn_away(self, refusal: Exception) -> None:
        self.ends["turned away"] += 1
        self.ends[f"refused: {type(refusal).__name__}"] += 1

    def watch(self, job: Job, instance: Any) -> None:
        job.instance = instance
        self.by_instance[instance.pk] = job

    def _finish(self, job: Job) -> None:
        """The job is done: its tenant ends the instance, and what waits may start."""
        at = timezone.now()
        if job.runs_since is None or job.done + (at - job.runs_since) < job.duration:
            return  # It was interrupted meanwhile, and another end is planned.
        instance = Instance.objects.select_related("project__organization", "offer", "price_version").get(
            pk=job.instance.pk
        )
        rentals.terminate(actor=self.actors[job.tenant], instance=instance, at=at)
        self.by_instance.pop(instance.pk)
        job.done, job.runs_since = job.duration, None
        self.ends["finished"] += 1
        self._walk()
        if self.waiting:
            self._start_waiting()

    def _start_waiting(self) -> None:
        if not waiting.start_due(at=timezone.now(), limit=SWEPT_AT_ONCE):
            return
        over = WaitingOrder.objects.filter(pk__in=self.waiting).exclude(state="waiting").select_related("instance")
        for entry in over:
            job = self.waiting.pop(entry.pk)
            if entry.instance is None:
                self.ends["gave up"] += 1
            else:
                self.watch(job, entry.instance)
        self._walk()

    def _tick(self) -> None:
        """Everything that the sweeps do, once in a tick, in the order of the beat."""
        at = timezone.now()
        delivery.advance(at=at, limit=SWEPT_AT_ONCE)
        interruptions.announce_due(at=at, limit=SWEPT_AT_ONCE)
        self._walk()
        interruptions.settle_due(at=at, limit=SWEPT_AT_ONCE)
        spot.resume(at=at, limit=SWEPT_AT_ONCE)
        for offer_id in spot.due(at=at):
            spot.clear(offer_id=offer_id, at=at)
        self._walk()
        if self.waiting:
            self._start_waiting()
        holds.expire(at=at, limit=SWEPT_AT_ONCE)
        if at.minute == 0:
            self._charge(at)
        self.plan(at + TICK, "tick")

    def _charge(self, at: datetime) -> None:
        while charging.charge_due(at=at, limit=SWEPT_AT_ONCE):
            pass

    def _enter(self, job: Job) -> None:
        """A block begins: its tenant launches inside, and lent GPUs come back to it."""
        at = timezone.now()
        delivery.advance(at=at, limit=SWEPT_AT_ONCE)
        reserving.enter(self, job, at=at)
        recalls.recall_due(at=at, limit=SWEPT_AT_ONCE)
        interruptions.announce_due(at=at, limit=SWEPT_AT_ONCE)
        self._walk()

    def _notice(self) -> None:
        """A moment at which a step is due: the end of somebody's notice."""
        self._walk()

    def _walk(self) -> None:
        """Run every workflow that is due until nothing moves, and see what runs and what was interrupted."""
        moved: set[int] = set()
        for _ in range(TURNS_MAX):
            due = engine.due(limit=SWEPT_AT_ONCE)
            for workflow_id in due:
                while engine.run_one(workflow_id, PLAN):
                    pass
            moved |= set(due)
            if not due:
                break
        self._look(moved)
        later = Workflow.objects.filter(pk__in=moved, due_at__gt=timezone.now())
        for due_at in {one.due_at for one in later.only("due_at") if one.due_at is not None}:
            self.plan(due_at, "notice")

    def _look(self, moved: set[int]) -> None:
        at = timezone.now()
        if not moved:
            return
        for pk, phase in Instance.objects.filter(pk__in=moved).values_list("pk", "phase"):
            job = self.by_instance.get(pk)
            if job is None:
                continue
            if phase in CHARGED_PHASES and job.runs_since is None:
                job.runs_since, job.started_at = at, job.started_at or at
                if (began := self.entering.pop(pk, None)) is not None:
                    self.entered_s.append((at - began).total_seconds())
                self.plan(at + max(job.duration - job.done, timedelta(seconds=1)), "finish", job)
            elif phase not in CHARGED_PHASES and job.runs_since is not None:
                job.done += at - job.runs_since
                job.runs_since = None
                if job.market == "reserved" and job.block is not None:
                    self.ends["ended with its block"] += 1
