"""What contracts leave the platform, and how far shared revenue is reported and charged."""

from datetime import timedelta

from django.http import HttpResponse

from billing.outcomes import margins
from marketplace.console import contracts
from marketplace.console.door import managers_only
from marketplace.portal.doors import Visit

LENGTHS = {"30": 30, "90": 90, "365": 365}
ROWS_MAX = 200


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """Show for each contract what buyers paid, what suppliers get of it, what the work took, and what is left."""
    days = LENGTHS.get(visit.query("period"), 30)
    found = margins.margins(since=visit.at - timedelta(days=days))[:ROWS_MAX]
    known = contracts.versions_named(row.version for row in found)
    context = {"margins": [(row, known.get(row.version)) for row in found], "days": days, "lengths": list(LENGTHS)}
    return visit.page("console/margins.html", context)


@managers_only()
def revenue(visit: Visit) -> HttpResponse:
    """Show the periods of shared revenue: those that are not closed first, then the newest."""
    waiting, closed = contracts.revenue_periods(most=ROWS_MAX)
    return visit.page("console/revenue_periods.html", {"waiting": waiting, "closed": closed})
