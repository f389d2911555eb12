"""What the GPUs of an instance read, as charts on its page."""

from django.http import HttpResponse

from marketplace import access
from marketplace.portal import lines
from marketplace.portal.doors import Visit, page
from provisioning import telemetry


@page()
def shown(visit: Visit, instance_id: str) -> HttpResponse:
    """Show the last hour of the GPUs of an instance's current run: a part of its page, which asks for it by itself."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.view")
    since = visit.at - lines.SPAN
    found = telemetry.series(of=instance, run=instance.run, since=since, until=visit.at, step=telemetry.SLOT)
    context = {"instance": instance, "readings": lines.readings(found, since=since, until=visit.at)}
    return visit.page("instances/telemetry.html", context)
