"""Recall: what holders of reservations start on GPUs that are lent takes them back from spot, within the notice."""

from datetime import datetime

from django.db.models import Exists, F, OuterRef, Sum

from marketplace import lending, spot
from provisioning.models import Assignment, Instance, Phase


def recall_due(*, at: datetime, limit: int) -> int:
    """Take lent GPUs back for starts inside reservations that wait for them; return for how many offers."""
    placed = Assignment.objects.filter(instance=OuterRef("pk"), fence=OuterRef("run"))
    waiting = Instance.objects.filter(~Exists(placed), market=Instance.Market.RESERVED, phase=Phase.QUEUED)
    wanted = waiting.order_by().values_list("offer").annotate(wanted=Sum(F("replicas") * F("gpus_per_replica")))
    offers = list(wanted.order_by("offer")[:limit])
    for offer_id, gpus in offers:
        spot.recall(offer_id=offer_id, gpus=min(gpus, lending.overdue_gpus(offer_id=offer_id, at=at)), at=at)
    return len(offers)
