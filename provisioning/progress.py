"""The steps of a start, as every door shows them: what is done, what is under way, how long it usually takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.core.cache import cache
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from provisioning.models import CHARGED_PHASES, STARTING, Assignment, Instance, InstanceEvent, Phase

TYPICAL_SAMPLE = 200
TYPICAL_KEPT_S = 60
MILLISECOND = timedelta(milliseconds=1)

# name, title, and the phases that it covers.
STAGES: tuple[tuple[str, Promise | str, tuple[Phase, ...]], ...] = (
    ("reserve", _("Reserve GPUs"), (Phase.QUEUED, Phase.PLACING)),
    ("prepare", _("Prepare the nodes"), (Phase.PROVISIONING,)),
    ("verify", _("Check GPUs and nodes"), (Phase.VERIFYING,)),
    ("run", _("Run"), (Phase.RUNNING, Phase.NOTIFIED, Phase.DRAINING)),
)
# What a node may be at while it prepares, as it names it.
TRANSFERS: dict[str, Promise | str] = {
    "pull": _("Pull the image"),
    "copy": _("Copy the volume"),
    "inputs": _("Fetch the inputs"),
    "checkpoint": _("Keep the checkpoint"),
    "outputs": _("Collect the outputs"),
}


@dataclass(frozen=True)
class Transfer:
    """What nodes are bringing in: bytes done and in all (None while not known), over `replicas` of them together."""

    step: str
    replicas: int
    done_bytes: int
    total_bytes: int | None
    bytes_per_s: int

    @property
    def title(self) -> str:
        return str(TRANSFERS.get(self.step, self.step))

    @property
    def percent(self) -> int | None:
        """How much is done, rounded down, so that 100 means all."""
        return min(100, self.done_bytes * 100 // self.total_bytes) if self.total_bytes else None


@dataclass(frozen=True)
class Stage:
    """One step of this run. `state` is waiting, active, done or failed; times are milliseconds."""

    name: str
    title: str
    state: str
    started_at: datetime | None
    finished_at: datetime | None
    elapsed_ms: int | None
    typical_ms: int | None
    transfer: Transfer | None = None


def of(instances: Sequence[Instance], *, at: datetime) -> dict[int, list[Stage]]:
    """Return the steps of each instance's current run, by primary key.

    Two queries, one of them kept for a minute; one more while something is being prepared.
    """
    # A run that still stands in the queue did one thing, which its row tells; every launch is answered so.
    queued = {row.pk: row for row in instances if row.phase == Phase.QUEUED}
    events = {pk: [InstanceEvent(at=row.phase_since, new_phase=Phase.QUEUED)] for pk, row in queued.items()}
    runs = {row.pk: row.run for row in instances if row.pk not in queued}
    events |= {instance_id: [] for instance_id in runs}
    moves = InstanceEvent.objects.filter(instance__in=list(runs), kind=InstanceEvent.Kind.PHASE)
    for event in moves.order_by("pk") if runs else ():
        if event.run == runs[event.instance_id]:
            events[event.instance_id].append(event)
    typical, transfers = typical_ms(), _transfers(instances)
    return {
        instance_id: [
            _stage(
                name, str(title), phases, events=happened, typical=typical, at=at,
                transfer=transfers.get(instance_id) if Phase.PROVISIONING in phases else None,
            )
            for name, title, phases in STAGES
        ]
        for instance_id, happened in events.items()
    }  # fmt: skip


def _transfers(instances: Sequence[Instance]) -> dict[int, Transfer]:
    """Return what is being brought in for each instance that is being prepared."""
    runs = {row.pk: row.run for row in instances if row.phase == Phase.PROVISIONING}
    if not runs:
        return {}
    at_work = Assignment.objects.filter(
        instance__in=list(runs), observed=Assignment.Observed.PREPARING, progress__isnull=False
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for instance_id, fence, told in at_work.order_by("replica").values_list("instance_id", "fence", "progress"):
        if told and fence == runs[instance_id]:
            found.setdefault(instance_id, []).append(told)
    return {instance_id: _together(told) for instance_id, told in found.items()}


def _together(told: Sequence[Mapping[str, Any]]) -> Transfer:
    """Return the sum over the replicas that are at the same thing as the first of them."""
    same = [one for one in told if one["step"] == told[0]["step"]]
    totals = [one["total_bytes"] for one in same]
    return Transfer(
        step=told[0]["step"],
        replicas=len(same),
        done_bytes=sum(one["done_bytes"] for one in same),
        total_bytes=None if None in totals else sum(totals),
        bytes_per_s=sum(one["bytes_per_s"] for one in same),
    )


def stages(instance: Instance, *, at: datetime) -> list[Stage]:
    """Return the steps of one instance's current run."""
    return of([instance], at=at)[instance.pk]


def _stage(
    name: str,
    title: str,
    phases: Sequence[Phase],
    *,
    events: Sequence[InstanceEvent],
    typical: dict[str, int],
    transfer: Transfer | None,
    at: datetime,
) -> Stage:
    started = next((event.at for event in events if event.new_phase in phases), None)
    left = next((event for event in events if event.old_phase in phases and event.new_phase not in phases), None)
    if started is None:
        state = "waiting"
    elif left is None:
        state = "active"
    else:
        state = "failed" if left.new_phase == Phase.FAILED else "done"
    end = left.at if left else at
    known = [typical[phase] for phase in phases if phase in typical and phase in STARTING]
    return Stage(
        name=name,
        title=title,
        state=state,
        started_at=started,
        finished_at=left.at if left else None,
        elapsed_ms=None if started is None else max(end - started, timedelta(0)) // MILLISECOND,
        typical_ms=sum(known) if known else None,
        transfer=transfer if state == "active" else None,
    )


def typical_ms() -> dict[str, int]:
    """Return the median time that recent instances stood in each starting phase."""
    found: dict[str, int] | None = cache.get("typical_ms")
    if found is None:
        found = {}
        for phase in STARTING:
            # Only those that went on: to fail or to be called off takes another time.
            onward = InstanceEvent.objects.filter(
                kind=InstanceEvent.Kind.PHASE, old_phase=phase, new_phase__in=STARTING | CHARGED_PHASES
            )
            recent = onward.order_by("-pk")
            if sample := list(recent.values_list("milliseconds", flat=True)[:TYPICAL_SAMPLE]):
                found[phase] = round(median(sample))
        cache.set("typical_ms", found, TYPICAL_KEPT_S)
    return found
