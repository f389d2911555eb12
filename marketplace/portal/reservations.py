"""Reservations: the list, one of them, its quotes, and what can be done. Each purchase shows its quote first."""

import secrets
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, coverage, endings, held, holdings, idempotency, lending, quotes, resale, reservations
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Quote, Reservation
from marketplace.portal import errors
from marketplace.portal.doors import REFUSALS, Visit, hours_after, page, whole_number
from provisioning import calendar

PAGE = 50
EVENTS_MOST = 50
ASKED = ("gpus", "starts_at", "ends_at", "ask", "min_gpus", "min_hours")


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the organization's reservations, newest first, with what is used of each now."""
    organization = visit.organization(verb="reservation.view")
    found = held.reservations(visit.actor).filter(project__organization=organization)
    before = visit.query("before")
    if before:
        found = found.filter(pk__lt=held.reservations(visit.actor).filter(public_id=before).values("pk"))
    rows = list(found.order_by("-pk")[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    used = coverage.used_gpus(rows)
    context = {
        "rows": [(row, used[row.pk]) for row in rows],
        "older": rows[-1].public_id if more else "",
        "may_change": access.may(visit.actor, organization, "reservation.change"),
    }
    return visit.live_page("reservations/list.html", "rows", context)


@page()
def shown(visit: Visit, reservation_id: str) -> HttpResponse:
    """Show one reservation: which hours it holds, what runs inside, its money, and what can be done."""
    found = held.reservation_for(visit.actor, reservation_id, verb="reservation.view")
    actions = reservations.actions(found, at=visit.at)
    listings = list(held.listings(visit.actor).filter(reservation=found).order_by("-pk")[:PAGE])
    context = {
        "reservation": found,
        "steps": holdings.steps(list(found.strips.all())),
        "instances": [one for one in endings.inside(found) if one.project_id == found.project_id],
        "used": coverage.used_gpus([found])[found.pk],
        "lent_micros": lending.earned_micros([found])[found.pk],
        "costs": quotes.costs_over_time(found, at=visit.at) if not actions["cancel"] else [],
        "actions": actions,
        "listings": _with_sales(listings),
        "events": list(held.reservation_events(found).order_by("-pk")[:EVENTS_MOST]),
        "may_change": access.may(visit.actor, found.project.organization, "reservation.change"),
    }
    return visit.live_page("reservations/show.html", "live", context)


def _with_sales(listings: list[Any]) -> list[tuple[Any, Any]]:
    sold = resale.sold_of(listings)
    return [(row, sold[row.pk]) for row in listings]


@page("GET", "HEAD", "POST")
def quoted(visit: Visit, quote_id: str) -> HttpResponse:
    """Show a quote with all its terms; use it once that is confirmed. It is used once, so sending twice is safe."""
    verb = "reservation.change" if visit.request.method == "POST" else "reservation.view"
    quote = held.quote_for(visit.actor, quote_id, verb=verb)
    refusal = None
    if visit.request.method == "POST":
        try:
            return _used(visit, quote)
        except REFUSALS as error:
            refusal = errors.refusal_of(error, reference=visit.actor.request_id)
            quote.refresh_from_db(fields=["used_at"])
    context = {
        "quote": quote,
        "refusal": refusal,
        "saved_micros": quote.list_micros - quote.total_micros if quote.kind != Quote.Kind.CANCELLATION else 0,
        "is_good": quote.used_at is None and quote.expires_at > visit.at,
        "may_change": access.may(visit.actor, quote.project.organization, "reservation.change"),
    }
    return visit.page("reservations/quote.html", context, status=refusal.status if refusal else 200)


def _used(visit: Visit, quote: Quote) -> HttpResponse:
    if quote.kind == Quote.Kind.PURCHASE:
        with transaction.atomic():  # A refusal ends it; the page then reads the quote again.
            bought = reservations.buy(actor=visit.actor, quote=quote, at=visit.at)
        messages.success(visit.request, _("The GPUs are reserved. Nothing more is charged for what runs inside."))
        return redirect("reservation", bought.public_id)
    assert quote.reservation is not None
    if quote.kind == Quote.Kind.EXTENSION:
        reservations.extend(actor=visit.actor, reservation=quote.reservation, quote=quote, at=visit.at)
        messages.success(visit.request, _("The reservation is extended."))
    else:
        reservations.cancel(actor=visit.actor, reservation=quote.reservation, quote=quote, at=visit.at)
        messages.success(visit.request, _("The reservation is cancelled."))
    return redirect("reservation", quote.reservation.public_id)


@page("GET", "HEAD", "POST")
def extend(visit: Visit, reservation_id: str) -> HttpResponse:
    """Ask for how many hours, then show the quote of an extension."""
    found = held.reservation_for(visit.actor, reservation_id, verb="reservation.change")
    wrong: dict[str, str] = {}
    if visit.request.method == "POST":
        try:
            ends_at = hours_after(found.ends_at, visit.text("hours"))
            quote = quotes.for_extension(reservation=found, ends_at=ends_at, at=visit.at)
            return redirect("quote", quote.public_id)
        except BadOrder as error:
            wrong = {"hours": str(error)}
    context = {
        "reservation": found,
        "refusal": quotes.why_not_extended(found, at=visit.at),
        "errors": wrong,
        "typed": {"hours": visit.text("hours") or "24"},
    }
    return visit.page("reservations/extend.html", context, status=422 if wrong else 200)


@page("POST")
def cancel(visit: Visit, reservation_id: str) -> HttpResponse:
    """Quote what cancelling costs now, and show it."""
    found = held.reservation_for(visit.actor, reservation_id, verb="reservation.change")
    return redirect("quote", quotes.for_cancellation(reservation=found, at=visit.at).public_id)


@page("POST")
def lend(visit: Visit, reservation_id: str) -> HttpResponse:
    """Lend what stands idle, or stop that."""
    found = held.reservation_for(visit.actor, reservation_id, verb="reservation.change")
    is_lent = visit.text("is_lent") == "true"
    reservations.lend(actor=visit.actor, reservation=found, is_lent=is_lent, at=visit.at)
    said = _("Nothing is lent any more.")
    if is_lent:
        said = _("What stands idle is lent to spot. Your own use comes first.")
    messages.success(visit.request, said)
    return redirect("reservation", found.public_id)


@page("GET", "HEAD", "POST")
def sell(visit: Visit, reservation_id: str) -> HttpResponse:
    """Put hours of a reservation up for sale, once for each form; it shows again what is wrong with them."""
    found = held.reservation_for(visit.actor, reservation_id, verb="reservation.change")
    wrong: dict[str, str] = {}
    if visit.request.method == "POST":
        try:
            _put_up_once(visit, found)
            messages.success(visit.request, _("The hours are for sale. They stay yours until they are sold."))
            return redirect("reservation", found.public_id)
        except (BadOrder, Conflict) as error:
            wrong = {error.field if isinstance(error, BadOrder) else "gpus": str(error)}
    return visit.page("reservations/sell.html", _sell_context(visit, found, wrong), status=422 if wrong else 200)


def _put_up_once(visit: Visit, found: Reservation) -> None:
    def put_up() -> tuple[int, Any]:
        return 201, {"id": resale.put_up(actor=visit.actor, reservation=found, ask=_ask(visit), at=visit.at).public_id}

    idempotency.once(
        organization=found.project.organization, route=f"portal sell hours of {found.public_id}",
        key=visit.raw("key"), order={name: visit.text(name) for name in ASKED}, effect=put_up,
    )  # fmt: skip


def _ask(visit: Visit) -> resale.Ask:
    return resale.Ask(
        starts_at=visit.moment("starts_at"),
        ends_at=visit.moment("ends_at"),
        gpus=whole_number(visit.text("gpus")),
        ask_micros=visit.money("ask"),
        min_gpus=whole_number(visit.text("min_gpus") or "1"),
        min_hours=whole_number(visit.text("min_hours") or "1"),
    )


def _sell_context(visit: Visit, found: Reservation, wrong: dict[str, str]) -> dict[str, Any]:
    first = calendar.hour_of(visit.at) + 2 * calendar.HOUR
    ordinary = {
        "starts_at": f"{max(found.starts_at, first):%Y-%m-%dT%H:%M}",
        "ends_at": f"{found.ends_at:%Y-%m-%dT%H:%M}",
        "gpus": str(found.gpus),
        "ask": "",
        "min_gpus": "1",
        "min_hours": "1",
    }
    return {
        "reservation": found,
        "key": secrets.token_urlsafe(24),
        "refusal": endings.why_not_resold(found, at=visit.at),
        "errors": wrong,
        "typed": {name: visit.text(name) or usual for name, usual in ordinary.items()},
        "steps": holdings.steps(list(found.strips.all())),
    }
