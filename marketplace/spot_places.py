"""Winners that find no place: they leave the book, so that others have the GPUs that they cannot use.

An auction counts GPUs, placement needs them in one place. A bid may win eight
of sixteen and have four on each of two nodes. Whoever won, and for `TICKS`
auctions and one notice found no place although GPUs enough are free, takes part
in no auction from then on, until a place for it is free. Setting its price again, or bidding anew for the same, lets
it in at once only where it would win and find a place among the GPUs of those who would lose
(`spot._try_again`): nobody is driven out twice for nothing. A book holds those who take part, so it can be
held again as it is.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from marketplace.models import Bid, SpotTerms
from provisioning import calendar, prospects, volumes
from provisioning.models import Instance, Phase

TICKS = 3
# How long bids for the same are one try.
REMEMBERED = timedelta(days=1)
# Of one offer and auction; the others have their turn at the next.
LOOKED_AT_MAX = 500


@transaction.atomic
def look(*, offer_id: int, at: datetime) -> int:
    """Leave out who won and finds no place, take back whose place is free; return how many of both.

    Before an auction and in a transaction of its own: looking at nodes waits for nobody, but is not part of a sale.
    """
    terms = SpotTerms.objects.get(pk=offer_id)
    waiting = Bid.objects.filter(
        offer=offer_id, instance__phase=Phase.QUEUED, instance__desired=Instance.Desired.RUNNING
    )
    won = waiting.filter(left_out_at=None, instance__admitted_at__isnull=False).order_by("instance__admitted_at", "pk")
    patience = TICKS * timedelta(seconds=terms.interval_s) + timedelta(seconds=terms.min_notice_s)
    late = won.filter(instance__admitted_at__lte=at - patience)
    out = waiting.filter(left_out_at__isnull=False).order_by("-price_micros", "placed_at", "pk")
    if not late.exists() and not out.exists():
        return 0
    first, others = _first(won), _first(out)
    asked = [bid.instance for bid in (*first, *others)]
    homes = volumes.homes_of(asked)
    fitting = prospects.fitting([(instance, homes[instance.pk]) for instance in asked if instance.pk in homes])
    left = calendar.spot_left(offer_id)
    # Where others still have their GPUs for their notice, its place may be among those.
    stuck = [bid for bid in first if bid.instance_id not in fitting and (left is None or bid.instance.gpus <= left)]
    kept_out = late.filter(pk__in=[bid.pk for bid in stuck]).values("pk")
    back = out.filter(pk__in=[bid.pk for bid in others if bid.instance_id in fitting]).order_by().values("pk")
    return (
        Bid.objects.filter(pk__in=back).update(left_out_at=None)
        + Bid.objects.filter(pk__in=kept_out.order_by()).update(left_out_at=at)
    )  # fmt: skip


def was_left_out(placed: Bid) -> bool:
    """Return whether its organization bid for the same before, and no place was found for that."""
    same = Bid.objects.filter(
        offer=placed.offer, project__organization=placed.project.organization_id,
        left_out_at__gt=placed.placed_at - REMEMBERED, instance__replicas=placed.instance.replicas,
        instance__gpus_per_replica=placed.instance.gpus_per_replica,
    )  # fmt: skip
    return same.exists()


def _first(found: QuerySet[Bid]) -> list[Bid]:
    return list(found.select_related("instance")[:LOOKED_AT_MAX])
