"""Resale: what holders sell, what the organization sells itself, and buying hours at no more than a limit."""

import secrets
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, blocks, held, idempotency, offers, resale, trades
from marketplace.blocks import Window
from marketplace.errors import BadOrder
from marketplace.models import Offer, Organization
from marketplace.portal import errors
from marketplace.portal.doors import REFUSALS, Visit, hours_after, page, whole_number
from provisioning.calendar import HOUR, hour_of

PAGE = 50
FIELDS = ("offer", "gpus", "starts_at", "hours", "limit", "project")
ROUTE = "portal buy hours"


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show what is for sale of an offer, and the organization's own listings."""
    organization = visit.organization(verb="reservation.view")
    return visit.page("reservations/listings.html", _context(visit, organization, _typed_in_address(visit)))


def _typed_in_address(visit: Visit) -> dict[str, str]:
    return {name: visit.query(name) for name in FIELDS}


def _context(visit: Visit, organization: Organization, typed: dict[str, str]) -> dict[str, Any]:
    sold = list(offers.listed())
    terms = blocks.sold_ahead(sold)
    sold = [offer for offer in sold if offer.pk in terms]
    offer = next((one for one in sold if one.slug == typed["offer"]), sold[0] if sold else None)
    own = list(held.listings(visit.actor).filter(seller=organization).order_by("-pk")[:PAGE])
    sales, left = resale.sold_of(own), resale.left_of(own)
    return {
        "offers": sold,
        "offer": offer,
        "asks": _asks(visit, organization, offer),
        "own": [(row, left[row.pk], sales[row.pk]) for row in own],
        "projects": visit.projects(organization),
        "may_change": access.may(visit.actor, organization, "reservation.change"),
        "typed": _ordinary(visit, offer) | {name: value for name, value in typed.items() if value},
        "errors": {},
    }


def _asks(visit: Visit, organization: Organization, offer: Offer | None) -> list[resale.OpenAsk]:
    if offer is None:
        return []
    return resale.open_asks(organization=organization, offer=offer, starts_at=visit.at, ends_at=None)


def _ordinary(visit: Visit, offer: Offer | None) -> dict[str, str]:
    starts_at = hour_of(visit.at) + 24 * HOUR
    slug = offer.slug if offer else ""
    return {"offer": slug, "gpus": "1", "starts_at": f"{starts_at:%Y-%m-%dT%H:%M}", "hours": "1", "limit": ""}


@page("POST")
def buy(visit: Visit) -> HttpResponse:
    """Show how an order would be filled; fill it once that is confirmed."""
    organization = visit.organization(verb="reservation.change")
    typed = {name: visit.text(name) for name in FIELDS}
    project = access.project_for(visit.actor, typed["project"] or None, verb="reservation.change")
    try:
        starts_at, limit = visit.moment("starts_at"), visit.money("limit")
        offer = offers.offer_for(typed["offer"])
        window = Window(offer, whole_number(typed["gpus"]), starts_at, hours_after(starts_at, typed["hours"]))
        if visit.text("confirmed") != "true":
            fill = trades.look(project=project, window=window, limit_micros=limit, at=visit.at)
            context = {"fill": fill, "typed": typed, "limit_micros": limit, "key": secrets.token_urlsafe(24)}
            return visit.page("reservations/fill.html", context)

        def effect() -> tuple[int, Any]:
            made = trades.buy(actor=visit.actor, project=project, window=window, limit_micros=limit, at=visit.at)
            return 202, {"reservation": made.reservation.public_id}

        answer = idempotency.once(
            organization=organization, route=ROUTE, key=visit.raw("key"), order=typed, effect=effect
        )
    except BadOrder as error:
        field = {"ends_at": "hours"}.get(error.field, error.field)
        context = _context(visit, organization, typed) | {"errors": {field: str(error)}}
        return visit.page("reservations/listings.html", context, status=422)
    except REFUSALS as error:
        refusal = errors.refusal_of(error, reference=visit.actor.request_id)
        context = _context(visit, organization, typed) | {"refusal": refusal}
        return visit.page("reservations/listings.html", context, status=refusal.status)
    messages.success(visit.request, _("The hours are yours. Nothing more is charged for what runs inside."))
    return redirect("reservation", answer.body["reservation"])


@page("POST")
def withdraw(visit: Visit, listing_id: str) -> HttpResponse:
    """Take what was not sold of a listing off the market."""
    found = held.listing_for(visit.actor, listing_id, verb="reservation.change")
    resale.withdraw(actor=visit.actor, listing=found, at=visit.at)
    messages.success(visit.request, _("The listing is withdrawn. What was not sold stays yours."))
    return redirect("listings")
