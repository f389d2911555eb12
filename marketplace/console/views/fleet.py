"""The first pages of the console: what needs somebody, the figures, the map, the books."""

from django.http import HttpResponse

from billing import books
from marketplace.console import catalogue, closings, fleet, gangs, maps, troubles
from marketplace.console.door import managers_only
from marketplace.portal.doors import Visit


@managers_only()
def overview(visit: Visit) -> HttpResponse:
    """Show what needs somebody, the figures of the fleet and its map."""
    context = {
        "alarm": troubles.alarm(at=visit.at),
        "glance": fleet.glance(at=visit.at),
        "map": maps.drawn(),
    }
    return visit.live_page("console/fleet.html", "live", context)


@managers_only()
def fleet_map(visit: Visit) -> HttpResponse:
    """Show the map of the fleet, of one site or of one rack."""
    site, rack = visit.query("site"), visit.query("rack")
    drawn = maps.drawn(site=site, rack=rack)
    is_table = visit.query("view") == "table"
    context = {"map": drawn, "site": site, "rack": rack, "sites": catalogue.sites(), "is_table": is_table}
    return visit.live_page("console/map.html", "live", context)


@managers_only()
def placement_page(visit: Visit) -> HttpResponse:
    """Show the largest gang that can start now, by offer, and what is in the way of a larger one."""
    return visit.live_page("console/placement.html", "live", {"rooms": gangs.rooms()})


@managers_only()
def books_page(visit: Visit) -> HttpResponse:
    """Show what of past months is not closed; audit the books when asked to, and show the verdict."""
    is_asked = "check" in visit.request.GET
    context = {
        "is_asked": is_asked,
        "findings": books.check(at=visit.at) if is_asked else [],
        "counts": books.counts() if is_asked else {},
        "rules": len(books.EVERY_RULE),
        "late": closings.late(at=visit.at),
    }
    return visit.page("console/books.html", context)
