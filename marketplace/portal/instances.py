"""Instances: the list, one of them live, its log, and what can be done with it."""

from collections.abc import Iterator
from typing import Any

from django.contrib import messages
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from marketplace import access, budget_watch, costs, idle, offers, rentals, spot_market
from marketplace.errors import BadOrder, Conflict
from marketplace.portal import commands, connections, errors
from marketplace.portal.doors import Visit, page
from marketplace.revenue_share import covering
from provisioning import instances, output, progress, volumes
from provisioning.health import outlook
from provisioning.models import AT_REST, CHARGED_PHASES, STARTING, Instance, Phase

PAGE = 50
# What each tab shows; the first one is open when none is chosen.
TABS: dict[str, set[Phase]] = {
    "current": set(Phase) - {Phase.TERMINATED},
    "running": CHARGED_PHASES | STARTING,
    "stopped": {Phase.STOPPING, Phase.STOPPED, Phase.INTERRUPTED},
    "failed": {Phase.FAILED},
    "ended": {Phase.TERMINATING, Phase.TERMINATED},
}
# How soon an open page asks again, by what is going on.
POLL_MOVING_S, POLL_CHARGED_S, POLL_RESTING_S = 1, 3, 20


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the organization's instances, newest first, by tab and project."""
    organization = visit.organization(verb="instance.view")
    projects = visit.projects(organization)
    tab = visit.query("show")
    tab = tab if tab in TABS else "current"
    found = access.instances(visit.actor).filter(project__organization=organization, phase__in=TABS[tab])
    project = visit.query("project")
    if project:
        found = found.filter(project__public_id=project)
    before = visit.query("before")
    if before:
        found = found.filter(pk__lt=access.instances(visit.actor).filter(public_id=before).values("pk"))
    rows = list(found.order_by("-pk")[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    cost = costs.of(rows, at=visit.at)
    resting = idle.by_instance(rows)
    context = {
        "rows": [(instance, cost[instance.pk], resting.get(instance.pk)) for instance in rows],
        "older": rows[-1].public_id if more else "",
        "tab": tab,
        "project": project,
        "projects": projects,
        "organization": organization,
        "may_rent": access.may(visit.actor, organization, "instance.change"),
        "stops": budget_watch.coming_stops(organization),
    }
    return visit.live_page("instances/list.html", "rows", context)


@page()
def shown(visit: Visit, instance_id: str) -> HttpResponse:
    """Show one instance: its steps, cost, log, history and what can be done with it."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.view")
    context = _shown(visit, instance)
    if "HX-Request" not in visit.request.headers:
        cli, curl = commands.instance(instance.public_id)
        decision = access.placements(instance).order_by("-pk").first()
        context |= {"log": output.page(instance), "cli": cli, "curl": curl, "decision": decision}
        context["stops"] = budget_watch.coming_stops_of(instance)
        context["spell"] = idle.by_instance([instance]).get(instance.pk)
    context["is_other_door"] = visit.query("door") != context["box"].digest
    return visit.live_page("instances/show.html", "live", context)


def _shown(visit: Visit, instance: Instance) -> dict[str, Any]:
    stages = progress.stages(instance, at=visit.at)
    begun = [stage for stage in stages if stage.state != "waiting"]
    places = instance.assignments.filter(fence=instance.run).select_related("node__heartbeat").order_by("replica")
    assignments = list(places[:PAGE])
    box = connections.box(instance, assignments)
    bid = access.bids(visit.actor).filter(instance=instance).first() if instance.market == "spot" else None
    standing = spot_market.standings([bid])[0] if bid is not None else None
    return {
        "instance": instance,
        "cost": costs.of([instance], at=visit.at)[instance.pk],
        "under_share": instance.paid_by.startswith(covering.AGREEMENT),
        "stages": stages,
        "stage_now": begun[-1] if begun else None,
        "events": list(access.events(instance).order_by("-pk")[:PAGE]),
        "assignments": assignments,
        "box": box,
        "mounts": volumes.mounts_of([instance])[instance.pk],
        "repair": outlook.of([instance]).get(instance.pk),
        "has_keys": box.has_ssh and access.ssh_keys(instance.project).exists(),
        "bid": bid,
        "standing": standing,
        "actions": instances.actions(instance),
        "may_change": access.may(visit.actor, instance.project.organization, "instance.change"),
        "is_at_rest": instance.phase in AT_REST,
        "poll_s": _poll_s(instance),
    }


def _poll_s(instance: Instance) -> int:
    if instance.phase in AT_REST:
        return POLL_RESTING_S
    return POLL_CHARGED_S if instance.is_charged else POLL_MOVING_S


@page()
def log(visit: Visit, instance_id: str) -> HttpResponse:
    """Return what follows the cursor of the log that is open, and where to ask next."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.view")
    cursor = visit.query("cursor")
    context = {"instance": instance, "log": output.page(instance, cursor=cursor), "follows": True}
    return visit.page("instances/show.html#log", context)


@page()
def log_file(visit: Visit, instance_id: str) -> HttpResponse:
    """Send the current run's whole output as a text file."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.view")
    response: HttpResponseBase = StreamingHttpResponse(_whole_log(instance), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{instance.name}.txt"'
    return response  # type: ignore[return-value]


def _whole_log(instance: Instance) -> Iterator[str]:
    cursor = ""
    while True:
        piece = output.page(instance, cursor=cursor)
        if not piece.pieces:
            return
        for part in piece.pieces:
            yield f"[{part.replica}] {part.text}" if instance.replicas > 1 else part.text
        cursor = piece.cursor


@page("GET", "HEAD", "POST")
def start(visit: Visit, instance_id: str) -> HttpResponse:
    """Ask before starting again; then do it."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.change")
    if visit.request.method == "POST":
        rentals.start(actor=visit.actor, instance=instance, at=visit.at)
        messages.success(
            visit.request, _("%(name)s starts. Billing starts when it is ready.") % {"name": instance.name}
        )
        return redirect("instance", instance.public_id)
    price = rentals.price_of(instance.offer, currency=instance.project.organization.currency, at=visit.at)
    second, hour, day = costs.rates(micros_per_unit_hour=price.micros_per_unit_hour, quantity=instance.gpus)
    context = {"currency": price.currency, "per_second": second, "per_hour": hour, "per_day": day}
    return _ask(visit, instance, "start", context)


