"""What needs a capacity manager: silent nodes, broken GPUs, instances that do not move, customers about to run dry."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_

from django.db.models import BooleanField, ExpressionWrapper, Prefetch, Q, QuerySet
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from billing import runway
from marketplace.console import clusters, fleet, health
from marketplace.errors import NotFound
from provisioning.models import CHARGED_PHASES, Assignment, Gpu, Heartbeat, Instance, InstanceEvent, Node, Phase

SHOWN_PER_KIND = 20
SKEW_MAX_MS = 60_000
INSTANCES_MAX = 200
EVENTS_MAX = 50
FAILED_WITHIN = timedelta(hours=24)
FAILED_ALARM = timedelta(hours=1)
OVERDUE_AFTER = timedelta(seconds=30)
# How long a step may take before somebody should look; each fails by itself only later (`steps.DEADLINES`).
STUCK_AFTER = {
    "place": timedelta(minutes=5),
    "create": timedelta(seconds=15),
    "prepare": timedelta(minutes=10),
    "verify": timedelta(seconds=10),
    "begin": timedelta(seconds=15),
    "tear_down": timedelta(seconds=60),
}
# Where no image is pulled, a node is ready at once.
PROCESS_STUCK_AFTER = timedelta(seconds=20)
KINDS: dict[str, Promise] = {
    "unreachable": _("Unreachable"),
    "failing": _("Step keeps failing"),
    "overdue": _("Nobody works on it"),
    "stuck": _("Stuck in a step"),
    "failed": _("Failed"),
}
RED_KINDS = {"unreachable", "failing", "overdue"}


@dataclass(frozen=True)
class Trouble:
    """One line of the list that comes first. `page` and `subject_id` name the page where something can be done."""

    is_red: bool
    what: str
    subject: str
    detail: str
    since: datetime | None
    page: str
    subject_id: str = ""


@dataclass(frozen=True)
class Alarm:
    """All troubles, red ones first; `is_cut` tells that a kind has more than are shown."""

    troubles: Sequence[Trouble]
    is_cut: bool


def rules(*, at: datetime, failed_within: timedelta) -> dict[str, Q]:
    """Return, for each kind of trouble, which instances are in it."""
    in_step = [Q(workflow__step=step, workflow__step_since__lt=at - after) for step, after in STUCK_AFTER.items()]
    in_step.append(
        Q(workflow__step="prepare", workflow__step_since__lt=at - PROCESS_STUCK_AFTER, offer__runtime="process")
    )
    in_nobodys_hands = Q(workflow__lease_until=None) | Q(workflow__lease_until__lt=at)
    return {
        "unreachable": Q(health=Instance.Health.UNREACHABLE, phase__in=CHARGED_PHASES),
        "failing": Q(workflow__failures__gt=0),
        "overdue": Q(workflow__due_at__lt=at - OVERDUE_AFTER) & in_nobodys_hands,
        "stuck": reduce(or_, in_step),
        "failed": Q(phase=Phase.FAILED, phase_since__gt=at - failed_within),
    }


def instances(*, at: datetime, kind: str = "", failed_within: timedelta = FAILED_WITHIN) -> QuerySet[Instance]:
    """Return the instances in trouble (of one kind if named), each with `is_<kind>` for every kind."""
    known = rules(at=at, failed_within=failed_within)
    wanted = known[kind] if kind else reduce(or_, known.values())
    marks = {f"is_{name}": ExpressionWrapper(rule, output_field=BooleanField()) for name, rule in known.items()}
    here = Assignment.objects.exclude(observed=Assignment.Observed.GONE).select_related("node").order_by("pk")
    found = Instance.objects.filter(~Q(phase=Phase.TERMINATED), wanted).annotate(**marks)
    found = found.select_related("project__organization", "offer", "workflow")
    return found.prefetch_related(Prefetch("assignments", here, to_attr="live")).order_by("-phase_since", "-pk")


def kinds_of(instance: Instance) -> list[str]:
    """Return which kinds of trouble an instance of `instances` is in."""
    return [kind for kind in KINDS if getattr(instance, f"is_{kind}")]


def instance_for(instance_id: str) -> Instance:
    """Return any instance with what its page shows around it, or raise NotFound."""
    found = Instance.objects.select_related("project__organization", "offer__site", "workflow", "price_version")
    instance = found.filter(public_id=instance_id).first()
    if instance is None:
        raise NotFound
    return instance


def assignments_of(instance: Instance) -> QuerySet[Assignment]:
    """Return where an instance's present run is, replica by replica."""
    found = Assignment.objects.filter(instance=instance, fence=instance.run)
    return found.select_related("node").order_by("replica")


def events_of(instance: Instance) -> QuerySet[InstanceEvent]:
    """Return the latest moves of an instance, the newest first."""
    return InstanceEvent.objects.filter(instance=instance).order_by("-pk")[:EVENTS_MAX]


def alarm(*, at: datetime) -> Alarm:
    """Return everything that needs somebody. Nine queries, whatever the fleet's size."""
    kinds = [
        list(_silent_clusters(at)),
        list(_breakers()),
        list(_silent_nodes()),
        list(_broken_gpus()),
        list(_wrong_clocks()),
        list(_repairs()),
        list(_instances(at)),
        list(_running_dry(at)),
    ]
    shown = [trouble for kind in kinds for trouble in kind[:SHOWN_PER_KIND]]
    return Alarm(
        troubles=sorted(shown, key=lambda trouble: not trouble.is_red),
        is_cut=any(len(kind) > SHOWN_PER_KIND for kind in kinds),
    )


