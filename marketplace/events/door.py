"""The door to events and webhooks: a part of `access` in its own file, with the same answers."""

from django.db.models import Prefetch, QuerySet

from marketplace.access import Actor, _check, may
from marketplace.errors import NotFound
from marketplace.events.sources import SOURCES
from marketplace.models import Event, Organization, WebhookAttempt, WebhookDelivery, WebhookEndpoint


def feed(actor: Actor, organization: Organization) -> QuerySet[Event]:
    """Return the events that this actor may see; the caller came through `organization_for`.

    Of a kind of thing that their role or token may not see they see no event either.
    """
    seen = [name for name, source in SOURCES.items() if may(actor, organization, source.verb)]
    found = Event.objects.filter(organization=organization, source__in=seen).select_related("organization", "project")
    if actor.token is not None and actor.token.project_id is not None:
        found = found.filter(project=actor.token.project_id)
    return found


def webhooks(organization: Organization) -> QuerySet[WebhookEndpoint]:
    """Return an organization's webhooks; the caller came through `organization_for`."""
    return WebhookEndpoint.objects.filter(organization=organization).select_related("organization")


def webhook_for(actor: Actor, webhook_id: str, *, verb: str) -> WebhookEndpoint:
    """Return a webhook of one of the actor's organizations."""
    found = WebhookEndpoint.objects.filter(public_id=webhook_id).select_related("organization").first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


def deliveries(endpoint: WebhookEndpoint) -> QuerySet[WebhookDelivery]:
    """Return what is or was on its way to a webhook; the caller came through `webhook_for`. Two queries."""
    found = WebhookDelivery.objects.filter(endpoint=endpoint).select_related("event", "endpoint")
    return found.prefetch_related(Prefetch("attempts", WebhookAttempt.objects.order_by("pk")))


def delivery_for(actor: Actor, delivery_id: str, *, verb: str) -> WebhookDelivery:
    """Return what is or was on its way to a webhook of one of the actor's organizations."""
    found = WebhookDelivery.objects.filter(public_id=delivery_id).select_related("endpoint", "event").first()
    if found is None:
        raise NotFound
    _check(actor, found.endpoint.organization_id, verb)
    return found
