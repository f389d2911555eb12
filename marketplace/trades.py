"""Orders for hours: filled at once, each hour from the cheapest asks and the offer itself, or refused.

Everything that lists or trades hours of an offer does so behind the offer's
gate, then locks reservations, budgets and accounts, each in the order of their keys.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.utils.translation import gettext

from billing import accounts, prepayments
from billing.models import Account
from billing.prepayments import Paid, Part
from billing.public_ids import new_public_id
from marketplace import audit, blocks, holdings, matching, money, paid_ahead, quotes, refunds, rentals, reservations
from marketplace.access import Actor
from marketplace.blocks import Window
from marketplace.errors import BadOrder, Conflict
from marketplace.holdings import Taken
from marketplace.matching import OFFER, Leg, Supply
from marketplace.models import (
    BlockTerms,
    ListedHour,
    Listing,
    Offer,
    Organization,
    Project,
    Reservation,
    ReservationState,
    ReservationStrip,
    Trade,
    TradeLeg,
)
from provisioning import calendar
from provisioning.calendar import HOUR
from provisioning.errors import NoCapacity


class LimitTooLow(Conflict):
    """The cheapest supply costs more than the order's limit."""


@dataclass(frozen=True)
class Fill:
    """How an order would be filled now."""

    window: Window
    currency: str
    legs: list[Leg]

    @property
    def total_micros(self) -> int:
        return sum(leg.amount_micros for leg in self.legs)

    @property
    def dearest_micros(self) -> int:
        """The lowest limit with which the order would be filled like this."""
        return max(leg.price_micros for leg in self.legs)


def look(*, project: Project, window: Window, limit_micros: int | None, at: datetime) -> Fill:
    """Return how an order would be filled now, with nothing locked and nothing done."""
    terms = _check(window, at=at)
    quotes.check_policies(project, window, at=at)
    return _match(project.organization, window, terms, limit_micros, at=at)


def _check(window: Window, *, at: datetime) -> BlockTerms:
    """Return the terms of an offer, or raise BadOrder for a window that it cannot be bought for.

    Before anything looks at each hour of the window. How long it may be, an ask says for itself.
    """
    if window.gpus < 1:
        raise BadOrder("gpus", gettext("Ask for at least 1 GPU."))
    blocks.check_times(window.starts_at, window.ends_at, at=at)
    terms = blocks.terms_of(window.offer)
    blocks.check_horizon(window, terms, at=at)
    return terms


@transaction.atomic
def buy(*, actor: Actor, project: Project, window: Window, limit_micros: int, at: datetime) -> Trade:
    """Buy hours at no more than a limit for a GPU-hour: all of them at once, or a refusal with nothing moved.

    Each hour is filled from the cheapest asks and the offer itself, at the price that the maker named.
    """
    rentals.check_open(project)
    reservations.lock_gate(window.offer.pk)
    terms = _check(window, at=at)
    found = _match(project.organization, window, terms, limit_micros, at=at)
    chosen = {leg.source for leg in found.legs} - {OFFER}
    listings = {row.pk: row for row in Listing.objects.filter(pk__in=chosen).select_related("seller")}
    sellers = {pk: reservations.lock(pk) for pk in sorted({row.reservation_id for row in listings.values()})}
    fees = {pk: sellers[row.reservation_id].terms["resale_fee_bp"] for pk, row in listings.items()}
    reservation_id, trade_id = new_public_id("rsv"), new_public_id("trd")
    reservations.check_budget(actor, project, found.total_micros, pays_for=[trade_id, reservation_id], at=at)
    reservations.check_use(project, window, at=at)
    parties = {project.organization.pk: project.organization} | {row.seller_id: row.seller for row in listings.values()}
    for pk in sorted(parties):
        accounts.lock(organization_id=pk, currency=found.currency)
    paid = _pay(project, found, listings, fees, trade_id=trade_id, reservation_id=reservation_id, at=at)
    strips, given_up = [], defaultdict[int, list[Taken]](list)
    for leg in found.legs:
        taken = _hours_of(leg, listings, sellers, at=at)
        strips += [_bought(one, leg) for one in taken]
        given_up[leg.source] += taken
    reservation = reservations.make(
        public_id=reservation_id,
        project=project,
        window=window,
        price_version=blocks.price_of(window.offer, currency=found.currency, at=at),
        terms=blocks.terms_as_data(terms),
        strips=strips,
        at=at,
    )
    total = [sum(one.promo_micros for one in paid.values()), sum(one.cash_micros for one in paid.values())]
    reservation.move_to(ReservationState.SCHEDULED, at=at, promo_micros=total[0], cash_micros=total[1])
    trade = _write_down(trade_id, reservation, found, listings, fees, limit_micros=limit_micros, at=at)
    _pay_sellers(trade, listings, sellers, paid, given_up, at=at)
    audit.record_of(
        reservation, "trade.buy", actor=actor, after={"trade": trade_id, "total_micros": found.total_micros}
    )
    for pk in sorted(sellers):
        _settle_seller(sellers[pk], trade, at=at)
    for step in _primary_steps(found.legs):
        calendar.commit(offer_id=window.offer.pk, gpus=step[2], starts_at=step[0], ends_at=step[1], at=at)
    return trade


