"""The door to what customers hold ahead: reservations, quotes, listings, trades. A part of `access` in its own file.

NotFound for what the actor may not know exists, Forbidden for what they may
see but not do, as there.
"""

from django.db.models import QuerySet

from marketplace.access import Actor, _check, _memberships_for, _projects, memberships
from marketplace.errors import NotFound
from marketplace.models import Listing, Membership, Project, Quote, Reservation, ReservationEvent, Trade


def reservations(actor: Actor) -> QuerySet[Reservation]:
    """Return the reservations that this actor may see, with what their pages show."""
    return _reservations(actor, _memberships_for(actor, "reservation.view"))


def _reservations(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Reservation]:
    found = Reservation.objects.select_related("project__organization", "offer__site", "price_version")
    found = found.prefetch_related("strips", "shortfalls")
    return found.filter(project__in=_projects(actor, through).values("pk"))


def reservation_for(actor: Actor, reservation_id: str, *, verb: str) -> Reservation:
    """Return a reservation by its id."""
    reservation = _reservations(actor, memberships(actor)).filter(public_id=reservation_id).first()
    if reservation is None:
        raise NotFound
    _check(actor, reservation.project.organization_id, verb)
    return reservation


def reservation_of(project: Project, reservation_id: str) -> Reservation:
    """Return a project's reservation by its id; the caller came through `project_for`."""
    found = Reservation.objects.filter(project=project, public_id=reservation_id)
    reservation = found.select_related("offer", "price_version").first()
    if reservation is None:
        raise NotFound
    return reservation


def reservation_events(reservation: Reservation) -> QuerySet[ReservationEvent]:
    """Return what happened to a reservation; the caller came through `reservation_for`."""
    return ReservationEvent.objects.filter(reservation=reservation)


def quote_for(actor: Actor, quote_id: str, *, verb: str) -> Quote:
    """Return a quote by its id."""
    seen = Quote.objects.filter(project__in=_projects(actor, memberships(actor)).values("pk"))
    related = seen.select_related("project__organization", "offer__site", "price_version", "reservation")
    quote = related.filter(public_id=quote_id).first()
    if quote is None:
        raise NotFound
    _check(actor, quote.project.organization_id, verb)
    return quote


def listings(actor: Actor) -> QuerySet[Listing]:
    """Return what this actor's projects sell and sold of their reservations."""
    return _listings(actor, _memberships_for(actor, "reservation.view"))


def _listings(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Listing]:
    found = Listing.objects.select_related("reservation__project__organization", "offer__site")
    return found.filter(reservation__project__in=_projects(actor, through).values("pk"))


def listing_for(actor: Actor, listing_id: str, *, verb: str) -> Listing:
    """Return one of the actor's own listings by its id."""
    listing = _listings(actor, memberships(actor)).filter(public_id=listing_id).first()
    if listing is None:
        raise NotFound
    _check(actor, listing.seller_id, verb)
    return listing


def trades(actor: Actor) -> QuerySet[Trade]:
    """Return the orders of this actor's projects that were filled."""
    return _trades(actor, _memberships_for(actor, "reservation.view"))


def _trades(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Trade]:
    found = Trade.objects.select_related("reservation__project", "offer__site").prefetch_related("legs")
    return found.filter(reservation__project__in=_projects(actor, through).values("pk"))


def trade_for(actor: Actor, trade_id: str, *, verb: str) -> Trade:
    """Return a filled order by its id."""
    trade = _trades(actor, memberships(actor)).filter(public_id=trade_id).first()
    if trade is None:
        raise NotFound
    _check(actor, trade.buyer_id, verb)
    return trade
