"""The circuit breaker: how much may be repaired at once, and when silence is our own fault.

For each offer at most 2 % of its nodes, and at least one, are acted on in any
ten minutes; one more opens its breaker. The fleet's opens when more than 0.5 %
of all nodes, and at least three, fell silent within a minute: that is our
network and not theirs. While one is open, what it covers is recorded and shown
to capacity managers, and nothing is done until one of them closes it.
"""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Q, QuerySet

from provisioning.models import Breaker, BreakerMark, Node

log = structlog.get_logger("provisioning.health")

WINDOW = timedelta(minutes=10)
SILENCE_WINDOW = timedelta(seconds=60)
SILENT_NODES_MIN = 3
KEPT = timedelta(days=1)


def nodes_max(pool: int) -> int:
    """Return how many nodes of a pool may be acted on in one window: 2 % of them, and at least one."""
    return max(1, pool * 2 // 100)


def admits(node: int, *, acted_on: Collection[int], pool: int) -> bool:
    """Say whether one more node may be acted on, besides those of the window. The same node again costs nothing."""
    return len({*acted_on, node}) <= nodes_max(pool)


def is_our_network(*, silent: int, fleet: int) -> bool:
    """Say whether so many nodes fell silent at once that the cause must lie with us."""
    return silent >= SILENT_NODES_MIN and silent * 200 > fleet


@transaction.atomic
def admit(*, node: Node, at: datetime) -> bool:
    """Count a node as acted on, or open the breaker of its offer and return False. Two workers wait for each other."""
    if is_open():
        return False
    breaker = _locked(offer_id=node.offer_id)
    if breaker.opened_at is not None:
        return False
    acted_on = set(_marks(breaker, since=at - WINDOW).values_list("node_id", flat=True))
    pool = Node.objects.filter(offer=node.offer_id).exclude(state__in=[Node.State.RETIRED, Node.State.NEW]).count()
    if not admits(node.pk, acted_on=acted_on, pool=pool):
        _open(breaker, at=at, reason=f"{len(acted_on)} of {pool} nodes were acted on within ten minutes")
        return False
    BreakerMark.objects.create(breaker=breaker, node=node, at=at)
    return True


def note_silence(*, node_ids: Iterable[int], at: datetime) -> bool:
    """Count nodes that have just been found silent; return whether the fleet's breaker is open."""
    node_ids = list(node_ids)
    if not node_ids:
        return is_open()
    breaker, _ = Breaker.objects.get_or_create(offer=None)
    BreakerMark.objects.bulk_create(BreakerMark(breaker=breaker, node_id=node_id, at=at) for node_id in node_ids)
    if breaker.opened_at is not None:
        return True
    silent = _marks(breaker, since=at - SILENCE_WINDOW).values("node").distinct().count()
    fleet = Node.objects.exclude(state__in=[Node.State.RETIRED, Node.State.NEW]).count()
    if not is_our_network(silent=silent, fleet=fleet):
        return False
    _open(breaker, at=at, reason=f"{silent} of {fleet} nodes fell silent within a minute")
    return True


def is_open() -> bool:
    """Say whether the fleet's breaker is open: then nothing is done to any node."""
    return Breaker.objects.filter(offer=None, opened_at__isnull=False).exists()


def open_offers() -> QuerySet[Breaker, int]:
    """Return the offers whose breaker is open."""
    opened = Breaker.objects.filter(offer__isnull=False, opened_at__isnull=False)
    return opened.values_list("offer", flat=True)


def close(*, breaker: Breaker, at: datetime) -> None:
    """Let repairs go on. What was counted so far does not count any more, or it would open again at once."""
    Breaker.objects.filter(pk=breaker.pk).update(opened_at=None, closed_at=at)
    log.warning("breaker closed", breaker=breaker.public_id)


def purge(*, at: datetime) -> int:
    """Forget marks that no window reaches any more."""
    return BreakerMark.objects.filter(at__lt=at - KEPT).delete()[0]


def _locked(*, offer_id: int) -> Breaker:
    Breaker.objects.get_or_create(offer_id=offer_id)
    return Breaker.objects.select_for_update().get(offer_id=offer_id)


def _marks(breaker: Breaker, *, since: datetime) -> QuerySet[BreakerMark]:
    after = Q(at__gt=since) if breaker.closed_at is None else Q(at__gt=since, at__gte=breaker.closed_at)
    return BreakerMark.objects.filter(after, breaker=breaker)


def _open(breaker: Breaker, *, at: datetime, reason: str) -> None:
    if Breaker.objects.filter(pk=breaker.pk, opened_at=None).update(opened_at=at, reason=reason):
        log.error("breaker open", breaker=breaker.public_id, offer=breaker.offer_id, reason=reason)