def _match(
    organization: Organization, window: Window, terms: BlockTerms, limit_micros: int | None, *, at: datetime
) -> Fill:
    currency = organization.currency
    supply = supply_of(organization, [window.offer], {window.offer.pk: terms}, window.gpus, window.hours,
                       starts_at=window.starts_at, ends_at=window.ends_at, at=at)[window.offer.pk]  # fmt: skip
    try:
        legs = matching.fill(supply, starts_at=window.starts_at, ends_at=window.ends_at, gpus=window.gpus)
    except matching.Short as short:
        raise NoCapacity(
            gettext("At %(hour)s UTC %(found)s GPUs can be had, not %(gpus)s.")
            % {"hour": f"{short.hour:%Y-%m-%d %H:%M}", "found": short.found, "gpus": window.gpus}
        ) from short
    found = Fill(window=window, currency=currency, legs=legs)
    if limit_micros is not None and found.dearest_micros > limit_micros:
        raise LimitTooLow(
            gettext("The dearest GPU-hour of it costs %(price)s, and your limit is %(limit)s.")
            % {
                "price": money.shown(found.dearest_micros, currency, exact=True),
                "limit": money.shown(limit_micros, currency, exact=True),
            }
        )
    return found


def supply_of(
    organization: Organization,
    offers: Sequence[Offer],
    terms: Mapping[int, BlockTerms],
    gpus: int,
    hours: int,
    *,
    starts_at: datetime,
    ends_at: datetime,
    at: datetime,
) -> dict[int, dict[datetime, list[Supply]]]:
    """Return by offer and hour what an organization could buy for an order of this size. Four queries in all."""
    by_pk = {offer.pk: offer for offer in offers}
    supply: dict[int, dict[datetime, list[Supply]]] = {pk: defaultdict(list) for pk in by_pk}
    listed = ListedHour.objects.filter(
        offer__in=list(by_pk), hour__gte=starts_at, hour__lt=ends_at, listing__state=Listing.State.OPEN,
        listing__currency=organization.currency, listing__min_gpus__lte=gpus, listing__min_hours__lte=hours,
    ).exclude(listing__seller=organization)  # fmt: skip
    for offer_id, hour, listing_id, ask, left in listed.values_list(
        "offer", "hour", "listing", "listing__ask_micros", "gpus"
    ):
        if hour >= at + timedelta(minutes=terms[offer_id].resale_cutoff_minutes):
            supply[offer_id][hour].append(Supply(listing_id, ask, left))
    prices = blocks.prices_of(by_pk.values(), currency=organization.currency, at=at)
    number = (ends_at - starts_at) // HOUR
    for offer_id, free in calendar.free_by_hour(offer_ids=list(by_pk), starts_at=starts_at, hours=number).items():
        own = terms[offer_id]
        within = own.min_gpus <= gpus <= own.max_gpus and own.min_hours <= hours <= own.max_hours
        if offer_id not in prices or not within:
            continue
        discount = blocks.discount_bp(own.discounts, hours=hours)
        each = blocks.per_gpu_hour_micros(prices[offer_id], discount=discount)
        horizon = calendar.hour_of(at) + own.horizon_hours * HOUR
        for index, left in enumerate(free):
            hour = starts_at + index * HOUR
            if left and hour < horizon:
                supply[offer_id][hour].append(Supply(OFFER, each, left))
    return supply


def _fee(leg: Leg, fees: Mapping[int, int]) -> int:
    """Return what the platform keeps of a leg, by the fee in the terms that its seller bought on."""
    return 0 if leg.source == OFFER else blocks.kept_micros(leg.amount_micros, bp=fees[leg.source])


