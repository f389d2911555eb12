"""What the console asks of the fleet: its figures, its nodes and what each of them carries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.utils.functional import Promise

from billing.models import Runway
from marketplace import money
from marketplace.console import wiring
from marketplace.errors import NotFound
from marketplace.models import AuditEntry
from provisioning import nodes
from provisioning.models import CHARGED_PHASES, Gpu, GpuHold, Heartbeat, Instance, Node

OUT_OF_SERVICE = {Node.State.NEW, Node.State.RETIRED}
HISTORY_MAX = 10
MILLIJOULES_PER_KWH = 3_600_000_000
MILLIWATTS_PER_WATT = 1000


@dataclass(frozen=True)
class Glance:
    """The fleet in figures, as of `as_of`. GPUs of nodes that never joined or are retired do not count."""

    gpus: int
    free: int
    held: int
    running: int
    revenue: Sequence[str]
    reachability: Sequence[tuple[str, str | Promise, int]]
    as_of: datetime

    @property
    def fill_percent(self) -> str:
        """The held part of all GPUs, with one digit after the point; empty where there are none."""
        return f"{Decimal(100 * self.held) / self.gpus:.1f}" if self.gpus else ""


def glance(*, at: datetime) -> Glance:
    """Return the figures of the whole fleet. Four queries."""
    groups = (
        Node.objects.exclude(state=Node.State.RETIRED)
        .values("state", "reachability", "is_held")
        .annotate(nodes=Count("pk"), gpu_total=Sum("gpu_count"), free=Sum("free_gpus"))
    )
    rows = list(groups.order_by())
    sellable = (Node.State.AVAILABLE, Node.Reachability.ONLINE, False)
    burn = Runway.objects.filter(burn_micros_per_hour__gt=0).values_list("organization__currency")
    revenue = burn.annotate(total=Sum("burn_micros_per_hour")).order_by("organization__currency")
    return Glance(
        gpus=sum(row["gpu_total"] for row in rows if row["state"] not in OUT_OF_SERVICE),
        free=sum(row["free"] for row in rows if (row["state"], row["reachability"], row["is_held"]) == sellable),
        held=GpuHold.objects.filter(released_at=None).count(),
        running=Instance.objects.filter(phase__in=CHARGED_PHASES).count(),
        revenue=[money.shown(micros, currency) for currency, micros in revenue],
        reachability=[
            (value, label, sum(row["nodes"] for row in rows if row["reachability"] == value))
            for value, label in Node.Reachability.choices
        ],
        as_of=at,
    )


def listed(
    *, site: str = "", offer: str = "", state: str = "", reachability: str = "", search: str = ""
) -> QuerySet[Node]:
    """Return the nodes that all given filters let through, by name. Sites and offers are named by their slugs."""
    found = Node.objects.select_related("fabric__site", "offer", "heartbeat").order_by("name")
    wanted = {
        "fabric__site__slug": site,
        "offer__slug": offer,
        "state": state,
        "reachability": reachability,
        "name__icontains": search.strip(),
    }
    return found.filter(**{lookup: value for lookup, value in wanted.items() if value})


def node_for(node_id: str) -> Node:
    """Return a node with what its page shows around it, or raise NotFound."""
    node = (
        Node.objects.select_related("fabric__site", "offer", "heartbeat", "inventory").filter(public_id=node_id).first()
    )
    if node is None:
        raise NotFound
    return node


def living_on(node: Node) -> QuerySet[Instance]:
    """Return whom a drain of this node would stop."""
    return nodes.living_on(node).select_related("project__organization", "price_version").order_by("pk")


@dataclass(frozen=True)
class Reading:
    """A GPU of a node, who holds it, and what was read from it last; None is what it does not tell, and is not zero."""

    gpu: Gpu
    held_by: Instance | None
    utilization_percent: int | None
    memory_used_mib: int | None
    power_watts: Decimal | None
    temperature_c: int | None
    energy_kwh: Decimal | None
    ecc_uncorrected: int | None
    rows_pending: bool | None
    reasons: list[str] | None
    """Why its clocks are not at their highest, in NVIDIA's words."""
    facts: list[tuple[Any, Any]]


def readings(node: Node) -> list[Reading]:
    """Return the node's GPUs with their latest readings. Two queries."""
    heartbeat = heartbeat_of(node)
    telemetry = _by_uuid(heartbeat.telemetry if heartbeat else ())
    energy = _by_uuid(heartbeat.energy if heartbeat else ())
    live = GpuHold.objects.filter(released_at=None, gpu__node=node).select_related("assignment__instance")
    held_by = {hold.gpu_id: hold.assignment.instance for hold in live}
    return [
        _reading(gpu, held_by.get(gpu.pk), telemetry.get(gpu.uuid, {}), energy.get(gpu.uuid, {}))
        for gpu in node.gpus.filter(removed_at=None).order_by("index")
    ]


def heartbeat_of(node: Node) -> Heartbeat | None:
    """Return when the node last called, or None if it never did."""
    return getattr(node, "heartbeat", None)


def _reading(gpu: Gpu, held_by: Instance | None, told: Mapping[str, Any], energy: Mapping[str, Any]) -> Reading:
    milliwatts, millijoules = _number(told.get("power_mw")), _number(energy.get("millijoules"))
    return Reading(
        gpu=gpu,
        held_by=held_by,
        utilization_percent=_number(told.get("utilization_percent")),
        memory_used_mib=_number(told.get("memory_used_mib")),
        power_watts=None if milliwatts is None else Decimal(milliwatts) / MILLIWATTS_PER_WATT,
        temperature_c=_number(told.get("temperature_c")),
        energy_kwh=None if millijoules is None else Decimal(millijoules) / MILLIJOULES_PER_KWH,
        ecc_uncorrected=_number(told.get("ecc_volatile_uncorrected")),
        rows_pending=told.get("rows_pending"),
        reasons=told.get("clocks_event_reasons"),
        facts=wiring.facts(gpu),
    )


def _by_uuid(told: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {str(reading.get("uuid")): reading for reading in told}


def _number(value: object) -> int | None:
    """Nodes are not to be trusted: what is no number was not told."""
    return round(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def history(subject_id: str) -> QuerySet[AuditEntry]:
    """Return the latest changes of one thing, the newest first."""
    return AuditEntry.objects.filter(subject_id=subject_id).order_by("-pk")[:HISTORY_MAX]
