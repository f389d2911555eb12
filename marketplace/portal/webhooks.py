"""Webhooks and the events that they bring. A secret is shown once, on the page that follows its making."""

from typing import Any

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import access
from marketplace.errors import BadOrder, Conflict
from marketplace.events import door, endpoints, feed
from marketplace.events.sources import TYPES, are_types
from marketplace.models import Organization, WebhookDelivery, WebhookEndpoint
from marketplace.portal.doors import Visit, page

EVENTS_SHOWN, DELIVERIES_SHOWN = 50, 50
KINDS = tuple(dict.fromkeys(name.partition(".")[0] + ".*" for name in TYPES if name != "webhook.test"))


@page("GET", "HEAD")
def events(visit: Visit) -> HttpResponse:
    """Show what happened, the newest first."""
    organization = visit.organization(verb="event.view")
    wanted = visit.query("type")
    wanted = "" if are_types([wanted]) else wanted
    found = door.feed(visit.actor, organization).filter(feed.of_types([wanted] if wanted else []))
    last = found.filter(public_id=visit.query("before")).first()
    rows = list((found.filter(pk__lt=last.pk) if last else found).order_by("-pk")[: EVENTS_SHOWN + 1])
    context = {
        "rows": rows[:EVENTS_SHOWN],
        "older": rows[EVENTS_SHOWN - 1].public_id if len(rows) > EVENTS_SHOWN else "",
        "kinds": KINDS,
        "wanted": wanted,
        "may_see_webhooks": access.may(visit.actor, organization, "webhook.view"),
    }
    return visit.live_page("webhooks/events.html", "rows", context)


@page("GET", "HEAD", "POST")
def listed(visit: Visit) -> HttpResponse:
    """Show the webhooks; add one."""
    if visit.request.method != "POST":
        return _list(visit, visit.organization(verb="webhook.view"), {"typed": {}})
    organization = visit.organization(verb="webhook.change")
    typed = _typed(visit)
    try:
        endpoint, secret = endpoints.add(
            actor=visit.actor, organization=organization, url=typed["url"], types=typed["types"],
            description=typed["description"],
        )  # fmt: skip
    except (BadOrder, Conflict) as error:
        errors = {error.field if isinstance(error, BadOrder) else "url": str(error)}
        return _list(visit, organization, {"typed": typed, "errors": errors}, status=422)
    return _shown(visit, endpoint, {"secret": secret})


@page("GET", "HEAD", "POST")
def shown(visit: Visit, webhook_id: str) -> HttpResponse:
    """Show a webhook and what was sent there; change it."""
    if visit.request.method != "POST":
        return _shown(visit, door.webhook_for(visit.actor, webhook_id, verb="webhook.view"), {})
    endpoint = door.webhook_for(visit.actor, webhook_id, verb="webhook.change")
    typed = _typed(visit)
    try:
        endpoints.change(
            actor=visit.actor, endpoint=endpoint, url=typed["url"], types=typed["types"],
            description=typed["description"], is_enabled=bool(visit.text("is_enabled")),
        )  # fmt: skip
    except BadOrder as error:
        return _shown(visit, endpoint, {"typed": typed, "errors": {error.field: str(error)}}, status=422)
    messages.success(visit.request, _("The webhook is changed."))
    return redirect("webhook", endpoint.public_id)


@page("POST")
def rotate(visit: Visit, webhook_id: str) -> HttpResponse:
    """Make a new secret and show it once."""
    endpoint = door.webhook_for(visit.actor, webhook_id, verb="webhook.change")
    secret = endpoints.rotate(actor=visit.actor, endpoint=endpoint, at=visit.at)
    endpoint.refresh_from_db()
    return _shown(visit, endpoint, {"secret": secret})


@page("POST")
def test(visit: Visit, webhook_id: str) -> HttpResponse:
    """Send a test event."""
    endpoint = door.webhook_for(visit.actor, webhook_id, verb="webhook.change")
    try:
        endpoints.test(actor=visit.actor, endpoint=endpoint, at=visit.at)
        messages.success(visit.request, _("A test event is on its way."))
    except Conflict as error:
        messages.error(visit.request, str(error))
    return redirect("webhook", endpoint.public_id)


@page("POST")
def replay(visit: Visit, webhook_id: str) -> HttpResponse:
    """Send what did not arrive since a moment."""
    endpoint = door.webhook_for(visit.actor, webhook_id, verb="webhook.change")
    try:
        count = endpoints.replay(actor=visit.actor, endpoint=endpoint, since=visit.moment("since"), at=visit.at)
    except BadOrder as error:
        return _shown(visit, endpoint, {"errors": {error.field: str(error)}}, status=422)
    said = ngettext("%(count)s event is sent again.", "%(count)s events are sent again.", count)
    messages.success(visit.request, said % {"count": count})
    return redirect("webhook", endpoint.public_id)


@page("POST")
def resend(visit: Visit, delivery_id: str) -> HttpResponse:
    """Send one event again."""
    delivery = door.delivery_for(visit.actor, delivery_id, verb="webhook.change")
    endpoints.again(delivery=delivery, at=visit.at)
    messages.success(visit.request, _("The event is sent again."))
    return redirect("webhook", delivery.endpoint.public_id)


@page("GET", "HEAD", "POST")
def remove(visit: Visit, webhook_id: str) -> HttpResponse:
    """Ask before removing a webhook; then do it."""
    endpoint = door.webhook_for(visit.actor, webhook_id, verb="webhook.change")
    if visit.request.method == "POST":
        endpoints.remove(actor=visit.actor, endpoint=endpoint)
        messages.success(visit.request, _("The webhook is removed."))
        return redirect("webhooks")
    return visit.page("webhooks/remove.html", {"endpoint": endpoint})


def _typed(visit: Visit) -> dict[str, Any]:
    types = [word for word in visit.text("types").replace(",", " ").split() if word]
    return {"url": visit.text("url"), "types": types, "description": visit.text("description")}


def _list(visit: Visit, organization: Organization, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    given_up = Count("deliveries", filter=Q(deliveries__state=WebhookDelivery.State.FAILED))
    found = {
        "rows": list(door.webhooks(organization).annotate(given_up=given_up).order_by("pk")),
        "may_change": access.may(visit.actor, organization, "webhook.change"),
        "kinds": KINDS,
        "errors": {},
    }
    return visit.page("webhooks/list.html", {**found, **context}, status=status)


def _shown(visit: Visit, endpoint: WebhookEndpoint, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
    found = {
        "endpoint": endpoint,
        "deliveries": list(door.deliveries(endpoint).order_by("-pk")[:DELIVERIES_SHOWN]),
        "may_change": access.may(visit.actor, endpoint.organization, "webhook.change"),
        "typed": {"url": endpoint.url, "types": endpoint.types, "description": endpoint.description},
        "has_former": endpoint.former_until is not None and endpoint.former_until > visit.at,
        "errors": {},
    }
    return visit.page("webhooks/show.html", {**found, **context}, status=status)
