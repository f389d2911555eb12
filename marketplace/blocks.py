"""Blocks of GPUs in the future: terms, prices, and what cancelling costs. Whole hours and whole micros."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext

from billing import prices
from billing.models import PriceVersion
from marketplace.errors import BadOrder
from marketplace.models import BlockTerms, Offer, ReservationStrip
from provisioning.calendar import HOUR, hour_of

NOTICE = timedelta(minutes=40)
DRAIN = timedelta(minutes=30)
BP = 10_000


@dataclass(frozen=True)
class Window:
    """So many GPUs of an offer in every hour from a start to an end."""

    offer: Offer
    gpus: int
    starts_at: datetime
    ends_at: datetime

    @property
    def hours(self) -> int:
        return (self.ends_at - self.starts_at) // HOUR

    @property
    def gpu_hours(self) -> int:
        return self.gpus * self.hours


def terms_of(offer: Offer) -> BlockTerms:
    """Return on which terms blocks of an offer are sold, or raise BadOrder where none are."""
    terms = BlockTerms.objects.filter(offer=offer, is_sold=True).first()
    if terms is None or not offer.is_listed:
        raise BadOrder("offer", gettext("No blocks of %(offer)s are sold ahead.") % {"offer": offer.name})
    return terms


def sold_ahead(offers: Collection[Offer]) -> dict[int, BlockTerms]:
    """Return the terms of those offers of which blocks are sold, by the offer's primary key. One query."""
    found = BlockTerms.objects.filter(offer__in=[offer.pk for offer in offers], is_sold=True, offer__is_listed=True)
    return {terms.pk: terms for terms in found}


def price_of(offer: Offer, *, currency: str, at: datetime) -> PriceVersion:
    """Return today's price of a reserved GPU-hour without any discount, or raise BadOrder where there is none."""
    price = prices.current(skus=[offer.reserved_sku], currency=currency, at=at).get(offer.reserved_sku)
    if price is None:
        raise BadOrder(
            "offer",
            gettext("Blocks of %(offer)s are not for sale in %(currency)s now.")
            % {"offer": offer.name, "currency": currency},
        )
    return price


def prices_of(offers: Collection[Offer], *, currency: str, at: datetime) -> dict[int, PriceVersion]:
    """Return today's price of a reserved GPU-hour of those offers that have one, by the offer's key. One query."""
    by_sku = {offer.reserved_sku: offer.pk for offer in offers}
    found = prices.current(skus=list(by_sku), currency=currency, at=at)
    return {by_sku[sku]: price for sku, price in found.items()}


def check(window: Window, terms: BlockTerms, *, at: datetime) -> None:
    """Raise BadOrder for the first rule that a window breaks, naming the field and the rule."""
    check_times(window.starts_at, window.ends_at, at=at)
    if not terms.min_gpus <= window.gpus <= terms.max_gpus:
        raise BadOrder(
            "gpus",
            gettext("Blocks of %(offer)s have %(fewest)s to %(most)s GPUs; you asked for %(gpus)s.")
            % {"offer": window.offer.name, "fewest": terms.min_gpus, "most": terms.max_gpus, "gpus": window.gpus},
        )
    if not terms.min_hours <= window.hours <= terms.max_hours:
        raise BadOrder(
            "ends_at",
            gettext("A block lasts %(fewest)s to %(most)s hours; this one would last %(hours)s.")
            % {"fewest": terms.min_hours, "most": terms.max_hours, "hours": window.hours},
        )
    check_horizon(window, terms, at=at)


def check_horizon(window: Window, terms: BlockTerms, *, at: datetime) -> None:
    """Raise BadOrder where a window ends later than anything of its offer is sold."""
    if window.ends_at > hour_of(at) + terms.horizon_hours * HOUR:
        raise BadOrder(
            "ends_at",
            gettext("Blocks are sold up to %(hours)s hours ahead; this one would end later.")
            % {"hours": terms.horizon_hours},
        )


