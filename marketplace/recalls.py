"""Recall: what holders of reservations start on GPUs that are lent takes them back from spot, within the notice.

Which GPUs is settled by node: whoever starts eight on one node is not helped by
four on each of two. The lowest bids go first, and of those only who stands in
the way. As long as somebody waits, every sweep looks again.
"""

from datetime import datetime

from django.db import transaction

from marketplace import spot
from marketplace.models import SpotTerms
from marketplace.spot_book import entries
from provisioning import calendar, room
from provisioning.models import Instance, Interruption, Phase


def recall_due(*, at: datetime, limit: int) -> int:
    """Take GPUs back for starts inside reservations that wait for them; return for how many offers."""
    queue = Instance.objects.filter(market=Instance.Market.RESERVED, phase=Phase.QUEUED)
    offers = list(queue.order_by("offer").values_list("offer", flat=True).distinct()[:limit])
    for offer_id in offers:
        recall(offer_id=offer_id, at=at)
    return len(offers)


@transaction.atomic
def recall(*, offer_id: int, at: datetime) -> int:
    """Take GPUs back from spot where holders of reservations wait for them; return how many are coming.

    It waits for no auction, so the holder never waits longer than the notice.
    """
    spot.lock_offer(offer_id)
    terms = SpotTerms.objects.select_related("offer").filter(pk=offer_id).first()
    wanted = room.waiting(offer_id)
    if terms is None or not wanted:
        return 0
    standing = [entry for entry in entries(offer_id=offer_id, at=at) if entry.holds_gpus and not entry.told_id]
    lowest = sorted(standing, key=lambda entry: (entry.bid.price_micros, -entry.bid_id))
    found = room.make(offer_id=offer_id, wanted=wanted, candidates=[entry.instance_id for entry in lowest])
    if found.taken_back:
        spot.plan(found.taken_back, Interruption.Reason.OWNER_RECALL, terms, since=at)
    if found.spot_gpus:
        # So that what comes free goes to the holder, not to whoever won the last auction and waits.
        calendar.limit_spot(offer_id=offer_id, gpus=max(0, calendar.spot_gpus(offer_id) - found.spot_gpus))
    return found.spot_gpus
