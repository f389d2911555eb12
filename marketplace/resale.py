"""Resale: list hours that were bought, and take them off the market. Buying them is in `trades`."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils.translation import gettext

from billing import prices
from marketplace import audit, blocks, endings, holdings, money, reservations
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import (
    OVER,
    BlockTerms,
    ListedHour,
    Listing,
    Offer,
    Organization,
    Project,
    Reservation,
    TradeLeg,
)
from provisioning import policies
from provisioning.calendar import HOUR
from provisioning.errors import IllegalMove, PolicyExcludes

log = structlog.get_logger("marketplace.resale")

ASK_MAX_MICROS = 1_000_000_000_000
OPEN_MOST = 500


@dataclass(frozen=True)
class Ask:
    """So many GPUs of every hour of a window for sale, for so much a GPU-hour, to orders of at least this size."""

    starts_at: datetime
    ends_at: datetime
    gpus: int
    ask_micros: int
    min_gpus: int = 1
    min_hours: int = 1


@transaction.atomic
def put_up(*, actor: Actor, reservation: Reservation, ask: Ask, at: datetime) -> Listing:
    """List unstarted hours of a reservation; they stay its holder's until sold.

    Raises BadOrder, Conflict, or PolicyExcludes for what is delivered as whole nodes.
    """
    terms = reservations.lock_gate(reservation.offer_id)
    reservation = reservations.lock(reservation.pk)
    if terms is None or not terms.is_sold:
        raise BadOrder("reservation", gettext("Hours of this offer cannot be sold on now."))
    if refusal := endings.why_not_resold(reservation, at=at):
        raise IllegalMove(refusal)
    if policies.is_alone(reservation.project_id):
        why = gettext("A policy lets nobody share its hosts, so this block is whole nodes and is not sold in parts.")
        raise PolicyExcludes(why)
    _check_ask(ask, terms, reservation, at=at)
    _check_held(ask, reservation)
    listing = Listing.objects.create(
        reservation=reservation,
        offer=reservation.offer,
        seller=reservation.project.organization,
        currency=reservation.currency,
        ask_micros=ask.ask_micros,
        gpus=ask.gpus,
        starts_at=ask.starts_at,
        ends_at=ask.ends_at,
        min_gpus=ask.min_gpus,
        min_hours=ask.min_hours,
        created_at=at,
    )
    ListedHour.objects.bulk_create(
        [
            ListedHour(listing=listing, offer=reservation.offer, hour=ask.starts_at + number * HOUR, gpus=ask.gpus)
            for number in range((ask.ends_at - ask.starts_at) // HOUR)
        ]
    )
    audit.record_of(
        reservation,
        "listing.open",
        actor=actor,
        after={
            "listing": listing.public_id, "ask_micros": ask.ask_micros, "gpus": ask.gpus,
            "starts_at": ask.starts_at.isoformat(), "ends_at": ask.ends_at.isoformat(),
        },
    )  # fmt: skip
    return listing


def _check_ask(ask: Ask, terms: BlockTerms, reservation: Reservation, *, at: datetime) -> None:
    blocks.check_times(ask.starts_at, ask.ends_at, at=at)
    if ask.gpus < 1:
        raise BadOrder("gpus", gettext("List at least 1 GPU."))
    if not 0 < ask.ask_micros <= ASK_MAX_MICROS or ask.ask_micros % terms.ask_step_micros:
        raise BadOrder(
            "ask",
            gettext("Ask for a whole multiple of %(step)s, more than nothing.")
            % {"step": money.shown(terms.ask_step_micros, reservation.currency)},
        )
    if ask.ask_micros > (most := _most_micros(reservation, at=at)):
        raise BadOrder(
            "ask",
            gettext("A GPU-hour of the offer costs %(price)s today; ask for that at most.")
            % {"price": money.shown(most, reservation.currency, exact=True)},
        )
    cutoff = timedelta(minutes=terms.resale_cutoff_minutes)
    if ask.starts_at < at + cutoff:
        raise BadOrder(
            "starts_at",
            gettext("Hours are sold until %(minutes)s minutes before they begin; list later ones.")
            % {"minutes": terms.resale_cutoff_minutes},
        )
    hours = (ask.ends_at - ask.starts_at) // HOUR
    if not 1 <= ask.min_gpus <= ask.gpus:
        raise BadOrder("min_gpus", gettext("The smallest order has 1 to %(most)s GPUs.") % {"most": ask.gpus})
    if not 1 <= ask.min_hours <= hours:
        raise BadOrder("min_hours", gettext("The shortest order has 1 to %(most)s hours.") % {"most": hours})


def _most_micros(reservation: Reservation, *, at: datetime) -> int:
    """Return the most that may be asked: what a GPU-hour of the offer costs today, on demand or reserved.

    Whoever buys an hour that we then do not deliver gets back all that they paid, so two customers could
    sell each other hours that are known to be missing, at our expense.
    """
    offer, currency = reservation.offer, reservation.currency
    found = prices.current(skus=[offer.sku, offer.reserved_sku], currency=currency, at=at)
    return max((price.micros_per_unit_hour for price in found.values()), default=ASK_MAX_MICROS)


def _check_held(ask: Ask, reservation: Reservation) -> None:
    """Raise BadOrder where an hour does not have so many GPUs, Conflict where they are for sale already."""
    strips = list(reservation.strips.all())
    if ask.starts_at < reservation.starts_at or ask.ends_at > reservation.ends_at:
        raise BadOrder("starts_at", gettext("The reservation does not hold all of these hours."))
    held = holdings.least_within(strips, ask.starts_at, ask.ends_at)
    if held < ask.gpus:
        raise BadOrder(
            "gpus",
            gettext("In some of these hours the reservation holds %(held)s GPUs, not %(gpus)s.")
            % {"held": held, "gpus": ask.gpus},
        )
    listed: dict[datetime, int] = defaultdict(int)
    on_sale = ListedHour.objects.filter(listing__reservation=reservation, hour__gte=ask.starts_at, hour__lt=ask.ends_at)
    for hour, gpus in on_sale.values_list("hour", "gpus"):
        listed[hour] += gpus
    for hour in sorted(listed):
        left = holdings.held_at(strips, hour) - listed[hour]
        if left < ask.gpus:
            raise Conflict(
                gettext("Hours are sold once: at %(hour)s UTC %(listed)s GPUs are for sale already, %(left)s are not.")
                % {"hour": f"{hour:%Y-%m-%d %H:%M}", "listed": listed[hour], "left": left}
            )


@transaction.atomic
def withdraw(*, actor: Actor, listing: Listing, at: datetime) -> Listing:
    """Take what was not sold off the market; its hours stay the holder's. Withdrawing twice changes nothing."""
    reservations.lock_gate(listing.offer_id)
    listing.refresh_from_db(fields=["state"])
    if listing.state == Listing.State.WITHDRAWN:
        return listing
    if listing.state != Listing.State.OPEN:
        raise IllegalMove(gettext("Nothing of it is for sale any more: %(s)s.") % {"s": listing.get_state_display()})
    listing.close(Listing.State.WITHDRAWN, at=at)
    audit.record_of(listing.reservation, "listing.withdraw", actor=actor, after={"listing": listing.public_id})
    return listing


