"""How likely it is that what runs by auction loses its GPUs: for one bid now, and for an offer in the last week.

Both are read from what is stored alone: auctions with what they published, and
interruptions. Nothing is guessed of bids to come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection

from marketplace import spot_market
from marketplace.auction import BASIS
from marketplace.models import Auction, Bid, Offer
from provisioning.models import Instance, Interruption, Phase

# A bid so many basis points above the price, or fewer, is near it: as much as whoever runs is ahead by (hysteresis).
NEAR_BP = 1000
LOOK_BACK = timedelta(days=7)
HOUR_MS = 3_600_000
MILLION = 10**6
# From so many interruptions in a million instance-hours on, by level.
LEVELS = (("high", 50_000), ("moderate", 10_000), ("low", 0))
# Ends that the market brings about; maintenance and what is simulated say nothing of it.
COUNTED = (Interruption.Reason.OUTBID, Interruption.Reason.CAPACITY, Interruption.Reason.OWNER_RECALL)

# Every winner runs from its auction to the next one, the last ones until now.
INSTANCE_MS = """
SELECT coalesce(sum(winners * round(1000 * extract(epoch FROM until - tick_at))), 0)::bigint FROM (
    SELECT tick_at, (published::jsonb ->> 'winners')::bigint AS winners,
        lead(tick_at, 1, %(now)s::timestamptz) OVER (ORDER BY tick_at) AS until
    FROM marketplace_auction
    WHERE offer_id = %(offer)s AND tick_at >= %(since)s::timestamptz AND tick_at <= %(now)s::timestamptz
) held
"""


@dataclass(frozen=True)
class Risk:
    """How often the market interrupted what ran by auction: interruptions, over hours that instances ran."""

    interruptions: int
    instance_ms: int
    since: datetime

    @property
    def per_million_hours(self) -> int:
        """Interruptions in a million instance-hours, rounded half up; a million, once an hour, is the most."""
        return min(MILLION, (2 * self.interruptions * MILLION * HOUR_MS + self.instance_ms) // (2 * self.instance_ms))

    @property
    def percent_per_hour(self) -> str:
        """The same as a chance for each hour, in percent with two places."""
        hundredths = (self.per_million_hours + 50) // 100
        return f"{hundredths // 100}.{hundredths % 100:02}"

    @property
    def instance_hours(self) -> int:
        return self.instance_ms // HOUR_MS

    @property
    def level(self) -> str:
        """Low, moderate (from 1 % an hour on) or high (from 5 % an hour on)."""
        return next(level for level, least in LEVELS if self.per_million_hours >= least)


def of_offer(offer: Offer, *, at: datetime) -> Risk | None:
    """Return an offer's risk over the last week; None where nothing ran by auction. Two queries.

    A risk of a chance per hour is the number of interruptions that the market
    brought about (outbid, capacity needed, recalled by their holder) over the
    hours that instances held GPUs by auction, of the same days.
    """
    since = at - LOOK_BACK
    with connection.cursor() as cursor:
        cursor.execute(INSTANCE_MS, {"offer": offer.pk, "since": since, "now": at})
        (instance_ms,) = cursor.fetchone()
    if not instance_ms:
        return None
    taken = Interruption.objects.filter(
        instance__offer=offer, reason__in=COUNTED, state__in=["draining", "interrupted"],
        notice_at__gte=since, notice_at__lte=at,
    )  # fmt: skip
    return Risk(interruptions=taken.count(), instance_ms=int(instance_ms), since=since)


def last_of(offer_id: int) -> Auction | None:
    """Return an offer's last auction, without its book."""
    return Auction.objects.filter(offer=offer_id).defer("book").order_by("-tick_at").first()


def is_near(price_micros: int, held: Auction | None) -> bool:
    """Return whether a bid is near what an auction gave, and that had no GPUs left over: a little more outbids it."""
    if held is None or spot_market.published(held)["demanded_gpus"] < held.capacity_gpus:
        return False
    return price_micros <= _most_micros(held)


def _most_micros(held: Auction) -> int:
    """Return the highest bid that is near what an auction gave."""
    return held.price_micros * (BASIS + NEAR_BP) // BASIS


def near(offer_id: int, held: Auction | None) -> Sequence[int]:
    """Return the instances of an offer that run by auction with a bid near what this one gave."""
    if held is None or not is_near(held.price_micros, held):
        return []
    running = Bid.objects.filter(
        offer=offer_id, instance__phase=Phase.RUNNING, instance__desired=Instance.Desired.RUNNING
    )
    return list(running.filter(price_micros__lte=_most_micros(held)).values_list("instance", flat=True))
