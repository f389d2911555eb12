"""Free hours: how full each hour to come is, as a picture and as a list of equal power, and the way to a quote."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.http import HttpResponse
from django.shortcuts import redirect

from marketplace import access, blocks, offers, quotes, windows
from marketplace.blocks import Window
from marketplace.errors import BadOrder
from marketplace.models import Offer, Organization
from marketplace.portal import errors
from marketplace.portal.doors import REFUSALS, Visit, hours_after, page, whole_number
from marketplace.windows import Cell, Found
from provisioning.calendar import HOUR, hour_of

DAYS = 7
FIELDS = ("offer", "gpus", "starts_at", "hours", "project")
SEARCHED = ("search_gpus", "search_hours", "before")


@dataclass(frozen=True)
class Stretch:
    """Hours that follow each other and have as many free GPUs."""

    starts_at: datetime
    ends_at: datetime
    free: int
    gpus: int

    @property
    def level(self) -> int:
        return Cell(self.starts_at, self.free, self.gpus).level


@page("GET", "HEAD", "POST")
def shown(visit: Visit) -> HttpResponse:
    """Show a week of an offer, hour by hour, and search for windows; a valid order becomes a quote."""
    organization = visit.organization(verb="reservation.view")
    if visit.request.method != "POST":
        return _page(visit, organization, {name: visit.query(name) for name in FIELDS})
    typed = {name: visit.text(name) for name in FIELDS}
    project = access.project_for(visit.actor, typed["project"] or None, verb="reservation.change")
    try:
        starts_at = visit.moment("starts_at")
        ends_at = hours_after(starts_at, typed["hours"])
        window = Window(offers.offer_for(typed["offer"]), whole_number(typed["gpus"]), starts_at, ends_at)
        return redirect("quote", quotes.for_purchase(project=project, window=window, at=visit.at).public_id)
    except BadOrder as error:
        field = "hours" if error.field == "ends_at" else error.field
        return _page(visit, organization, typed, errors={field: str(error)}, status=422)
    except REFUSALS as error:
        refusal = errors.refusal_of(error, reference=visit.actor.request_id)
        return _page(visit, organization, typed, refusal=refusal, status=refusal.status)


def _page(
    visit: Visit, organization: Organization, typed: dict[str, str], *, status: int = 200, **more: Any
) -> HttpResponse:
    everything, projects = _sold(visit, organization), visit.projects(organization)
    sold = windows.allowed(offers=everything, projects=projects)
    offer = next((one for one in sold if one.slug == typed["offer"]), sold[0] if sold else None)
    week = max(0, min(51, whole_number(visit.query("week") or "0")))
    context: dict[str, Any] = {
        "offers": sold,
        "offer": offer,
        "week": week,
        "projects": projects,
        "left_out": len(everything) - len(sold),
        "may_change": access.may(visit.actor, organization, "reservation.change"),
        "errors": {},
        "found": None,
        "search_error": "",
        "searched": {name: visit.query(name) for name in SEARCHED},
    }
    if offer is not None:
        context |= _week(visit, organization, offer, week, typed)
        context |= _search(visit, organization, sold)
    return visit.page("reservations/hours.html", {**context, **more}, status=status)


def _sold(visit: Visit, organization: Organization) -> list[Offer]:
    """Return the offers of which blocks are sold in the organization's currency."""
    found = list(offers.listed())
    terms = blocks.sold_ahead(found)
    prices = blocks.prices_of(found, currency=organization.currency, at=visit.at)
    return [offer for offer in found if offer.pk in terms and offer.pk in prices]


def _week(visit: Visit, organization: Organization, offer: Offer, week: int, typed: dict[str, str]) -> dict[str, Any]:
    first_day = visit.at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=DAYS * week)
    cells = windows.heat(offers=[offer], starts_at=first_day, hours=24 * DAYS)[offer.pk]
    now = hour_of(visit.at)
    coming = [cell for cell in cells if cell.starts_at > now]
    terms = blocks.terms_of(offer)
    price = blocks.price_of(offer, currency=organization.currency, at=visit.at)
    ordinary = {
        "offer": offer.slug,
        "gpus": str(min(offer.gpus_per_node, terms.max_gpus)),
        "starts_at": f"{now + HOUR:%Y-%m-%dT%H:%M}",
        "hours": str(max(24, terms.min_hours)),
        "project": "",
    }
    return {
        "terms": terms,
        "price": price,
        "days": [(cells[24 * day].starts_at, cells[24 * day : 24 * day + 24]) for day in range(DAYS)],
        "now": now,
        "stretches": stretches(coming),
        "hours_of_day": range(24),
        "typed": {name: typed[name] or usual for name, usual in ordinary.items()},
    }


def stretches(cells: list[Cell]) -> list[Stretch]:
    """Return hours that are alike joined, for who reads instead of looking."""
    found: list[Stretch] = []
    for cell in cells:
        last = found[-1] if found else None
        if last is not None and last.free == cell.free:
            found[-1] = Stretch(last.starts_at, cell.starts_at + HOUR, cell.free, cell.gpus)
        else:
            found.append(Stretch(cell.starts_at, cell.starts_at + HOUR, cell.free, cell.gpus))
    return found


def _search(visit: Visit, organization: Organization, sold: list[Offer]) -> dict[str, Any]:
    """Return what was found for a search in the address, or what is wrong with it; nothing where there is none."""
    gpus, hours = visit.query("search_gpus"), visit.query("search_hours")
    if not gpus or not hours:
        return {}
    try:
        before = visit.moment_of("before", visit.query("before"))
        wish = windows.Wish(gpus=whole_number(gpus), hours=whole_number(hours), latest_end=before)
        found: list[Found] = windows.search(organization=organization, offers=sold, wish=wish, at=visit.at)
    except BadOrder as error:
        return {"search_error": str(error)}
    return {"found": found}