def lock_all_of(scope: Organization | Project) -> QuerySet[Reservation]:
    """Lock the gates behind which hours of a project, or of an organization, are sold on; return what has any."""
    mine = Q(project__organization=scope) if isinstance(scope, Organization) else Q(project=scope)
    held = Reservation.objects.filter(mine).exclude(state__in=OVER)
    for offer_id in sorted(set(held.values_list("offer", flat=True))):
        reservations.lock_gate(offer_id)
    return held


def withdraw_all(held: QuerySet[Reservation], *, actor: Actor, at: datetime) -> None:
    """Take all that is for sale of these reservations off the market."""
    for listing in Listing.objects.filter(reservation__in=held, state=Listing.State.OPEN).order_by("pk"):
        withdraw(actor=actor, listing=listing, at=at)


def expire_due(*, at: datetime, limit: int) -> int:
    """Take hours off the market that begin too soon, and close listings that have none left; return how many hours."""
    late = ListedHour.objects.filter(
        hour__lt=at + F("offer__block_terms__resale_cutoff_minutes") * timedelta(minutes=1)
    )
    gone = 0
    for offer_id in list(late.order_by("offer").values_list("offer", flat=True).distinct()[:limit]):
        with transaction.atomic():
            reservations.lock_gate(offer_id)
            gone += late.filter(
                pk__in=list(late.filter(offer=offer_id).values_list("pk", flat=True)[:10_000])
            ).delete()[0]
            for listing in Listing.objects.filter(offer=offer_id, state=Listing.State.OPEN, hours=None):
                listing.close(Listing.State.EXPIRED, at=at)
    return gone


@dataclass(frozen=True)
class OpenAsk:
    """An open listing as the market sees it: what is left, and whether it is one's own. Its seller is not named."""

    listing: Listing
    left: list[holdings.Step]
    is_mine: bool


@dataclass(frozen=True)
class Sold:
    """What was sold of a listing, and what that paid its seller."""

    gpu_hours: int = 0
    proceeds_micros: int = 0


def open_asks(
    *, organization: Organization, offer: Offer, starts_at: datetime, ends_at: datetime | None
) -> list[OpenAsk]:
    """Return what is for sale of an offer in an organization's currency, the cheapest first. Two queries."""
    hours = ListedHour.objects.filter(offer=offer, hour__gte=starts_at)
    if ends_at is not None:
        hours = hours.filter(hour__lt=ends_at)
    found = Listing.objects.filter(
        offer=offer, state=Listing.State.OPEN, currency=organization.currency, pk__in=hours.values("listing")
    )
    rows = list(found.order_by("ask_micros", "pk")[:OPEN_MOST])
    left = left_of(rows)
    return [OpenAsk(listing=row, left=left[row.pk], is_mine=row.seller_id == organization.pk) for row in rows]


def left_of(listings: Iterable[Listing]) -> dict[int, list[holdings.Step]]:
    """Return what of each listing is still for sale, as steps, by its primary key. One query."""
    left: dict[int, list[holdings.Step]] = {listing.pk: [] for listing in listings}
    rows = ListedHour.objects.filter(listing__in=list(left)).order_by("hour")
    for listing_id, hour, gpus in rows.values_list("listing", "hour", "gpus"):
        steps = left[listing_id]
        if steps and (steps[-1].ends_at, steps[-1].gpus) == (hour, gpus):
            steps[-1] = holdings.Step(steps[-1].starts_at, hour + HOUR, gpus)
        else:
            steps.append(holdings.Step(hour, hour + HOUR, gpus))
    return left


def sold_of(listings: Iterable[Listing]) -> dict[int, Sold]:
    """Return what was sold of each listing, by its primary key. One query."""
    sold = {listing.pk: Sold() for listing in listings}
    for leg in TradeLeg.objects.filter(listing__in=list(sold)):
        assert leg.listing_id is not None
        gpu_hours = leg.gpus * ((leg.ends_at - leg.starts_at) // HOUR)
        before = sold[leg.listing_id]
        sold[leg.listing_id] = Sold(
            before.gpu_hours + gpu_hours, before.proceeds_micros + gpu_hours * leg.price_micros - leg.fee_micros
        )
    return sold
