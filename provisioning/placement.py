"""Where an instance runs: choose nodes, claim their GPUs all or nothing, give them back.

A claim is two statements. The first locks the chosen nodes and counts their
GPUs as taken; the second picks the GPUs. They cannot be one: a single
statement would read GPUs in the snapshot taken before the lock and hand one
out twice. The partial unique index on live holds is the last word. A node is
found through the index `node_best_fit`, so the size of the fleet does not matter.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import connection, transaction
from django.db.models import Count, Exists, F, IntegerField, OuterRef, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext, ngettext

from billing.public_ids import new_public_id
from provisioning.errors import NoCapacity
from provisioning.health import wipes
from provisioning.models import Assignment, Gpu, GpuHold, Instance, Node

LIVE_HOLD = GpuHold.objects.filter(gpu=OuterRef("pk"), released_at=None)

# From tightest to widest; an offer lives in one site, so the last level is the offer itself.
DOMAINS = (("fabric", "rack"), ("fabric",), ("offer",))
# A gang chooses its nodes before it locks them, so another claim may come between.
CHOICES_MAX = 5

TAKE_BEST_FIT = """
UPDATE provisioning_node SET free_gpus = free_gpus - %(gpus)s, desired_generation = desired_generation + 1
WHERE id = (
    SELECT id FROM provisioning_node
    WHERE offer_id = %(offer)s AND state = 'available' AND reachability = 'online' AND NOT is_held
        AND free_gpus >= %(gpus)s AND id <> %(avoid)s
    ORDER BY free_gpus, id LIMIT 1 FOR NO KEY UPDATE
)
RETURNING id
"""
TAKE_BEST_FIT_NOW = TAKE_BEST_FIT.replace("FOR NO KEY UPDATE", "FOR NO KEY UPDATE SKIP LOCKED")
# The one node on which a local volume of the instance lies.
TAKE_HOME = TAKE_BEST_FIT.replace("WHERE offer_id", "WHERE id = %(home)s AND offer_id")

TAKE_NODES = """
UPDATE provisioning_node SET free_gpus = free_gpus - wanted.gpus, desired_generation = desired_generation + 1
FROM unnest(%(nodes)s::bigint[], %(gpus)s::int[]) AS wanted (node_id, gpus) WHERE id = wanted.node_id
"""

# The n-th replica on a node gets the node's n-th handful of free GPUs.
TAKE_GPUS = """
WITH place AS (
    SELECT public_id, node_id, replica - 1 AS replica,
        row_number() OVER (PARTITION BY node_id ORDER BY replica) - 1 AS handful
    FROM unnest(%(public_ids)s::text[], %(nodes)s::bigint[]) WITH ORDINALITY AS wanted (public_id, node_id, replica)
), free AS (
    SELECT id, node_id, uuid, index,
        (row_number() OVER (PARTITION BY node_id ORDER BY index) - 1) / %(per_replica)s AS handful
    FROM provisioning_gpu gpu
    WHERE node_id = ANY (%(nodes)s::bigint[]) AND healthy AND state = 'clean'
        AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
), taken AS (
    SELECT free.id AS gpu_id, uuid, index, place.* FROM free JOIN place USING (node_id, handful)
), assigned AS (
    INSERT INTO provisioning_assignment (public_id, instance_id, node_id, replica, fence, gpu_uuids, desired, observed,
        message, log_bytes, ports, created_at)
    SELECT public_id, %(instance)s, node_id, replica, %(fence)s, jsonb_agg(uuid ORDER BY index), 'prepared', 'pending',
        '', 0, '{}', %(at)s
    FROM taken GROUP BY public_id, node_id, replica
    RETURNING id, public_id, node_id, replica, gpu_uuids
), held AS (
    INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at)
    SELECT gpu_id, assigned.id, %(at)s FROM taken JOIN assigned USING (replica)
)
SELECT assigned.id, assigned.public_id, replica, gpu_uuids, node.id, node.name
FROM assigned JOIN provisioning_node node ON node.id = node_id ORDER BY replica
"""


def placeable(offer_id: int) -> QuerySet[Node]:
    """Return the nodes of an offer on which something may be placed now."""
    return Node.objects.filter(
        offer_id=offer_id, state=Node.State.AVAILABLE, reachability=Node.Reachability.ONLINE, is_held=False
    )


def claim(*, instance: Instance, at: datetime, home: int | None = None) -> list[Assignment]:
    """Claim GPUs for every replica of this run, or raise NoCapacity with nothing claimed.

    Runs inside the caller's transaction. Replicas share the tightest domain
    that has room: one node, else one rack, one fabric, the offer's site. The
    node that failed the last run is taken only where there is no other. With a
    `home`, where a local volume of theirs lies, all of them run there or nowhere.
    """
    if home is not None:
        node_id = _take_best_fit(instance, avoid=0, home=home)
        if node_id is None:
            raise NoCapacity(_why_not_home(instance, home))
        return _take_gpus(instance, [node_id] * instance.replicas, at)
    failed_on = instance.failed_on_id or 0
    for avoid in (failed_on, 0) if failed_on else (0,):
        if found := _claim(instance, at, avoid=avoid):
            return found
    raise NoCapacity(_why(instance))


def _claim(instance: Instance, at: datetime, *, avoid: int) -> list[Assignment]:
    node_id = _take_best_fit(instance, avoid=avoid)
    if node_id is not None:
        return _take_gpus(instance, [node_id] * instance.replicas, at)
    for _ in range(CHOICES_MAX if instance.replicas > 1 else 0):
        places = _choose(instance, avoid=avoid)
        if places is None:
            break
        # The savepoint gives the locks back when the choice was overtaken: the next one must begin in id order again.
        with transaction.atomic():
            if _take_nodes(instance, places):
                return _take_gpus(instance, places, at)
            transaction.set_rollback(True)
    return []


def release(*, instance: Instance, at: datetime) -> None:
    """Give back every GPU of this instance. Only for what is confirmed gone; releasing twice changes nothing.

    It fails closed: a GPU without a good record of its wipe stays out of placement.
    """
    held = GpuHold.objects.filter(assignment__instance=instance, released_at=None)
    node_ids = sorted(set(held.values_list("gpu__node_id", flat=True)))
    lock(node_ids)
    wipes.settle_released(held.select_related("assignment__node"))
    held.update(released_at=at)
    recount(node_ids)


def places(instances: Iterable[Instance]) -> list[Assignment]:
    """Return where the current run of each instance is or was, by replica. One query, none for a claim of just now."""
    instances = list(instances)
    known = [row for instance in instances for row in instance.claimed if row.fence == instance.run]
    runs = {instance.pk: instance.run for instance in instances}
    for row in known:
        runs.pop(row.instance_id, None)
    if not runs:
        return known
    rows = (
        Assignment.objects.filter(instance__in=list(runs))
        .select_related("node__heartbeat")
        .order_by("instance", "replica")
    )
    rows = rows.only("instance_id", "fence", "replica", "gpu_uuids", "observed", "ports", "node__name",
                     "node__heartbeat__access", "node__heartbeat__hostname")  # fmt: skip
    return known + [row for row in rows if row.fence == runs[row.instance_id]]


def lock(node_ids: Iterable[int]) -> list[Node]:
    """Lock node rows in id order, so that two claims and releases cannot deadlock."""
    return list(Node.objects.select_for_update(no_key=True).filter(pk__in=list(node_ids)).order_by("pk"))


def recount(node_ids: Iterable[int]) -> None:
    """Set `free_gpus` from the GPUs themselves. The caller holds the locks of these nodes."""
    free = (
        Gpu.objects.filter(node=OuterRef("pk"), healthy=True, state=Gpu.State.CLEAN)
        .filter(~Exists(LIVE_HOLD))
        .order_by()
        .values("node")
        .annotate(count=Count("pk"))
        .values("count")
    )
    Node.objects.filter(pk__in=list(node_ids)).update(
        free_gpus=Coalesce(Subquery(free, output_field=IntegerField()), Value(0))
    )


def _take_best_fit(instance: Instance, *, avoid: int, home: int | None = None) -> int | None:
    """Lock the fullest node that has room for all replicas and count their GPUs as taken; None where there is none.

    Nodes that are being claimed this moment are passed over, and waited for only when there is no other.
    """
    with connection.cursor() as cursor:
        for take in (TAKE_BEST_FIT_NOW, TAKE_BEST_FIT) if home is None else (TAKE_HOME,):
            wanted = {"offer": instance.offer_id, "gpus": instance.gpus, "avoid": avoid, "home": home}
            cursor.execute(take, wanted)
            if found := cursor.fetchone():
                return int(found[0])
    return None


def _choose(instance: Instance, *, avoid: int) -> list[int] | None:
    """Return a node for each replica, in the tightest domain that has room; None where even the site has none."""
    per_replica = instance.gpus_per_replica
    nodes = placeable(instance.offer_id).filter(free_gpus__gte=per_replica).exclude(pk=avoid)
    # Integer division of the column: how many replicas fit on a node.
    for domain in DOMAINS:
        room = nodes.values(*domain).annotate(room=Sum(F("free_gpus") / per_replica))
        tightest = room.filter(room__gte=instance.replicas).order_by("room", *domain).first()
        if tightest is not None:
            return _spread(instance, nodes.filter(**{name: tightest[name] for name in domain}))
    return None


def _spread(instance: Instance, inside: QuerySet[Node]) -> list[int] | None:
    """Return a node for each replica on as few nodes as possible; the last is the fullest that can take the rest."""
    left, places = instance.replicas, list[int]()
    largest = inside.order_by("-free_gpus", "pk").values_list("pk", "free_gpus")[:left]
    for node_id, free_gpus in largest:
        room = free_gpus // instance.gpus_per_replica
        if room >= left:
            rest = inside.filter(free_gpus__gte=left * instance.gpus_per_replica).exclude(pk__in=places)
            last = rest.order_by("free_gpus", "pk").values_list("pk", flat=True).first()
            return None if last is None else places + [last] * left
        places += [node_id] * room
        left -= room
    return None


def _take_nodes(instance: Instance, places: Sequence[int]) -> bool:
    """Lock the chosen nodes and count their GPUs as taken; False if another claim has taken some of them meanwhile."""
    wanted = {node_id: count * instance.gpus_per_replica for node_id, count in Counter(places).items()}
    free = {
        node.pk: node.free_gpus
        for node in lock(wanted)
        if node.state == Node.State.AVAILABLE and node.reachability == Node.Reachability.ONLINE and not node.is_held
    }
    if any(free.get(node_id, 0) < gpus for node_id, gpus in wanted.items()):
        return False
    with connection.cursor() as cursor:
        cursor.execute(TAKE_NODES, {"nodes": list(wanted), "gpus": list(wanted.values())})
    return True


def _take_gpus(instance: Instance, places: Sequence[int], at: datetime) -> list[Assignment]:
    """Hold free GPUs of nodes that are locked and counted already; return an assignment for each replica."""
    with connection.cursor() as cursor:
        cursor.execute(
            TAKE_GPUS,
            {
                "public_ids": [new_public_id("asg") for _ in places],
                "nodes": list(places),
                "per_replica": instance.gpus_per_replica,
                "instance": instance.pk,
                "fence": instance.run,
                "at": at,
            },
        )
        assignments = [
            Assignment(
                pk=pk, public_id=public_id, instance=instance, replica=replica, fence=instance.run,
                gpu_uuids=json.loads(gpu_uuids), created_at=at, node=Node.from_db(None, ["id", "name"], node),
            )
            for pk, public_id, replica, gpu_uuids, *node in cursor.fetchall()
        ]  # fmt: skip
    held = [uuid for assignment in assignments for uuid in assignment.gpu_uuids]
    assert len(held) == instance.gpus, f"nodes {sorted(set(places))} do not have the free GPUs that they count"
    return assignments


def _why_not_home(instance: Instance, home: int) -> str:
    node = Node.objects.get(pk=home)
    shown = {"node": node.name, "gpus": instance.gpus, "free": node.free_gpus, "offer": instance.offer}
    if node.offer_id != instance.offer_id:
        return (
            gettext("Its volume lies on node %(node)s, which is not of %(offer)s; launch the offer of that node.")
            % shown
        )
    if node.state != Node.State.AVAILABLE or node.reachability != Node.Reachability.ONLINE:
        return gettext("Its volume lies on node %(node)s, which takes no instances now.") % shown
    return (
        ngettext(
            "Its volume lies on node %(node)s, which has %(free)s free GPU now; %(gpus)s are asked for.",
            "Its volume lies on node %(node)s, which has %(free)s free GPUs now; %(gpus)s are asked for.",
            node.free_gpus,
        )
        % shown
    )


def _why(instance: Instance) -> str:
    free = placeable(instance.offer_id).aggregate(free=Coalesce(Sum("free_gpus"), Value(0)))["free"]
    shape = f"{instance.replicas} × {instance.gpus_per_replica}" if instance.replicas > 1 else f"{instance.gpus}"
    text = ngettext(
        "%(shape)s GPU of %(offer)s is not free now; %(free)s are, over all its nodes.",
        "%(shape)s GPUs of %(offer)s are not free now; %(free)s are, over all its nodes.",
        instance.gpus,
    )
    return text % {
        "shape": shape,
        "offer": instance.offer,
        "free": free,
    }
