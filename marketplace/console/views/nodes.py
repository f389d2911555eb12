"""Nodes: the list with its filters, one node, and what may be done to it."""

from datetime import timedelta

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace.console import fleet, nodes, wiring
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import NodeFilter, NodeForm, NoForm, ReasonForm
from marketplace.portal import lines
from marketplace.portal.doors import Visit
from provisioning import telemetry
from provisioning.nodes import JOIN_TOKEN_LIFE

NODES_PER_PAGE = 100
HOUR = timedelta(hours=1)


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List the nodes that the filters in the address let through."""
    chosen = NodeFilter(visit.request.GET)
    found = fleet.listed(**chosen.cleaned_data) if chosen.is_valid() else fleet.listed().none()
    page = Paginator(found, NODES_PER_PAGE).get_page(visit.request.GET.get("page"))
    return visit.live_page("console/nodes.html", "live", {"filter": chosen, "page": page})


@managers_only("GET", "HEAD", "POST")
def announce(visit: Visit) -> HttpResponse:
    """Say which machine will come."""
    form = NodeForm(sent(visit), initial={"offer": visit.request.GET.get("offer")})
    if carried_out(visit, form, nodes.announce):
        messages.success(visit.request, _("The node is announced. Issue a join token, then start the agent on it."))
        return redirect("console-node", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("Announce a node"),
        text=_("Say which machine will come. It joins with a one-time token and must have exactly these GPUs."),
        send=_("Announce"),
        back=reverse("console-nodes"),
    )


@managers_only()
def shown(visit: Visit, node_id: str) -> HttpResponse:
    """Show a node: its GPUs, what was read from them last, and what runs there."""
    node = fleet.node_for(node_id)
    readings = fleet.readings(node)
    context = {
        "node": node,
        "heartbeat": fleet.heartbeat_of(node),
        "readings": readings,
        "inventory": wiring.inventory_of(node),
        "wiring": wiring.wiring(node, [reading.gpu for reading in readings]),
        "holds": node.holds.filter(released_at=None).order_by("pk"),
        "living": list(fleet.living_on(node)),
        "history": fleet.history(node.public_id),
    }
    return visit.live_page("console/node.html", "live", context)


@managers_only()
def charts(visit: Visit, node_id: str) -> HttpResponse:
    """Show the last hour of a node's GPUs: a part of its page, which asks for it by itself."""
    node = fleet.node_for(node_id)
    since = visit.at - lines.SPAN
    gpus = list(node.gpus.filter(removed_at=None).order_by("index"))
    found = telemetry.series(of=gpus, since=since, until=visit.at, step=telemetry.SLOT)
    context = {"node": node, "readings": lines.readings(found, since=since, until=visit.at)}
    return visit.page("console/charts.html", context)


@managers_only("POST")
def accept_inventory(visit: Visit, node_id: str) -> HttpResponse:
    """Make the GPUs that a node says it has its inventory."""
    node = fleet.node_for(node_id)
    if carried_out(visit, NoForm(sent(visit)), nodes.accept_inventory, node=node, at=visit.at):
        messages.success(visit.request, _("These GPUs are now the node's inventory."))
    return redirect("console-node", node_id)


@managers_only("GET", "HEAD", "POST")
def join_token(visit: Visit, node_id: str) -> HttpResponse:
    """Issue a one-time token and show it this once, with the command that uses it."""
    node = fleet.node_for(node_id)
    form = NoForm(sent(visit))
    context = {"node": node, "public_url": settings.PUBLIC_URL, "hours": JOIN_TOKEN_LIFE // HOUR}
    if carried_out(visit, form, nodes.issue_join_token, node=node, at=visit.at):
        return visit.page("console/join_token.html", context | {"secret": form.made})
    return visit.page("console/join_token.html", context)


@managers_only("GET", "HEAD", "POST")
def cordon(visit: Visit, node_id: str) -> HttpResponse:
    """Place nothing new on a node."""
    node = fleet.node_for(node_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, nodes.cordon, node=node, at=visit.at):
        messages.success(visit.request, _("The node is cordoned: nothing new is placed there, what runs goes on."))
        return redirect("console-node", node_id)
    return form_page(
        visit,
        form,
        title=_("Cordon %(node)s") % {"node": node},
        text=_("Nothing new will be placed there. What runs goes on, and is charged as before."),
        send=_("Cordon"),
        back=reverse("console-node", args=[node_id]),
    )


@managers_only("POST")
def uncordon(visit: Visit, node_id: str) -> HttpResponse:
    """Let placement use a node again."""
    if carried_out(visit, NoForm(sent(visit)), nodes.uncordon, node=fleet.node_for(node_id)):
        messages.success(visit.request, _("The node is available again."))
    return redirect("console-node", node_id)


@managers_only("GET", "HEAD", "POST")
def drain(visit: Visit, node_id: str) -> HttpResponse:
    """Show whom a drain would stop, and do it once that is confirmed."""
    node = fleet.node_for(node_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, nodes.drain, node=node, at=visit.at):
        messages.success(visit.request, _("The node is draining: what ran there was asked to stop."))
        return redirect("console-node", node_id)
    living = list(fleet.living_on(node))
    return form_page(visit, form, "console/drain.html", node=node, living=living)


@managers_only("GET", "HEAD", "POST")
def confirm_off(visit: Visit, node_id: str) -> HttpResponse:
    """Take what a silent node ran as ended before its leases are over: somebody saw that the node is off."""
    node = fleet.node_for(node_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, nodes.confirm_off, node=node, at=visit.at):
        messages.success(visit.request, _("What ran there is taken as ended, and may start again elsewhere."))
        return redirect("console-node", node_id)
    return form_page(
        visit,
        form,
        title=_("Confirm that %(node)s is off") % {"node": node},
        text=_(
            "Do this only when the power is off or the network is fenced, and somebody saw it: what ran there may"
            " start again elsewhere at once, and must not run twice. Say how you know."
        ),
        send=_("It is off"),
        back=reverse("console-node", args=[node_id]),
    )
