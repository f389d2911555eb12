"""Reasons of ours to place nothing on a node: placed and lifted by what found them, beside a manager's cordon."""

from datetime import datetime

import structlog
from django.db import transaction

from provisioning import calendar, placement
from provisioning.models import Node, NodeHold

log = structlog.get_logger("provisioning.holds")

REASON_MAX = 200


@transaction.atomic
def hold(*, node: Node, kind: NodeHold.Kind, reason: str, at: datetime) -> None:
    """Keep a node out of placement for a reason of ours; what runs goes on. A second hold of a kind changes nothing."""
    placement.lock([node.pk])
    _, is_new = NodeHold.objects.get_or_create(
        node=node, kind=kind, released_at=None, defaults={"reason": reason[:REASON_MAX], "placed_at": at}
    )
    Node.objects.filter(pk=node.pk).update(is_held=True)
    node.is_held = True
    if is_new:
        calendar.count_soon(offer_id=node.offer_id, at=at)
        log.warning("node held", node=node.public_id, kind=kind, reason=reason)


@transaction.atomic
def let_go(*, node: Node, kind: NodeHold.Kind, at: datetime) -> None:
    """End the hold of a kind; the node can be placed on once no other is left."""
    placement.lock([node.pk])
    live = NodeHold.objects.filter(node=node, released_at=None)
    if live.filter(kind=kind).update(released_at=at):
        log.info("node let go", node=node.public_id, kind=kind)
    node.is_held = live.exists()
    Node.objects.filter(pk=node.pk).update(is_held=node.is_held)
