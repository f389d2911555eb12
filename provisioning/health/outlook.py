"""What a repair means for those who still run on the part: why, and until when they may go on."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import Q

from provisioning.models import Assignment, Instance, NodeHold, Remediation

FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Outlook:
    """The repair that waits for an instance, or will end it at `ends_at`; None: it may go on as long as it likes.

    `part` is gpu (one of its own) or node. `is_node_held`: nothing new is placed on the node.
    """

    part: str
    node: str
    reason: str
    since: datetime
    ends_at: datetime | None
    is_node_held: bool


def of(instances: Iterable[Instance]) -> dict[int, Outlook]:
    """Return the repair that matters most to each degraded instance, by primary key. Where none is: no query."""
    degraded = [one.pk for one in instances if one.is_charged and one.health == Instance.Health.DEGRADED]
    if not degraded:
        return {}
    live = Assignment.objects.filter(instance__in=degraded).exclude(observed=Assignment.Observed.GONE)
    used = list(live.filter(holds__released_at=None).values_list("instance_id", "node_id", "holds__gpu_id"))
    nodes, gpus = {node for _, node, _ in used}, {gpu for *_, gpu in used if gpu is not None}
    begun = Remediation.objects.filter(closed_at=None).exclude(state=Remediation.State.WAITING)
    repairs = list(begun.filter(Q(gpu__in=gpus) | Q(gpu=None, node__in=nodes)).select_related("node"))
    held = set(NodeHold.objects.filter(node__in=nodes, released_at=None).values_list("node_id", flat=True))
    found = {}
    for instance_id in degraded:
        own = [(node, gpu) for pk, node, gpu in used if pk == instance_id]
        theirs = [one for one in repairs if any(_concerns(one, node, gpu) for node, gpu in own)]
        if theirs:
            first = min(theirs, key=lambda one: (one.drain_until or FOREVER, -one.severity, one.pk))
            found[instance_id] = _outlook(first, is_node_held=first.node_id in held)
    return found


def _concerns(repair: Remediation, node_id: int, gpu_id: int | None) -> bool:
    return repair.gpu_id == gpu_id if repair.gpu_id is not None else repair.node_id == node_id


def _outlook(repair: Remediation, *, is_node_held: bool) -> Outlook:
    return Outlook(
        part="gpu" if repair.gpu_id is not None else "node",
        node=repair.node.name,
        reason=repair.reason,
        since=repair.opened_at,
        ends_at=repair.drain_until,
        is_node_held=is_node_held,
    )