def _silent_clusters(at: datetime) -> Iterator[Trouble]:
    for cluster in clusters.silent(at=at)[: SHOWN_PER_KIND + 1]:
        yield Trouble(
            is_red=True,
            what=gettext("Slurm cluster does not answer"),
            subject=cluster.name,
            detail=cluster.last_error,
            since=cluster.last_contact or cluster.created_at,
            page="console-cluster",
            subject_id=cluster.public_id,
        )


def _breakers() -> Iterator[Trouble]:
    for breaker in health.open_breakers()[: SHOWN_PER_KIND + 1]:
        yield Trouble(
            is_red=True,
            what=gettext("Breaker open: nothing is repaired"),
            subject=str(breaker.offer or gettext("the fleet")),
            detail=breaker.reason,
            since=breaker.opened_at,
            page="console-health",
        )


def _repairs() -> Iterator[Trouble]:
    for repair in health.needing_somebody()[: SHOWN_PER_KIND + 1]:
        yield Trouble(
            is_red=True,
            what=repair.get_state_display(),
            subject=f"{repair.node.name} · GPU {repair.gpu.index}" if repair.gpu else repair.node.name,
            detail=f"{repair.reason} {repair.message}".strip(),
            since=repair.state_since,
            page="console-health",
        )


def _silent_nodes() -> Iterator[Trouble]:
    silent = (Node.Reachability.SUSPECT, Node.Reachability.UNREACHABLE, Node.Reachability.LOST)
    found = Node.objects.filter(reachability__in=silent).exclude(state=Node.State.RETIRED)
    for node in found.select_related("fabric__site", "heartbeat").order_by("heartbeat__last_seen")[
        : SHOWN_PER_KIND + 1
    ]:
        yield Trouble(
            is_red=node.reachability != Node.Reachability.SUSPECT,
            what=gettext("Silent node"),
            subject=node.name,
            detail=f"{node.get_reachability_display()} · {node.fabric.site}",
            since=heartbeat.last_seen if (heartbeat := fleet.heartbeat_of(node)) else None,
            page="console-node",
            subject_id=node.public_id,
        )


def _broken_gpus() -> Iterator[Trouble]:
    broken = Gpu.objects.filter(healthy=False).exclude(node__state=Node.State.RETIRED).select_related("node")
    for gpu in broken.order_by("node__name", "index")[: SHOWN_PER_KIND + 1]:
        yield Trouble(
            is_red=True,
            what=gettext("GPU not healthy"),
            subject=f"{gpu.node.name} · GPU {gpu.index}",
            detail=gpu.uuid,
            since=None,
            page="console-node",
            subject_id=gpu.node.public_id,
        )


def _wrong_clocks() -> Iterator[Trouble]:
    """Times of the node itself (its logs, its certificates) are wrong; leases and bills do not go by them."""
    skewed = Q(clock_skew_ms__gt=SKEW_MAX_MS) | Q(clock_skew_ms__lt=-SKEW_MAX_MS)
    found = Heartbeat.objects.filter(skewed, node__reachability=Node.Reachability.ONLINE).select_related("node")
    for heartbeat in found.defer("telemetry", "energy").order_by("node__name")[: SHOWN_PER_KIND + 1]:
        seconds = round((heartbeat.clock_skew_ms or 0) / 1000)
        ahead, behind = gettext("%(seconds)s s ahead of ours"), gettext("%(seconds)s s behind ours")
        yield Trouble(
            is_red=False,
            what=gettext("Clock is wrong"),
            subject=heartbeat.node.name,
            detail=(ahead if seconds > 0 else behind) % {"seconds": abs(seconds)},
            since=None,
            page="console-node",
            subject_id=heartbeat.node.public_id,
        )


def _instances(at: datetime) -> Iterator[Trouble]:
    for instance in instances(at=at, failed_within=FAILED_ALARM)[: SHOWN_PER_KIND + 1]:
        kinds = kinds_of(instance)
        is_failed = kinds == ["failed"]
        yield Trouble(
            is_red=bool(RED_KINDS & set(kinds)),
            what=" · ".join(str(KINDS[kind]) for kind in kinds),
            subject=instance.name,
            detail=instance.message if is_failed else instance.workflow.last_error or instance.workflow.step,
            since=instance.phase_since if is_failed else instance.workflow.step_since,
            page="console-instance",
            subject_id=instance.public_id,
        )


def _running_dry(at: datetime) -> Iterator[Trouble]:
    for row in runway.running_low(at=at).select_related("organization")[: SHOWN_PER_KIND + 1]:
        assert row.exhausts_at is not None
        minutes = max(0, int((row.exhausts_at - at).total_seconds()) // 60)
        yield Trouble(
            is_red=row.exhausts_at <= at + runway.CRITICAL,
            what=gettext("Runs out of money"),
            subject=row.organization.name,
            detail=gettext("in %(minutes)s minutes") % {"minutes": minutes} if minutes else gettext("now"),
            since=None,
            page="console-organization",
            subject_id=row.organization.public_id,
        )
