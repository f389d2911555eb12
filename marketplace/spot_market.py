"""What everybody may know of an offer's auctions: price now, depth, history, and one auction without its bids."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from billing.models import Hold
from marketplace import auction, bids, spot_book
from marketplace.errors import NotFound
from marketplace.models import Allocation, Auction, Bid, Offer, SpotTerms
from provisioning import advisories, decisions, interruptions, policies
from provisioning.models import AT_REST, Instance, Interruption, Phase

# Buckets of equal length, each with the least, the most and the last that was charged in it.
HISTORY = """
SELECT date_bin(%(step)s, tick_at, %(since)s) AS began, min(charged_micros), max(charged_micros),
    (array_agg(charged_micros ORDER BY tick_at DESC))[1], (array_agg(reserve_micros ORDER BY tick_at DESC))[1],
    (array_agg(capacity_gpus ORDER BY tick_at DESC))[1], count(*)
FROM marketplace_auction WHERE offer_id = %(offer)s AND tick_at >= %(since)s AND tick_at < %(until)s
GROUP BY began ORDER BY began
"""


@dataclass(frozen=True)
class Spot:
    """An offer's auctions now. Amounts in micros of the terms' currency per GPU-hour; `last` is the last auction."""

    terms: SpotTerms
    last: Auction | None
    price_micros: int
    ceiling_micros: int | None
    as_of: datetime

    @property
    def published(self) -> dict[str, Any]:
        """What the last auction published; empty before the first one."""
        return published(self.last) if self.last is not None else {}

    @property
    def cap_gpus(self) -> int | None:
        """How many GPUs one organization could win if the next auction gives as many as the last; None: no limit."""
        if not self.terms.cap_bp or self.last is None:
            return None
        return auction.share_gpus(self.last.capacity_gpus, cap_bp=self.terms.cap_bp)


@dataclass(frozen=True)
class Bucket:
    """What was charged in one stretch of time."""

    at: datetime
    until: datetime
    least_micros: int
    most_micros: int
    last_micros: int
    reserve_micros: int
    capacity_gpus: int
    auctions: int


def spot_for(offer: Offer, *, at: datetime) -> Spot:
    """Return how an offer is sold by auction now, or raise NotFound where it is not."""
    terms = SpotTerms.objects.select_related("offer").filter(offer=offer).first()
    if terms is None:
        raise NotFound
    last = auctions(offer).first()
    return Spot(
        terms=terms,
        last=last,
        price_micros=last.charged_micros if last is not None else terms.reserve_micros,
        ceiling_micros=bids.ceiling_micros(terms, at=at),
        as_of=at,
    )


def sold_by_auction(offers: Iterable[Offer], *, currency: str) -> dict[int, SpotTerms]:
    """Return the terms of those offers that are sold by auction in this currency, by the offer's key. One query."""
    found = SpotTerms.objects.filter(offer__in=list(offers), is_enabled=True, currency=currency)
    return {terms.offer_id: terms for terms in found.select_related("offer")}


def auctions(offer: Offer) -> QuerySet[Auction]:
    """Return an offer's auctions, the newest first, without their books."""
    return Auction.objects.filter(offer=offer).defer("book").order_by("-tick_at")


def auction_for(offer: Offer, auction_id: str) -> Auction:
    """Return one auction of an offer, or raise NotFound."""
    found = Auction.objects.filter(offer=offer, public_id=auction_id).first()
    if found is None:
        raise NotFound
    return found


def published(held: Auction) -> dict[str, Any]:
    """Return what was published of an auction."""
    shown: dict[str, Any] = json.loads(held.published)
    return shown


def history(offer: Offer, *, since: datetime, until: datetime, points: int) -> list[Bucket]:
    """Return what was charged from `since` to `until` in at most so many stretches. One query."""
    assert points > 0
    step = max((until - since) / points, timedelta(seconds=1))
    with connection.cursor() as cursor:
        words: dict[str, Any] = {"step": step, "since": since, "until": until, "offer": offer.pk}
        cursor.execute(HISTORY, words)
        return [Bucket(row[0], min(row[0] + step, until), *row[1:]) for row in cursor.fetchall()]


@dataclass(frozen=True)
class Standing:
    """Where a bid stands: a word, its open interruption, what is held for it, and why it takes part in no auction.

    `risk` is the advisory that it may be outbid by the next auction.
    """

    bid: Bid
    state: str
    told: Interruption | None
    risk: Interruption | None
    held_micros: int
    why: str