def _pay(
    project: Project,
    found: Fill,
    listings: Mapping[int, Listing],
    fees: Mapping[int, int],
    *,
    trade_id: str,
    reservation_id: str,
    at: datetime,
) -> Mapping[str, Paid]:
    """Take the buyer's money: for the offer's own hours, the fees, each listing. Credit goes to the first of them."""
    deferred = accounts.platform(Account.Kind.DEFERRED, found.currency)
    parts = []
    own = sum(leg.amount_micros for leg in found.legs if leg.source == OFFER)
    kept = sum(_fee(leg, fees) for leg in found.legs)
    if own:
        parts.append(Part("offer", deferred, own))
    if kept:
        parts.append(Part("fees", accounts.platform(Account.Kind.FEES, found.currency), kept))
    for pk in sorted(listings):
        net = sum(leg.amount_micros - _fee(leg, fees) for leg in found.legs if leg.source == pk)
        if net:
            parts.append(Part(listings[pk].public_id, deferred, net))
    window = found.window
    rows = [(leg.gpus, (leg.ends_at - leg.starts_at) // HOUR, leg.price_micros) for leg in found.legs]
    block = paid_ahead.block(
        paid_ahead.Kind.TRADE, reservation_id, window.offer, project, starts_at=window.starts_at,
        ends_at=window.ends_at, rows=rows,
    )  # fmt: skip
    return prepayments.pay(
        organization=project.organization, key=f"trade:{trade_id}", parts=parts, block=block,
        reason=f"Hours of {window.offer.name}", at=at,
    )  # fmt: skip


def _hours_of(
    leg: Leg, listings: Mapping[int, Listing], sellers: Mapping[int, Reservation], *, at: datetime
) -> list[Taken]:
    """Return the hours of a leg as they were before it, taken out of the seller's where it is not the offer's own."""
    if leg.source == OFFER:
        return [Taken(leg.starts_at, leg.ends_at, leg.gpus, leg.price_micros, leg.price_micros)]
    listing = listings[leg.source]
    hours = ListedHour.objects.filter(listing=listing, hour__gte=leg.starts_at, hour__lt=leg.ends_at)
    hours.filter(gpus=leg.gpus).delete()
    hours.update(gpus=F("gpus") - leg.gpus)
    if not listing.hours.exists():
        listing.close(Listing.State.SOLD, at=at)
    return holdings.take_out(
        sellers[listing.reservation_id], starts_at=leg.starts_at, ends_at=leg.ends_at, gpus=leg.gpus
    )


def _bought(one: Taken, leg: Leg) -> ReservationStrip:
    return ReservationStrip(
        starts_at=one.starts_at, ends_at=one.ends_at, gpus=one.gpus, paid_micros=leg.price_micros,
        worth_micros=one.worth_micros,
    )  # fmt: skip


def _write_down(
    trade_id: str,
    reservation: Reservation,
    found: Fill,
    listings: Mapping[int, Listing],
    fees: Mapping[int, int],
    *,
    limit_micros: int,
    at: datetime,
) -> Trade:
    window = found.window
    trade = Trade.objects.create(
        public_id=trade_id,
        offer=window.offer,
        buyer=reservation.project.organization,
        reservation=reservation,
        currency=found.currency,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        gpus=window.gpus,
        limit_micros=limit_micros,
        total_micros=found.total_micros,
        at=at,
    )
    TradeLeg.objects.bulk_create(
        [
            TradeLeg(
                trade=trade, listing=listings.get(leg.source), starts_at=leg.starts_at, ends_at=leg.ends_at,
                gpus=leg.gpus, price_micros=leg.price_micros, fee_micros=_fee(leg, fees),
            )
            for leg in found.legs
        ]
    )  # fmt: skip
    return trade


def _pay_sellers(
    trade: Trade,
    listings: Mapping[int, Listing],
    sellers: Mapping[int, Reservation],
    paid: Mapping[str, Paid],
    given_up: Mapping[int, Sequence[Taken]],
    *,
    at: datetime,
) -> None:
    """Pay each seller: what came as credit, or had been paid with credit, arrives as credit; the rest as cash.

    Up to what the hours had cost, that gives back their price; what is more is the seller's own gain.
    """
    deferred = accounts.platform(Account.Kind.DEFERRED, trade.currency)
    for pk in sorted(listings, key=lambda one: (listings[one].seller_id, one)):
        listing = listings[pk]
        came, reservation = paid.get(listing.public_id, Paid()), sellers[listing.reservation_id]
        promo = max(came.promo_micros, refunds.split(reservation, came.micros).promo_micros)
        back = min(came.micros, paid_ahead.cost_micros(paid_ahead.rows_of(given_up[pk])))
        block = paid_ahead.given_back(paid_ahead.Kind.RESOLD, reservation, given_up[pk], micros=back)
        prepayments.pay_out(
            organization=listing.seller,
            key=f"sale:{trade.public_id}:{listing.public_id}",
            source=deferred,
            sent=Paid(promo_micros=promo, cash_micros=came.micros - promo),
            reason=f"Sale of hours of {listing.reservation.public_id}",
            at=at,
            returned=(block, refunds.split(reservation, back)),
        )


def _settle_seller(reservation: Reservation, trade: Trade, *, at: datetime) -> None:
    """Keep the row of a seller's reservation beside its strips; what has no hours left is sold."""
    message = gettext("Hours of it were sold (%(trade)s).") % {"trade": trade.public_id}
    if holdings.refit(reservation):
        reservation.note(message, at=at)
    elif reservation.state in {ReservationState.SCHEDULED, ReservationState.LOCKED}:
        reservation.move_to(ReservationState.SOLD, at=at, message=message, is_lent=False)


def _primary_steps(legs: Sequence[Leg]) -> list[tuple[datetime, datetime, int]]:
    return [(leg.starts_at, leg.ends_at, leg.gpus) for leg in legs if leg.source == OFFER]
