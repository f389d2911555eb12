"""The steps of a start, as every door shows them: what is done, what is under way, how long it usually takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from django.core.cache import cache
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from provisioning.models import CHARGED_PHASES, STARTING, Instance, InstanceEvent, Phase

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


def of(instances: Sequence[Instance], *, at: datetime) -> dict[int, list[Stage]]:
    """Return the steps of each instance's current run, by primary key. Two queries, one of them kept for a minute."""
    # A run that still stands in the queue did one thing, which its row tells; every launch is answered so.
    queued = {row.pk: row for row in instances if row.phase == Phase.QUEUED}
    events = {pk: [InstanceEvent(at=row.phase_since, new_phase=Phase.QUEUED)] for pk, row in queued.items()}
    runs = {row.pk: row.run for row in instances if row.pk not in queued}
    events |= {instance_id: [] for instance_id in runs}
    for event in InstanceEvent.objects.filter(instance__in=list(runs)).order_by("pk") if runs else ():
        if event.run == runs[event.instance_id]:
            events[event.instance_id].append(event)
    typical = typical_ms()
    return {
        instance_id: [
            _stage(name, str(title), phases, events=happened, typical=typical, at=at) for name, title, phases in STAGES
        ]
        for instance_id, happened in events.items()
    }


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
    )


def typical_ms() -> dict[str, int]:
    """Return the median time that recent instances stood in each starting phase."""
    found: dict[str, int] | None = cache.get("typical_ms")
    if found is None:
        found = {}
        for phase in STARTING:
            # Only those that went on: to fail or to be called off takes another time.
            onward = InstanceEvent.objects.filter(old_phase=phase, new_phase__in=STARTING | CHARGED_PHASES)
            recent = onward.order_by("-pk")
            if sample := list(recent.values_list("milliseconds", flat=True)[:TYPICAL_SAMPLE]):
                found[phase] = round(median(sample))
        cache.set("typical_ms", found, TYPICAL_KEPT_S)
    return found
