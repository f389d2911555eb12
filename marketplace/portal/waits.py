"""Orders that wait for GPUs: the list with places in the queue, and what the launch form offers when nothing fits."""

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, idempotency, outlook, rentals, waiting
from marketplace.errors import BadOrder
from marketplace.models import Project, WaitingOrder
from marketplace.money import plain
from marketplace.offers import Listing
from marketplace.portal import bidding
from marketplace.portal.doors import Visit, page, whole_number

PAGE = 50
HOURS_DEFAULT = "24"
ROUTE = "portal/wait"


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the organization's orders that wait or waited, newest first."""
    organization = visit.organization(verb="wait.view")
    found = access.waiting_orders(visit.actor).filter(project__organization=organization)
    rows = list(found.order_by("-pk")[:PAGE])
    places, estimates = waiting.positions(rows), outlook.estimates(rows, at=visit.at)
    context = {
        "rows": [(row, places.get(row.pk), estimates.get(row.pk), waiting.told(row)) for row in rows],
        "organization": organization,
        "may_change": access.may(visit.actor, organization, "wait.change"),
    }
    return visit.live_page("waits/list.html", "rows", context)


@page("POST")
def cancel(visit: Visit, entry_id: str) -> HttpResponse:
    """Take an order out of the queue."""
    entry = access.waiting_order_for(visit.actor, entry_id, verb="wait.change")
    waiting.cancel(actor=visit.actor, entry=entry, at=visit.at)
    messages.success(visit.request, _("The order waits no more. Nothing was charged for it."))
    return redirect("waits")


def offered(visit: Visit, project: Project, listing: Listing, typed: dict[str, str]) -> dict[str, Any]:
    """Return what the launch form shows where an order does not fit now; nothing where its size makes no sense."""
    try:
        found = outlook.look(
            project=project, offer=listing.offer, gpus=whole_number(typed["gpus"]),
            replicas=whole_number(typed["replicas"]), at=visit.at,
        )  # fmt: skip
    except BadOrder:
        return {}
    price = plain(listing.price.micros_per_unit_hour)
    return {"outlook": found, "max_price": typed["max_price"] or price, "hours": typed["hours"] or HOURS_DEFAULT}


def begin(visit: Visit, project: Project, order: rentals.Order, typed: dict[str, str], *, key: str) -> None:
    """Let an order of the launch form wait; the same form sent again waits once."""
    hours = whole_number(typed["hours"])
    if hours < 1:
        raise BadOrder("hours", _("Type a whole number, such as 1."))

    def wait() -> tuple[int, Any]:
        entry: WaitingOrder = waiting.wait(
            actor=visit.actor, project=project, order=order, max_micros_per_gpu_hour=_micros(typed["max_price"]),
            until=visit.at + timedelta(hours=min(hours, 10_000)), at=visit.at,
        )  # fmt: skip
        return 202, {"id": entry.public_id}

    idempotency.once(organization=project.organization, route=ROUTE, key=key, order=typed, effect=wait)
    messages.success(visit.request, _("Your order waits and starts by itself. Nothing is charged until it is ready."))


def _micros(text: str) -> int:
    micros = bidding.micros_of(text)
    if micros is None:
        raise BadOrder("max_price", _("Say the most that a GPU-hour may cost, such as 2.50."))
    return micros
