"""What a capacity manager asks of auctions, and how they change their terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from marketplace import auction, bids, money, spot_book, spot_terms
from marketplace.access import Actor
from marketplace.console import catalogue
from marketplace.models import Allocation, Auction, Bid, Offer, SpotTerms
from provisioning.models import OPEN_STATES, Interruption

LOOK_BACK = timedelta(days=1)
BIDS_SHOWN = 200
INTERRUPTIONS_SHOWN = 50


@dataclass(frozen=True)
class SealedBid:
    """One bid of a book, and whether it won."""

    bid: auction.Bid
    has_won: bool


def overview() -> list[tuple[Offer, SpotTerms | None]]:
    """Return every offer, with its terms where it is sold by auction. Two queries."""
    terms = {one.offer_id: one for one in SpotTerms.objects.select_related("offer")}
    return [(offer, terms.get(offer.pk)) for offer in catalogue.offers()]


def newest(*, limit: int) -> list[Auction]:
    """Return the last auctions of all offers."""
    return list(Auction.objects.select_related("offer").defer("book").order_by("-held_at")[:limit])


def terms_of(offer: Offer) -> SpotTerms | None:
    """Return an offer's terms, if it has any."""
    return SpotTerms.objects.select_related("offer").filter(offer=offer).first()


def open_interruptions(offer: Offer) -> list[Interruption]:
    """Return what is planned or under way for an offer's instances, the most urgent first."""
    found = Interruption.objects.filter(instance__offer=offer, state__in=OPEN_STATES)
    return list(found.select_related("instance__project").order_by("deadline_at", "pk")[:INTERRUPTIONS_SHOWN])


def counts(offer: Offer) -> dict[str, int]:
    """Return how many bids of an offer wait and hold GPUs."""
    alive = Bid.objects.filter(offer=offer, instance__desired="running")
    waiting = alive.filter(instance__phase="queued", instance__admitted_at=None).count()
    return {"waiting": waiting, "holding": alive.count() - waiting}


def book(held: Auction) -> tuple[auction.Rules | None, Sequence[SealedBid]]:
    """Return the rules and bids of an auction, the highest bids first; none once its book is deleted."""
    if held.book_deleted_at is not None:
        return None, []
    rules, sealed = auction.read(spot_book.book_of(held))
    won = set(Allocation.objects.filter(auction=held).values_list("bid__public_id", flat=True))
    ranked = sorted(sealed, key=lambda bid: (-bid.price_micros, bid.placed_us, bid.id))
    return rules, [SealedBid(bid, bid.id in won) for bid in ranked]


def initial(offer: Offer, *, at: datetime) -> dict[str, Any]:
    """Return what the form begins with: the terms as they are, or half the price on demand as a first reserve."""
    terms = terms_of(offer) or SpotTerms(offer=offer, reserve_micros=0)
    found = {name: getattr(terms, name) for name in spot_terms.SHOWN}
    if not terms.reserve_micros:
        ceiling = bids.ceiling_micros(terms, at=at) or 0
        found["reserve_micros"] = ceiling // 2 - ceiling // 2 % terms.grid_micros
    for name in ("reserve_micros", "grid_micros"):
        found[name] = money.plain(found[name])
    return found


def set_terms(*, actor: Actor, offer: Offer, at: datetime, **changes: Any) -> SpotTerms:
    """Set the terms as a capacity manager."""
    return spot_terms.set_terms(offer=offer, by=actor.name, at=at, **changes)
