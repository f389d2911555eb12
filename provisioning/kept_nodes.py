"""Nodes that are to be somebody's place: an order's that waits, or a block's of whole nodes.

It stands in the nodes' own rows, so that every door and every process keeps to
it: a choice leaves them out (`shards`), and a claim looks again once it has the
row (`taking.FITS`).
"""

from collections.abc import Collection, Mapping

from django.db import connection, transaction
from django.db.models import Count

from provisioning import alone, placement, shards
from provisioning.models import Gpu, GpuHold, Instance, Node
from provisioning.placing import keeping

Kept = Node.Kept
# The GPUs of nodes on which nobody is, or only spot, which makes room: those that a tenant alone could have.
WHOLE = """
SELECT coalesce(sum(gpu_count), 0) FROM provisioning_node node
WHERE offer_id = %(offer)s AND state = 'available' AND NOT is_held AND reachability IN ('online', 'suspect')
    AND exclusive_to_id IS NULL AND gpu_count = (
        SELECT count(*) FROM provisioning_gpu gpu
        WHERE gpu.node_id = node.id AND gpu.healthy AND gpu.state <> 'quarantined' AND NOT EXISTS (
            SELECT FROM provisioning_gpuhold hold
            JOIN provisioning_assignment assignment ON assignment.id = hold.assignment_id
            JOIN provisioning_instance instance ON instance.id = assignment.instance_id
            WHERE hold.gpu_id = gpu.id AND hold.released_at IS NULL AND instance.market <> 'spot'
        )
    )
"""


def offers_with_any(kind: Node.Kept) -> list[int]:
    """Return the offers of which any node is kept for this."""
    kept = Node.objects.filter(kept_for=kind)
    return list(kept.order_by("offer").values_list("offer", flat=True).distinct())


def for_queue(*, offer_id: int, node_ids: Collection[int]) -> None:
    """Keep exactly these nodes of an offer for the orders that wait for them."""
    _keep(Kept.QUEUE, offer_id=offer_id, node_ids=node_ids, instead_of=[Kept.FOR_ALL])


def for_blocks(*, offer_id: int, gpus: Mapping[int, int]) -> bool:
    """Keep nodes for blocks of tenants who share no host, each with so many GPUs; return whether others than before.

    The nodes that a tenant's blocks have begun on are its place already. The emptiest are kept, spot
    not counted, since it makes room, and nothing new that has no end starts there; blocks go before the queue.
    In whatever rack or fabric they stand: a block is GPUs of an offer, and neither an order of one nor a policy can
    name a level. What starts inside may: it waits for one that has room, and is given back what it could not have.
    """
    has = alone.gpus_of_blocks(offer_id) if gpus else {}
    with shards.current(offer_id) as live:
        live.refresh()
        size = max(1, live.shard.size)
        hosts = sum(-(-max(0, wanted - has.get(tenant_id, 0)) // size) for tenant_id, wanted in gpus.items())
        spot_gpus = _spot_gpus(offer_id) if hosts else {}
        chosen = keeping.emptiest(live.shard, hosts, live.for_blocks, spot_gpus)
    return _keep(Kept.BLOCK, offer_id=offer_id, node_ids=chosen, instead_of=[Kept.FOR_ALL, Kept.QUEUE])


def _spot_gpus(offer_id: int) -> dict[int, int]:
    """Return by node how many GPUs in good order spot holds."""
    held = GpuHold.objects.filter(assignment__instance__market=Instance.Market.SPOT, released_at=None)
    good = held.filter(gpu__node__offer=offer_id, gpu__healthy=True).exclude(gpu__state=Gpu.State.QUARANTINED)
    return dict(good.values_list("gpu__node").order_by().annotate(gpus=Count("pk")))


@transaction.atomic
def _keep(kind: Node.Kept, *, offer_id: int, node_ids: Collection[int], instead_of: Collection[Node.Kept]) -> bool:
    before = set(Node.objects.filter(offer=offer_id, kept_for=kind).values_list("pk", flat=True))
    if before == set(node_ids):
        return False
    placement.lock(before.symmetric_difference(node_ids))
    gone = Node.objects.filter(pk__in=before.difference(node_ids), kept_for=kind).update(kept_for=Kept.FOR_ALL)
    new = Node.objects.filter(pk__in=set(node_ids) - before, kept_for__in=instead_of).update(kept_for=kind)
    return gone + new > 0


def whole_gpus(offer_id: int) -> int:
    """Return how many GPUs are on nodes that whoever shares no host could have alone, once spot has made room."""
    with connection.cursor() as cursor:
        cursor.execute(WHOLE, {"offer": offer_id})
        return int(cursor.fetchone()[0])
