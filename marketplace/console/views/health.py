"""Health: what broke, what is done about it, and the few things that only a person may do."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace.console import health
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import ReasonForm
from marketplace.portal.doors import Visit


@managers_only()
def shown(visit: Visit) -> HttpResponse:
    """Show breakers, repairs, quarantined GPUs, operations, events and wipes."""
    return visit.live_page("console/health.html", "live", {"health": health.overview(at=visit.at)})


@managers_only("GET", "HEAD", "POST")
def quarantine(visit: Visit, gpu_id: str) -> HttpResponse:
    """Take a GPU out of placement."""
    gpu = health.gpu_for(gpu_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, health.quarantine, gpu=gpu, at=visit.at):
        messages.success(visit.request, _("The GPU is quarantined: nothing new is placed on it, what runs goes on."))
        return redirect("console-health")
    return form_page(
        visit,
        form,
        title=_("Quarantine GPU %(gpu)s of %(node)s") % {"gpu": gpu.index, "node": gpu.node},
        text=_("Nothing new is placed on it. What runs there goes on. Only the gate lets it back."),
        send=_("Quarantine"),
        back=reverse("console-node", args=[gpu.node.public_id]),
    )


@managers_only("GET", "HEAD", "POST")
def release_gpu(visit: Visit, gpu_id: str) -> HttpResponse:
    """Lead a quarantined GPU to the gate."""
    gpu = health.gpu_for(gpu_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, health.release_gpu, gpu=gpu, at=visit.at):
        messages.success(visit.request, _("It is at the gate: its node wipes and checks it now."))
        return redirect("console-health")
    return form_page(
        visit,
        form,
        title=_("Release GPU %(gpu)s of %(node)s") % {"gpu": gpu.index, "node": gpu.node},
        text=_("Its node wipes and checks it. It is placed again only if both succeed."),
        send=_("Lead it to the gate"),
        back=reverse("console-health"),
    )


@managers_only("GET", "HEAD", "POST")
def release(visit: Visit, repair_id: str) -> HttpResponse:
    """Lead what is being repaired to the gate."""
    repair = health.repair_for(repair_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, health.release, repair=repair, at=visit.at):
        messages.success(visit.request, _("It is at the gate: its node wipes and checks it now."))
        return redirect("console-health")
    return form_page(
        visit,
        form,
        title=_("Release %(part)s") % {"part": repair.node},
        text=_("Its node wipes and checks it. It is placed again only if both succeed."),
        send=_("Lead it to the gate"),
        back=reverse("console-health"),
    )


@managers_only("GET", "HEAD", "POST")
def replaced(visit: Visit, repair_id: str) -> HttpResponse:
    """Note that a broken part was replaced."""
    repair = health.repair_for(repair_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, health.replaced, repair=repair, at=visit.at):
        messages.success(visit.request, _("The replacement is noted."))
        return redirect("console-health")
    return form_page(
        visit,
        form,
        title=_("Replaced in %(node)s") % {"node": repair.node},
        text=_("The old GPU never comes back. A node whose parts were replaced goes to the gate."),
        send=_("It was replaced"),
        back=reverse("console-health"),
    )


@managers_only("GET", "HEAD", "POST")
def close_breaker(visit: Visit, breaker_id: str) -> HttpResponse:
    """Let repairs go on."""
    opened = health.breaker_for(breaker_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, health.close_breaker, opened=opened, at=visit.at):
        messages.success(visit.request, _("The breaker is closed: repairs go on."))
        return redirect("console-health")
    return form_page(
        visit,
        form,
        title=_("Close the breaker of %(what)s") % {"what": opened.offer or _("the fleet")},
        text=_("Everything that it held back is done from now on. Close it when you know why so much broke at once."),
        send=_("Close the breaker"),
        back=reverse("console-health"),
        is_dangerous=True,
    )
