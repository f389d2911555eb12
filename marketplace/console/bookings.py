"""Blocks in the console: their terms and price, the booking board, what is lent, what is paid ahead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from billing import accounts, prices
from billing.models import Account, PriceVersion
from marketplace import audit, holdings, lending, money, windows
from marketplace.access import Actor
from marketplace.console import catalogue
from marketplace.errors import BadOrder
from marketplace.models import BEGUN, OVER, BlockTerms, Offer, Reservation, ReservationState, Shortfall
from marketplace.windows import Cell

ROWS_MOST = 200
HOURS = 24
TERMS = (
    "is_sold", "min_gpus", "max_gpus", "min_hours", "max_hours", "horizon_hours", "lock_minutes", "discounts",
    "cancellation", "resale_fee_bp", "resale_cutoff_minutes", "ask_step_micros", "lend_share_bp",
)  # fmt: skip


@dataclass(frozen=True)
class Lent:
    """What of an offer is lent: how much stands idle for it, and how much of that spot uses."""

    idle_gpus: int
    used_gpus: int


@dataclass(frozen=True)
class PaidAhead:
    """What lies on the account of money paid ahead, and what the hours to come are worth; the two are the same."""

    currency: str
    kept_micros: int
    worth_micros: int


def sold_offers() -> list[Offer]:
    """Return the offers that have terms of blocks, sold or not."""
    return list(catalogue.offers().filter(block_terms__isnull=False))


def board(offers: Sequence[Offer], *, starts_at: datetime) -> list[tuple[Offer, list[Cell]]]:
    """Return how full each of 24 hours is, offer by offer. Three queries."""
    cells = windows.heat(offers=offers, starts_at=starts_at, hours=HOURS)
    return [(offer, cells[offer.pk]) for offer in offers]


def under_way() -> QuerySet[Reservation]:
    """Return the reservations that have begun or are to come: those in trouble first, then by their start."""
    alive = Reservation.objects.exclude(state__in=OVER).select_related(
        "offer", "project__organization", "price_version"
    )
    return alive.order_by("-missing_gpus", "starts_at", "pk")[:ROWS_MOST]


def shortfalls() -> QuerySet[Shortfall]:
    """Return what was not delivered, the newest first."""
    return Shortfall.objects.select_related("reservation__offer", "reservation__price_version").order_by("-pk")[:50]


def lent(offers: Sequence[Offer], *, at: datetime) -> dict[int, Lent]:
    """Return what is lent of each of these offers that lends anything now, by its primary key."""
    found = {}
    for offer in offers:
        idle = lending.lent_gpus(offer_id=offer.pk, at=at)
        if idle:
            found[offer.pk] = Lent(idle, lending.in_use(offer_id=offer.pk, at=at))
    return found


def paid_ahead() -> list[PaidAhead]:
    """Return for each currency in which something was paid ahead what is kept and what it is kept for."""
    owed: dict[str, int] = {}
    for reservation in _owed_reservations():
        strips = list(reservation.strips.all())
        worth = holdings.worth_micros(strips, reservation.earned_through, reservation.ends_at)
        worth -= sum(one.worth_micros for one in reservation.shortfalls.all() if one.hour >= reservation.earned_through)
        owed[reservation.currency] = owed.get(reservation.currency, 0) + worth
    return [
        PaidAhead(currency, accounts.balance_micros(accounts.platform(Account.Kind.DEFERRED, currency)), worth)
        for currency, worth in sorted(owed.items())
    ]


def _owed_reservations() -> QuerySet[Reservation]:
    paid = [*BEGUN, ReservationState.SCHEDULED, ReservationState.LOCKED, ReservationState.EXPIRED]
    found = Reservation.objects.filter(state__in=paid)
    return found.select_related("price_version").prefetch_related("strips", "shortfalls")


def terms_of(offer: Offer) -> BlockTerms | None:
    """Return an offer's terms of blocks, or None before there are any."""
    return BlockTerms.objects.filter(offer=offer).first()


def price_now(offer: Offer, *, at: datetime) -> list[PriceVersion]:
    """Return today's price of a reserved GPU-hour in each currency that has one."""
    found = (prices.current(skus=[offer.reserved_sku], currency=currency, at=at) for currency in money.SYMBOLS)
    return [price for known in found for price in known.values()]


@transaction.atomic
def set_terms(
    *,
    actor: Actor,
    offer: Offer,
    **terms: Any,
) -> BlockTerms:
    """Set on which terms blocks of an offer are sold. What is sold keeps its own.

    Raises BadOrder naming the field.
    """
    assert set(terms) == set(TERMS)
    _check(terms)
    before = terms_of(offer)
    row, _is_new = BlockTerms.objects.update_or_create(offer=offer, defaults=terms)
    audit.record(
        actor=actor,
        organization=None,
        verb="block.terms",
        subject_id=offer.public_id,
        before={name: getattr(before, name) for name in TERMS} if before else None,
        after=terms,
    )
    return row


def _check(terms: Mapping[str, Any]) -> None:
    for fewest, most in (("min_gpus", "max_gpus"), ("min_hours", "max_hours"), ("min_hours", "horizon_hours")):
        if terms[most] < terms[fewest]:
            raise BadOrder(most, _("The most cannot be less than the fewest, %(fewest)s.") % {"fewest": terms[fewest]})