def check_times(starts_at: datetime, ends_at: datetime, *, at: datetime) -> None:
    """Raise BadOrder where a window does not begin and end on whole UTC hours, in this order, in the future."""
    for field, moment in (("starts_at", starts_at), ("ends_at", ends_at)):
        if hour_of(moment) != moment:
            raise BadOrder(field, gettext("Blocks begin and end on whole UTC hours, such as 14:00."))
    if ends_at <= starts_at:
        raise BadOrder("ends_at", gettext("The end has to lie after the start, by an hour at least."))
    if starts_at < at:
        raise BadOrder(
            "starts_at",
            gettext("This hour has begun already; the next one begins at %(next)s UTC.")
            % {"next": f"{hour_of(at) + HOUR:%Y-%m-%d %H:%M}"},
        )


def discount_bp(discounts: Sequence[Sequence[int]], *, hours: int) -> int:
    """Return the discount of a block that lasts so many hours, in basis points: the best step that it reaches."""
    return max((bp for from_hours, bp in discounts if hours >= from_hours), default=0)


def per_gpu_hour_micros(price: PriceVersion, *, discount: int) -> int:
    """Return a GPU-hour's price with a discount, rounded down to a whole micro, at least one."""
    return max(1, price.micros_per_unit_hour * (BP - discount) // BP)


def kept_bp(cancellation: Sequence[Sequence[int]], *, until_start: timedelta) -> int:
    """Return which part is kept of a block that is cancelled so long before its start, in basis points.

    The steps are [hours before the start, basis points]; closer to the start than any of them, all is kept.
    """
    reached = [bp for hours, bp in cancellation if until_start >= hours * HOUR]
    return min(reached, default=BP)


def refundable_micros(strips: Collection[ReservationStrip]) -> int:
    """Return what a cancellation starts from: of what was paid and what we have of it, the smaller."""
    return sum(value_of(strip, micros=min(strip.paid_micros, strip.worth_micros)) for strip in strips)


def value_of(strip: ReservationStrip, *, micros: int) -> int:
    """Return what a strip costs at so much for a GPU-hour."""
    return strip.gpus * ((strip.ends_at - strip.starts_at) // HOUR) * micros


def kept_micros(base_micros: int, *, bp: int) -> int:
    """Return a part in basis points, rounded down: what is over goes to the customer."""
    return base_micros * bp // BP


def cancellation_costs(
    terms: Mapping[str, Any], *, starts_at: datetime, base_micros: int, at: datetime
) -> list[dict[str, Any]]:
    """Return until when cancelling costs how much, the cheapest first; steps whose time is over are left out.

    The last step is the time after the lock, when nothing can be cancelled and all is kept.
    """
    lock_at = starts_at - timedelta(minutes=terms["lock_minutes"])
    costs: list[dict[str, Any]] = []
    for hours, bp in sorted(terms["cancellation"], reverse=True):
        until = min(starts_at - hours * HOUR, lock_at)
        if until <= at or (costs and costs[-1]["until"] == until.isoformat()):
            continue
        kept = kept_micros(base_micros, bp=bp)
        costs.append(
            {"until": until.isoformat(), "kept_bp": bp, "kept_micros": kept, "refund_micros": base_micros - kept}
        )
    costs.append({"until": starts_at.isoformat(), "kept_bp": BP, "kept_micros": base_micros, "refund_micros": 0})
    return costs


def terms_as_data(terms: BlockTerms) -> dict[str, Any]:
    """Return what a quote keeps of the terms."""
    return {
        "lock_minutes": terms.lock_minutes,
        "cancellation": terms.cancellation,
        "discounts": terms.discounts,
        "notice_minutes": NOTICE // timedelta(minutes=1),
        "drain_minutes": DRAIN // timedelta(minutes=1),
        "resale_fee_bp": terms.resale_fee_bp,
        "resale_cutoff_minutes": terms.resale_cutoff_minutes,
        "lend_share_bp": terms.lend_share_bp,
    }
