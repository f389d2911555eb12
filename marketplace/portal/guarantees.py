"""Guaranteed performance of an instance: its measured hours drawn against the floor, and what they credited."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, access_till
from marketplace.guarantees import guarding
from marketplace.portal import guarantee_chart
from marketplace.portal.doors import Visit, page

HOURS_MAX = 168


@page("GET", "HEAD", "POST")
def of_instance(visit: Visit, instance_id: str) -> HttpResponse:
    """Show an instance's guarantee and its last hours; put it under one, or end that."""
    verb = "instance.change" if visit.request.method == "POST" else "instance.view"
    instance = access.instance_for(visit.actor, instance_id, verb=verb)
    if visit.request.method == "POST":
        if visit.text("end"):
            found = guarding.end(actor=visit.actor, instance=instance, at=visit.at)
            said = _("The guarantee ends at %(moment)s UTC.") % {"moment": f"{found.ended_at:%Y-%m-%d %H:%M}"}
        else:
            found = guarding.begin(actor=visit.actor, instance=instance, version_id=visit.text("contract"), at=visit.at)
            said = _("The guarantee holds from %(moment)s UTC on.") % {"moment": f"{found.since:%Y-%m-%d %H:%M}"}
        messages.success(visit.request, said)
        return redirect("instance-guarantee", instance.public_id)
    hours = list(access_till.guarantee_hours(instance).order_by("-hour")[:HOURS_MAX])
    context = {
        "instance": instance,
        "guarantee": guarding.of(instance),
        "offered": list(guarding.offered(instance)[:50]),
        "hours": hours,
        "chart": guarantee_chart.draw(hours[::-1]),
        "credited_micros": sum(row.credited_micros for row in hours),
        "currency": instance.project.organization.currency,
        "may_change": access.may(visit.actor, instance.project.organization, "instance.change"),
    }
    return visit.page("guarantees/instance.html", context)
