"""Blocks, quotes, reservations and their resale as the API shows them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from marketplace import blocks, coverage, holdings, lending, quotes, resale, reservations, windows
from marketplace.api.answers import Answer, amount, offer_ref
from marketplace.matching import OFFER, Leg
from marketplace.models import BlockTerms, Listing, Offer, Quote, Reservation, ReservationEvent, Trade
from marketplace.money import decimal_string
from marketplace.trades import Fill


def percent(basis_points: int) -> str:
    """Return basis points as a percentage with two places."""
    return f"{basis_points // 100}.{basis_points % 100:02d}"


def terms(data: Mapping[str, Any]) -> Answer:
    return {
        "lock_minutes": data["lock_minutes"],
        "notice_minutes": data["notice_minutes"],
        "drain_minutes": data["drain_minutes"],
        "resale_fee_percent": percent(data["resale_fee_bp"]),
        "resale_cutoff_minutes": data["resale_cutoff_minutes"],
        "lend_share_percent": percent(data["lend_share_bp"]),
    }


def block_terms(row: BlockTerms) -> Answer:
    return {
        **terms(blocks.terms_as_data(row)),
        "min_gpus": row.min_gpus,
        "max_gpus": row.max_gpus,
        "min_hours": row.min_hours,
        "max_hours": row.max_hours,
        "horizon_hours": row.horizon_hours,
        "ask_step": decimal_string(row.ask_step_micros),
    }


def costs(rows: Iterable[Mapping[str, Any]], currency: str) -> list[Answer]:
    return [
        {
            "until": row["until"],
            "kept_percent": percent(row["kept_bp"]),
            "kept": amount(row["kept_micros"], currency),
            "refund": amount(row["refund_micros"], currency),
        }
        for row in rows
    ]


def quote(row: Quote) -> Answer:
    currency = row.currency
    return {
        "id": row.public_id,
        "kind": row.kind,
        "project": {"id": row.project.public_id, "name": row.project.name},
        "offer": offer_ref(row.offer),
        "reservation": row.reservation.public_id if row.reservation else None,
        "gpus": row.gpus,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "hours": row.hours,
        "discount_percent": percent(row.discount_bp),
        "list_price": amount(row.price_version.micros_per_unit_hour, currency),
        "price": amount(row.per_gpu_hour_micros, currency),
        "total": amount(row.total_micros, currency),
        "refund": amount(row.refund_micros, currency),
        "terms": terms(row.terms),
        "cancellation_costs": costs(row.terms.get("cancellation_costs", []), currency),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "used_at": row.used_at,
    }


def steps(found: Iterable[holdings.Step]) -> list[Answer]:
    return [{"starts_at": step.starts_at, "ends_at": step.ends_at, "gpus": step.gpus} for step in found]


def reservation(row: Reservation, *, at: datetime) -> Answer:
    return reservations_of([row], at=at)[0]


def reservations_of(rows: Sequence[Reservation], *, at: datetime) -> list[Answer]:
    """Return reservations with what is used in them and what lending earned: two queries for any number."""
    used, lent = coverage.used_gpus(rows), lending.earned_micros(rows)
    return [_reservation(row, used[row.pk], lent[row.pk], at) for row in rows]


def _reservation(row: Reservation, used: int, lent: int, at: datetime) -> Answer:
    actions = reservations.actions(row, at=at)
    may_cancel = not actions["cancel"]
    return {
        "id": row.public_id,
        "project": {"id": row.project.public_id, "name": row.project.name},
        "offer": offer_ref(row.offer),
        "state": row.state,
        "state_since": row.state_since,
        "message": row.message,
        "gpus": row.gpus,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "locks_at": row.locks_at,
        "steps": steps(holdings.steps(list(row.strips.all()))),
        "used_gpus": used,
        "missing_gpus": row.missing_gpus,
        "is_lent": row.is_lent,
        "lent": amount(lent, row.currency),
        "paid": amount(row.paid_micros, row.currency),
        "terms": terms(row.terms),
        "cancellation_costs": costs(quotes.costs_over_time(row, at=at) if may_cancel else [], row.currency),
        "shortfalls": [
            {
                "hour": one.hour,
                "gpus": one.gpus,
                "refund": amount(one.refund_micros, row.currency),
                "message": one.message,
            }
            for one in row.shortfalls.all()
        ],
        "actions": {verb: {"available": not why, "reason": why or None} for verb, why in actions.items()},
        "created_at": row.created_at,
    }


def event(row: ReservationEvent) -> Answer:
    return {"at": row.at, "old_state": row.old_state, "new_state": row.new_state, "message": row.message}


def window(found: windows.Found) -> Answer:
    return {
        "offer": offer_ref(found.window.offer),
        "gpus": found.window.gpus,
        "starts_at": found.window.starts_at,
        "ends_at": found.window.ends_at,
        "total": amount(found.total_micros, found.currency),
        "dearest": amount(found.dearest_micros, found.currency),
        "resold_gpu_hours": found.resold_gpu_hours,
        "buy_by": "trade" if found.resold_gpu_hours else "quote",
    }


def calendar(
    offer: Offer, row: BlockTerms, cells: Sequence[windows.Cell], *, is_excluded: bool, at: datetime
) -> Answer:
    return {
        "offer": offer_ref(offer),
        "gpus": cells[0].gpus if cells else 0,
        "terms": block_terms(row),
        "hours": [{"starts_at": cell.starts_at, "free_gpus": 0 if is_excluded else cell.free} for cell in cells],
        "excluded": is_excluded,
        "as_of": at,
    }


def ask(found: resale.OpenAsk) -> Answer:
    row = found.listing
    return {
        "listing": row.public_id,
        "ask": amount(row.ask_micros, row.currency),
        "min_gpus": row.min_gpus,
        "min_hours": row.min_hours,
        "steps": steps(found.left),
        "is_mine": found.is_mine,
    }


def listings(rows: Sequence[Listing]) -> list[Answer]:
    """Return listings with what is left and what was sold: two queries for any number."""
    left, sold = resale.left_of(rows), resale.sold_of(rows)
    return [
        {
            "id": row.public_id,
            "reservation": row.reservation.public_id,
            "offer": offer_ref(row.offer),
            "state": row.state,
            "ask": amount(row.ask_micros, row.currency),
            "gpus": row.gpus,
            "starts_at": row.starts_at,
            "ends_at": row.ends_at,
            "min_gpus": row.min_gpus,
            "min_hours": row.min_hours,
            "left": steps(left[row.pk]),
            "sold_gpu_hours": sold[row.pk].gpu_hours,
            "proceeds": amount(sold[row.pk].proceeds_micros, row.currency),
            "created_at": row.created_at,
            "closed_at": row.closed_at,
        }
        for row in rows
    ]


def trade(row: Trade) -> Answer:
    return {
        "id": row.public_id,
        "offer": offer_ref(row.offer),
        "reservation": row.reservation.public_id,
        "gpus": row.gpus,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "limit": amount(row.limit_micros, row.currency),
        "total": amount(row.total_micros, row.currency),
        "legs": [
            {
                "source": "listing" if leg.listing_id else "offer",
                "starts_at": leg.starts_at,
                "ends_at": leg.ends_at,
                "gpus": leg.gpus,
                "price": amount(leg.price_micros, row.currency),
            }
            for leg in row.legs.all()
        ],
        "at": row.at,
    }


def fill(found: Fill) -> Answer:
    return {
        "would_buy": True,
        "offer": offer_ref(found.window.offer),
        "gpus": found.window.gpus,
        "starts_at": found.window.starts_at,
        "ends_at": found.window.ends_at,
        "total": amount(found.total_micros, found.currency),
        "dearest": amount(found.dearest_micros, found.currency),
        "legs": [_leg(leg, found.currency) for leg in found.legs],
    }


def _leg(leg: Leg, currency: str) -> Answer:
    return {
        "source": "offer" if leg.source == OFFER else "listing",
        "starts_at": leg.starts_at,
        "ends_at": leg.ends_at,
        "gpus": leg.gpus,
        "price": amount(leg.price_micros, currency),
    }
