"""Where an instance runs: choose nodes, claim their GPUs all or nothing, give them back.

A claim locks the chosen node rows first and reads their GPUs in a second
statement: a single statement would read GPUs in the snapshot taken before the
lock and hand one out twice. The partial unique index on live holds is the last
word. A claim on one node costs five short statements whatever the fleet's
size: the node comes from the index `node_best_fit`.
"""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import Count, Exists, F, IntegerField, OuterRef, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext

from provisioning.errors import NoCapacity
from provisioning.models import Assignment, Gpu, GpuHold, Instance, Node

LIVE_HOLD = GpuHold.objects.filter(gpu=OuterRef("pk"), released_at=None)

# From tightest to widest; an offer lives in one site, so the last level is the offer itself.
DOMAINS = (("fabric", "rack"), ("fabric",), ("offer",))


def placeable(offer_id: int) -> QuerySet[Node]:
    """Return the nodes of an offer on which something may be placed now."""
    return Node.objects.filter(offer_id=offer_id, state=Node.State.AVAILABLE, reachability=Node.Reachability.ONLINE)


def claim(*, instance: Instance, at: datetime) -> list[Assignment]:
    """Claim GPUs for every replica of this run, or raise NoCapacity with nothing claimed.

    Runs inside the caller's transaction. Replicas share the tightest domain
    that has room: one node, else one rack, one fabric, the offer's site.
    """
    places = _choose(instance)
    counts: dict[int, int] = {}
    for node in places:
        counts[node.pk] = counts.get(node.pk, 0) + 1
    free = _free_gpus(counts)
    assignments = []
    taken: list[list[Gpu]] = []
    for replica, node in enumerate(places):
        gpus = [free[node.pk].pop(0) for _ in range(instance.gpus_per_replica)]
        taken.append(gpus)
        assignments.append(
            Assignment(
                instance=instance,
                node=node,
                replica=replica,
                fence=instance.run,
                gpu_uuids=[gpu.uuid for gpu in gpus],
                created_at=at,
            )
        )
    Assignment.objects.bulk_create(assignments)
    GpuHold.objects.bulk_create(
        GpuHold(gpu=gpu, assignment=assignment, taken_at=at)
        for assignment, gpus in zip(assignments, taken, strict=True)
        for gpu in gpus
    )
    for node_id, replicas in counts.items():
        Node.objects.filter(pk=node_id).update(
            free_gpus=F("free_gpus") - replicas * instance.gpus_per_replica,
            desired_generation=F("desired_generation") + 1,
        )
    return assignments


def release(*, instance: Instance, at: datetime) -> None:
    """Give back every GPU of this instance. Only for what is confirmed gone; releasing twice changes nothing."""
    held = GpuHold.objects.filter(assignment__instance=instance, released_at=None)
    node_ids = sorted(set(held.values_list("gpu__node_id", flat=True)))
    lock(node_ids)
    held.update(released_at=at)
    recount(node_ids)


def places(instances: Iterable[Instance]) -> list[Assignment]:
    """Return where the current run of each instance is or was, by replica. One query."""
    runs = {instance.pk: instance.run for instance in instances}
    rows = Assignment.objects.filter(instance__in=list(runs)).select_related("node").order_by("instance", "replica")
    return [row for row in rows if row.fence == runs[row.instance_id]]


def lock(node_ids: Iterable[int]) -> list[Node]:
    """Lock node rows in id order, so that two claims and releases cannot deadlock."""
    return list(Node.objects.select_for_update(no_key=True).filter(pk__in=list(node_ids)).order_by("pk"))


def recount(node_ids: Iterable[int]) -> None:
    """Set `free_gpus` from the GPUs themselves. The caller holds the locks of these nodes."""
    free = (
        Gpu.objects.filter(node=OuterRef("pk"), healthy=True)
        .filter(~Exists(LIVE_HOLD))
        .order_by()
        .values("node")
        .annotate(count=Count("pk"))
        .values("count")
    )
    Node.objects.filter(pk__in=list(node_ids)).update(
        free_gpus=Coalesce(Subquery(free, output_field=IntegerField()), Value(0))
    )


def _choose(instance: Instance) -> list[Node]:
    """Return one locked node per replica, or raise NoCapacity."""
    per_replica, replicas = instance.gpus_per_replica, instance.replicas
    nodes = placeable(instance.offer_id).filter(free_gpus__gte=per_replica)
    nodes = nodes.only("pk", "free_gpus", "fabric_id", "rack")
    whole = nodes.filter(free_gpus__gte=per_replica * replicas).order_by("free_gpus", "pk")
    # Pass over nodes that are being claimed this moment; wait for one only when there is no other.
    for skip_locked in (True, False):
        node = whole.select_for_update(no_key=True, skip_locked=skip_locked).first()
        if node is not None:
            return [node] * replicas
    for domain in DOMAINS if replicas > 1 else ():
        # Integer division of the column: how many replicas fit on a node.
        fitting = nodes.values(*domain).annotate(room=Sum(F("free_gpus") / per_replica)).filter(room__gte=replicas)
        tightest = fitting.order_by("room", *domain).first()
        if tightest is None:
            continue
        # Fewest nodes first; a gang of n replicas never needs more than n nodes. Locked in id order.
        inside = nodes.filter(**{name: tightest[name] for name in domain}).order_by("-free_gpus", "pk")
        chosen = list(inside.values_list("pk", flat=True)[:replicas])
        locked = nodes.filter(pk__in=chosen).select_for_update(no_key=True).order_by("pk")
        places = [node for node in locked for _ in range(node.free_gpus // per_replica)][:replicas]
        if len(places) == replicas:
            return places
    raise NoCapacity(_why(instance))


def _why(instance: Instance) -> str:
    free = placeable(instance.offer_id).aggregate(free=Coalesce(Sum("free_gpus"), Value(0)))["free"]
    shape = f"{instance.replicas} × {instance.gpus_per_replica}" if instance.replicas > 1 else f"{instance.gpus}"
    return gettext("%(shape)s GPUs of %(offer)s are not free now; %(free)s are, over all its nodes.") % {
        "shape": shape,
        "offer": instance.offer,
        "free": free,
    }


def _free_gpus(counts: dict[int, int]) -> dict[int, list[Gpu]]:
    free: dict[int, list[Gpu]] = {node_id: [] for node_id in counts}
    gpus = Gpu.objects.filter(~Exists(LIVE_HOLD), node__in=list(counts), healthy=True).order_by("node", "index")
    for gpu in gpus.only("pk", "uuid", "node_id"):
        free[gpu.node_id].append(gpu)
    return free