def standings(found: Sequence[Bid]) -> list[Standing]:
    """Return where each bid stands. Four queries at most."""
    instances = [bid.instance for bid in found]
    ladder = interruptions.ladder_for(instances)
    told = {pk: row for pk, row in ladder.items() if row.state != Interruption.State.ADVISED}
    held: dict[str, int] = {}
    pending = Hold.objects.filter(
        resource_id__in=[instance.public_id for instance in instances], state=Hold.State.PENDING
    )
    for hold in pending:
        held[hold.resource_id] = held.get(hold.resource_id, 0) + hold.left_micros
    waits = [bid for bid in found if bid.instance.phase == Phase.QUEUED]
    excluded = policies.exclusions((bid.project_id, bid.offer_id) for bid in waits)
    broken = {bid.pk: excluded.get((bid.project_id, bid.offer_id), []) for bid in waits}
    return [
        Standing(
            bid=bid,
            state=state_of(
                bid.instance,
                is_funded=bool(bid.instance.paid_by) or bid.instance.public_id in held,
                is_excluded=bool(broken.get(bid.pk)),
                is_left_out=bid.left_out_at is not None,
            ),
            told=told.get(bid.instance_id),
            risk=advisory(ladder, bid.instance),
            held_micros=held.get(bid.instance.public_id, 0),
            why=_why_excluded(broken.get(bid.pk, [])) or _why_suspended(bid) or _why_left_out(bid),
        )
        for bid in found
    ]


def advisory(ladder: Mapping[int, Interruption], instance: Instance) -> Interruption | None:
    """Return the advisory that is true of an instance now, of what is open and advised."""
    row = ladder.get(instance.pk)
    return row if row is not None and advisories.holds_for(row, instance) else None


def _why_excluded(rules: Sequence[str]) -> str:
    if not rules:
        return ""
    why = _("It takes part in no auction: the offer is %(rules)s. Withdraw it to free what is set aside.")
    return why % {"rules": decisions.said(rules)}


def _why_suspended(bid: Bid) -> str:
    if bid.instance.phase != Phase.QUEUED or not bid.project.is_suspended:
        return ""
    return _("It takes part in no auction while its project is suspended; ask the operator why.")


def _why_left_out(bid: Bid) -> str:
    if bid.left_out_at is None or bid.instance.phase != Phase.QUEUED:
        return ""
    why = _(
        "It takes part in no auction since %(moment)s UTC: it had won, and no place was found for its GPUs together. "
        "It bids again once one is free, or at a price that would win one now; fewer GPUs or a wider level find one "
        "sooner."
    )
    return why % {"moment": f"{bid.left_out_at:%Y-%m-%d %H:%M}"}


def state_of(instance: Instance, *, is_funded: bool, is_excluded: bool, is_left_out: bool) -> str:
    """Return where it stands: a policy has `excluded` it, it was `left_out` since no place was found, and so on."""
    phase = Phase(instance.phase)
    if instance.desired == Instance.Desired.TERMINATED:
        return "ended"
    if phase == Phase.QUEUED and (is_excluded or is_left_out or instance.admitted_at is None):
        kept_out = "excluded" if is_excluded else "left_out" if is_left_out else ""
        return kept_out or ("waiting" if is_funded else "unfunded")
    if phase in {Phase.NOTIFIED, Phase.DRAINING}:
        return "notified"
    if phase == Phase.INTERRUPTED:
        return "interrupted"
    if phase in {*AT_REST, Phase.STOPPING}:
        return "resting"
    return "running" if phase == Phase.RUNNING else "won"


@dataclass(frozen=True)
class OwnBid:
    """One's own bid in an auction, as the sealed book has it."""

    bid_id: str
    gpus: int
    price_micros: int
    is_incumbent: bool
    has_won: bool


def own_bids(held: Auction, mine: QuerySet[Bid]) -> list[OwnBid]:
    """Return which of these bids took part in an auction, and how that went; none once its book is deleted."""
    if held.book_deleted_at is not None:
        return []
    names = set(mine.filter(offer=held.offer_id, placed_at__lte=held.held_at).values_list("public_id", flat=True))
    if not names:
        return []
    won = set(
        Allocation.objects.filter(auction=held, bid__public_id__in=names).values_list("bid__public_id", flat=True)
    )
    _, sealed = auction.read(spot_book.book_of(held))
    return [
        OwnBid(bid.id, bid.gpus, bid.price_micros, bid.is_incumbent, bid.id in won) for bid in sealed if bid.id in names
    ]


def actions(bid: Bid) -> dict[str, str]:
    """Return what may be asked of a bid now: each verb with a sentence why not, empty when it may."""
    phase, ended = Phase(bid.instance.phase), bid.instance.desired == Instance.Desired.TERMINATED
    change = _("Its instance has ended.") if ended else ""
    withdraw = change
    if not ended and phase not in {Phase.QUEUED, *AT_REST}:
        withdraw = _("It has GPUs; stop or terminate its instance instead.")
    simulate = "" if phase == Phase.RUNNING else _("Only what runs can be interrupted.")
    return {"change": change, "withdraw": withdraw, "simulate_interruption": simulate}
