"""Nodes that are to be somebody's place: nobody new starts there until it is.

It stands in the nodes' own rows, so that every door and every process keeps to
it: a choice leaves them out (`shards`), and a claim looks again once it has the
row (`placement.FITS`).
"""

from collections.abc import Collection

from django.db import transaction

from provisioning import placement
from provisioning.models import Node

Kept = Node.Kept


def offers_with_a_queue() -> list[int]:
    """Return the offers of which any node is kept for orders that wait."""
    kept = Node.objects.filter(kept_for=Kept.QUEUE)
    return list(kept.order_by("offer").values_list("offer", flat=True).distinct())


@transaction.atomic
def for_queue(*, offer_id: int, node_ids: Collection[int]) -> None:
    """Keep exactly these nodes of an offer for the orders that wait for them."""
    before = set(Node.objects.filter(offer=offer_id, kept_for=Kept.QUEUE).values_list("pk", flat=True))
    if before == set(node_ids):
        return
    placement.lock(before.symmetric_difference(node_ids))
    Node.objects.filter(pk__in=before.difference(node_ids), kept_for=Kept.QUEUE).update(kept_for=Kept.FOR_ALL)
    Node.objects.filter(pk__in=set(node_ids) - before, kept_for=Kept.FOR_ALL).update(kept_for=Kept.QUEUE)