@page("GET", "HEAD", "POST")
def stop(visit: Visit, instance_id: str) -> HttpResponse:
    """Ask before stopping, with what is kept and lost; then do it."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.change")
    if visit.request.method == "POST":
        rentals.stop(actor=visit.actor, instance=instance, at=visit.at)
        messages.success(visit.request, _("%(name)s stops. Its charges have ended.") % {"name": instance.name})
        return redirect("instance", instance.public_id)
    return _ask(visit, instance, "stop", {})


@page("GET", "HEAD", "POST")
def terminate(visit: Visit, instance_id: str) -> HttpResponse:
    """Ask before ending an instance for good, with what is kept and lost; then do it."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.change")
    if visit.request.method == "POST":
        rentals.terminate(actor=visit.actor, instance=instance, at=visit.at)
        messages.success(
            visit.request, _("%(name)s is being terminated. Its charges have ended.") % {"name": instance.name}
        )
        return redirect("instance", instance.public_id)
    return _ask(visit, instance, "terminate", {})


@page("GET", "HEAD", "POST")
def rename(visit: Visit, instance_id: str) -> HttpResponse:
    """Give an instance another name."""
    instance = access.instance_for(visit.actor, instance_id, verb="instance.change")
    if visit.request.method != "POST":
        return _ask(visit, instance, "rename", {"typed": instance.name})
    typed, kept = visit.text("name"), instance.name
    try:
        rentals.rename(actor=visit.actor, instance=instance, name=typed)
    except (BadOrder, Conflict) as error:
        instance.name = kept
        refusal = errors.refusal_of(error, reference=visit.actor.request_id)
        return _ask(visit, instance, "rename", {"typed": typed, "error": refusal.why}, status=refusal.status)
    messages.success(visit.request, _("The instance is now named %(name)s.") % {"name": instance.name})
    return redirect("instance", instance.public_id)


def _ask(visit: Visit, instance: Instance, verb: str, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    """Show what a verb would do. One that is not possible now is said so, without a button."""
    currency = instance.project.organization.currency
    listing = next(iter(offers.listings([instance.offer], currency=currency, at=visit.at)), None)
    found = {
        "instance": instance,
        "cost": costs.of([instance], at=visit.at)[instance.pk],
        "verb": verb,
        "is_possible": not instances.actions(instance)[verb],
        "free_gpus": listing.available_gpus if listing else 0,
        "typed": instance.name,
        "mounts": volumes.mounts_of([instance])[instance.pk],
    }
    return visit.page("instances/confirm.html", {**found, **context}, status=status)
