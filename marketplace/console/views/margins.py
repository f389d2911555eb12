"""What contracts leave the platform, and how far shared revenue is reported and charged."""

from datetime import timedelta

from django.http import HttpResponse

from billing.outcomes import margins
from marketplace.console.door import managers_only
from marketplace.models import ContractVersion, RevenuePeriod
from marketplace.portal.doors import Visit

LENGTHS = {"30": 30, "90": 90, "365": 365}
ROWS_MAX = 200


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """Show for each contract what buyers paid, what suppliers get of it, what the work took, and what is left."""
    days = LENGTHS.get(visit.query("period"), 30)
    found = margins.margins(since=visit.at - timedelta(days=days))[:ROWS_MAX]
    versions = ContractVersion.objects.filter(public_id__in=[row.version for row in found])
    known = {row.public_id: row for row in versions.select_related("contract__seller")}
    context = {"margins": [(row, known.get(row.version)) for row in found], "days": days, "lengths": list(LENGTHS)}
    return visit.page("console/margins.html", context)


@managers_only()
def revenue(visit: Visit) -> HttpResponse:
    """Show the periods of shared revenue: those that are not closed first, then the newest."""
    rows = RevenuePeriod.objects.select_related("version__contract__seller", "organization")
    waiting = list(rows.exclude(state=RevenuePeriod.State.CLOSED).order_by("due_at", "pk")[:ROWS_MAX])
    closed = list(rows.filter(state=RevenuePeriod.State.CLOSED).order_by("-pk")[:ROWS_MAX])
    return visit.page("console/revenue_periods.html", {"waiting": waiting, "closed": closed})
