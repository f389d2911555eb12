"""Auctions, bids and interruptions as the API shows them. Nobody's bid but the asker's own."""

from collections.abc import Sequence

from marketplace import rentals, spot, spot_market
from marketplace.api.answers import Answer, amount, offer_ref, risk
from marketplace.models import Auction, Bid, Offer
from marketplace.money import decimal_string
from marketplace.risk import Risk
from provisioning import interruptions
from provisioning.models import Interruption


def price(micros: int, currency: str) -> Answer:
    return {**amount(micros, currency), "unit": "gpu_hour"}


def interruption(row: Interruption) -> Answer:
    return {
        "id": row.public_id,
        "run": row.run,
        "reason": row.reason,
        "state": row.state,
        "advised_at": row.advised_at,
        "notice_at": row.notice_at,
        "deadline_at": row.deadline_at,
        "sigterm_at": interruptions.ends_at(row) if row.deadline_at is not None else None,
        "min_notice_s": row.min_notice_s,
        "ended_at": row.ended_at,
        "credited": decimal_string(row.credited_micros),
        "message": row.message,
    }


def bids(found: Sequence[Bid]) -> list[Answer]:
    """Return bids with where they stand: two queries for any number of them."""
    return [_bid(standing) for standing in spot_market.standings(found)]


def bid(found: Bid) -> Answer:
    return bids([found])[0]


def _bid(standing: spot_market.Standing) -> Answer:
    row, instance = standing.bid, standing.bid.instance
    currency = instance.price_version.currency
    return {
        "id": row.public_id,
        "instance": {"id": instance.public_id, "name": instance.name, "phase": instance.phase},
        "project": {"id": row.project.public_id, "name": row.project.name},
        "offer": offer_ref(row.offer),
        "gpus": instance.gpus,
        "max_price": price(row.price_micros, currency),
        "state": standing.state,
        "reason": standing.why or None,
        "held": amount(standing.held_micros, currency),
        "revision": row.revision,
        "placed_at": row.placed_at,
        "interruption": interruption(standing.told) if standing.told is not None else None,
        "risk": risk(standing.risk),
        "actions": {
            verb: {"available": not refusal, "reason": refusal or None}
            for verb, refusal in spot_market.actions(row).items()
        },
    }


def rehearsal(order: rentals.Order, max_price_micros: int, quote: spot.Quote) -> Answer:
    currency = quote.terms.currency
    return {
        "would_bid": True,
        "offer": offer_ref(order.offer),
        "gpus": order.gpus * order.replicas,
        "max_price": price(max_price_micros, currency),
        "hold": amount(quote.held_micros, currency),
        "worst_hour": amount(quote.worst_hour_micros, currency),
        "min_notice_s": quote.terms.min_notice_s,
    }


def _steps(shown: Sequence[Sequence[int]]) -> list[Answer]:
    return [{"price": decimal_string(micros), "gpus": gpus} for micros, gpus in shown]


def now(offer: Offer, found: spot_market.Spot, likely: Risk | None) -> Answer:
    terms, last, shown = found.terms, found.last, found.published
    currency = terms.currency
    return {
        "offer": offer_ref(offer),
        "enabled": terms.is_enabled,
        "price": price(found.price_micros, currency),
        "cleared_price": price(last.price_micros, currency) if last is not None else None,
        "reserve": price(terms.reserve_micros, currency),
        "highest_bid_allowed": price(found.ceiling_micros, currency) if found.ceiling_micros is not None else None,
        "step": amount(terms.grid_micros, currency),
        "interval_s": terms.interval_s,
        "min_notice_s": terms.min_notice_s,
        "next_auction_at": terms.next_tick_at,
        "capacity_gpus": last.capacity_gpus if last is not None else 0,
        "cap_gpus": found.cap_gpus,
        "allocated_gpus": shown.get("allocated_gpus", 0),
        "demanded_gpus": shown.get("demanded_gpus", 0),
        "depth": _steps(shown.get("demand", [])),
        "auction": {"id": last.public_id, "tick_at": last.tick_at, "book_sha256": last.book_sha256}
        if last is not None
        else None,
        "interruption_risk": _of_offer(likely),
        "as_of": found.as_of,
    }


def _of_offer(found: Risk | None) -> Answer | None:
    if found is None:
        return None
    names = ("level", "percent_per_hour", "interruptions", "instance_hours", "since")
    return {name: getattr(found, name) for name in names}


def bucket(found: spot_market.Bucket) -> Answer:
    return {
        "at": found.at,
        "until": found.until,
        "min": decimal_string(found.least_micros),
        "max": decimal_string(found.most_micros),
        "last": decimal_string(found.last_micros),
        "reserve": decimal_string(found.reserve_micros),
        "capacity_gpus": found.capacity_gpus,
        "auctions": found.auctions,
    }


def auction(held: Auction) -> Answer:
    shown = spot_market.published(held)
    return {
        "id": held.public_id,
        "tick_at": held.tick_at,
        "held_at": held.held_at,
        "capacity_gpus": held.capacity_gpus,
        "reserve": price(held.reserve_micros, held.currency),
        "cleared_price": price(held.price_micros, held.currency),
        "price": price(held.charged_micros, held.currency),
        **{
            name: shown[name]
            for name in ("bids", "eligible", "winners", "passed_over", "demanded_gpus", "allocated_gpus")
        },
        "demand": _steps(shown["demand"]),
        "book_sha256": held.book_sha256,
        "book_deleted_at": held.book_deleted_at,
    }


def own_bid(found: spot_market.OwnBid, currency: str) -> Answer:
    return {
        "bid": found.bid_id,
        "gpus": found.gpus,
        "max_price": price(found.price_micros, currency),
        "incumbent": found.is_incumbent,
        "won": found.has_won,
    }
