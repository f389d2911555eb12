"""Taking GPUs and nodes out of placement, and giving them back. Each verb locks the node."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from provisioning import calendar, nodes, placement
from provisioning.models import Gpu, Node, NodeHold, Remediation


@transaction.atomic
def quarantine(*, gpus: Sequence[Gpu], reason: str) -> None:
    """Place nothing on these GPUs any more; what runs there goes on."""
    _set(gpus, Gpu.State.QUARANTINED, reason)
    for offer_id in {gpu.node.offer_id for gpu in gpus}:
        calendar.count_soon(offer_id=offer_id, at=timezone.now())


@transaction.atomic
def show(*, gpus: Sequence[Gpu], state: Gpu.State) -> None:
    """Show how far GPUs are on their way back."""
    _set(gpus, state, "")


@transaction.atomic
def give_back(*, gpus: Sequence[Gpu]) -> None:
    """Let placement use GPUs again that have passed the gate."""
    _set(gpus, Gpu.State.CLEAN, "")


def _set(gpus: Iterable[Gpu], state: Gpu.State, reason: str) -> None:
    gpus = list(gpus)
    node_ids = {gpu.node_id for gpu in gpus}
    placement.lock(node_ids)
    Gpu.objects.filter(pk__in=[gpu.pk for gpu in gpus]).update(state=state, state_reason=reason[:200])
    placement.recount(node_ids)


def hold(*, node: Node, reason: str, at: datetime) -> None:
    """Place nothing on a node any more."""
    nodes.hold(node=node, kind=NodeHold.Kind.HEALTH, reason=reason, at=at)


def let_go(*, node: Node, at: datetime) -> None:
    """Let placement use a node again."""
    nodes.let_go(node=node, kind=NodeHold.Kind.HEALTH, at=at)


def of(remediation: Remediation) -> list[Gpu]:
    """Return the GPUs that a repair is about: one, or all that the node has now."""
    if remediation.gpu is not None:
        return [remediation.gpu]
    return list(remediation.node.gpus.filter(removed_at=None).order_by("index"))
