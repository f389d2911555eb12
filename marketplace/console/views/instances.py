"""Instances in trouble, one instance as the operator sees it, and what the operator may do to it."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace import costs
from marketplace.console import fleet, nodes, troubles
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import ReasonForm
from marketplace.portal.doors import Visit
from provisioning import instances


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List the instances that need somebody."""
    kind = visit.query("kind")
    kind = kind if kind in troubles.KINDS else ""
    found = list(troubles.instances(at=visit.at, kind=kind)[: troubles.INSTANCES_MAX + 1])
    rows = [(instance, troubles.kinds_of(instance)) for instance in found[: troubles.INSTANCES_MAX]]
    context = {
        "rows": rows,
        "is_cut": len(found) > troubles.INSTANCES_MAX,
        "kind": kind,
        "kinds": troubles.KINDS.items(),
    }
    return visit.live_page("console/instances.html", "live", context)


@managers_only()
def shown(visit: Visit, instance_id: str) -> HttpResponse:
    """Show where an instance stands, its step, its nodes and what happened to it."""
    instance = troubles.instance_for(instance_id)
    context = {
        "instance": instance,
        "cost": costs.of([instance], at=visit.at)[instance.pk],
        "assignments": troubles.assignments_of(instance),
        "events": troubles.events_of(instance),
        "actions": instances.actions(instance),
        "history": fleet.history(instance_id),
    }
    return visit.live_page("console/instance.html", "live", context)


@managers_only("GET", "HEAD", "POST")
def stop(visit: Visit, instance_id: str) -> HttpResponse:
    """Take an instance's GPUs back."""
    instance = troubles.instance_for(instance_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, nodes.stop_instance, instance=instance, at=visit.at):
        messages.success(visit.request, _("The instance was asked to stop."))
        return redirect("console-instance", instance_id)
    return form_page(
        visit,
        form,
        title=_("Stop %(instance)s") % {"instance": instance},
        text=_("Its GPUs are given back and charges end now. The customer reads the reason, and may start it again."),
        send=_("Stop it"),
        back=reverse("console-instance", args=[instance_id]),
        is_dangerous=True,
    )


@managers_only("GET", "HEAD", "POST")
def terminate(visit: Visit, instance_id: str) -> HttpResponse:
    """End an instance for good."""
    instance = troubles.instance_for(instance_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, nodes.terminate_instance, instance=instance, at=visit.at):
        messages.success(visit.request, _("The instance was asked to end."))
        return redirect("console-instance", instance_id)
    return form_page(
        visit,
        form,
        title=_("Terminate %(instance)s") % {"instance": instance},
        text=_("It ends for good and charges end now; its working folder is removed. The customer reads the reason."),
        send=_("Terminate it"),
        back=reverse("console-instance", args=[instance_id]),
        is_dangerous=True,
    )
