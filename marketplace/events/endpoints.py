"""Webhooks as tenants manage them: where events go, with which secret, and what is sent again."""

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils.translation import gettext

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.events import feed, reach
from marketplace.events.sources import are_types, matches
from marketplace.models import Event, Organization, WebhookDelivery, WebhookEndpoint
from provisioning.secrets import seal

ENDPOINTS_MAX = 20
SECRET_BYTES = 32
DESCRIPTION_LENGTH_MAX = 200
FORMER_FOR = timedelta(hours=24)
REPLAYED_MAX = 10_000


@transaction.atomic
def add(
    *, actor: Actor, organization: Organization, url: str, types: Sequence[str], description: str = ""
) -> tuple[WebhookEndpoint, str]:
    """Send an organization's events to an address from now on; return it with its secret, which is not shown again."""
    chosen = _checked(url, types, description)
    list(Organization.objects.select_for_update(no_key=True).filter(pk=organization.pk))
    if organization.webhooks.count() >= ENDPOINTS_MAX:
        text = gettext("An organization has at most %(most)s webhooks; remove one first.")
        raise Conflict(text % {"most": ENDPOINTS_MAX})
    secret = new_secret()
    endpoint = WebhookEndpoint.objects.create(
        organization=organization, created_by=actor.user, secret_sealed=seal(secret), **chosen
    )
    _record(endpoint, "webhook.add", actor=actor, after=chosen)
    return endpoint, secret


@transaction.atomic
def change(
    *, actor: Actor, endpoint: WebhookEndpoint, url: str, types: Sequence[str], description: str, is_enabled: bool
) -> None:
    """Change where events go, which, and whether. What waits for it while it is disabled is sent once it is enabled."""
    chosen = _checked(url, types, description) | {"is_enabled": is_enabled}
    before = {name: getattr(endpoint, name) for name in chosen}
    if is_enabled and not endpoint.is_enabled:
        endpoint.failing_since, endpoint.disabled_because = None, ""
    for name, value in chosen.items():
        setattr(endpoint, name, value)
    endpoint.save(update_fields=[*chosen, "failing_since", "disabled_because"])
    _record(endpoint, "webhook.change", actor=actor, before=before, after=chosen)


@transaction.atomic
def rotate(*, actor: Actor, endpoint: WebhookEndpoint, at: datetime) -> str:
    """Return a new secret, which is not shown again. The former one signs beside it for a day."""
    endpoint = WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint.pk)
    secret = new_secret()
    endpoint.former_secret_sealed, endpoint.former_until = endpoint.secret_sealed, at + FORMER_FOR
    endpoint.secret_sealed = seal(secret)
    endpoint.save(update_fields=["former_secret_sealed", "former_until", "secret_sealed"])
    _record(endpoint, "webhook.rotate", actor=actor, after={"former_until": endpoint.former_until.isoformat()})
    return secret


@transaction.atomic
def remove(*, actor: Actor, endpoint: WebhookEndpoint) -> None:
    """Send nothing there any more, and forget what was sent. The events stay in the feed."""
    _record(endpoint, "webhook.remove", actor=actor, before={"url": endpoint.url, "types": endpoint.types})
    endpoint.delete()


@transaction.atomic
def test(*, actor: Actor, endpoint: WebhookEndpoint, at: datetime) -> WebhookDelivery:
    """Send an event that says only that it is a test, on the way that all events go."""
    if not endpoint.is_enabled:
        raise Conflict(gettext("The webhook is disabled; enable it first."))
    event = Event(
        organization=endpoint.organization, type="webhook.test", subject_id=endpoint.public_id, at=at,
        data={"by": actor.name}, source="test", row=secrets.randbits(62),
    )  # fmt: skip
    feed.publish_own(event)
    return WebhookDelivery.objects.create(endpoint=endpoint, event=event, next_try_at=at)


@transaction.atomic
def again(*, delivery: WebhookDelivery, at: datetime) -> None:
    """Send one event again, from the first try on. What is on its way already is sent at once."""
    WebhookDelivery.objects.filter(pk=delivery.pk).update(state=WebhookDelivery.State.PENDING, tries=0, next_try_at=at)


@transaction.atomic
def replay(*, actor: Actor, endpoint: WebhookEndpoint, since: datetime, at: datetime) -> int:
    """Send what was given up, or was never on its way there, since a moment; return how many events."""
    wanted = Event.objects.filter(organization=endpoint.organization, at__gte=since).exclude(source="test")
    missing = wanted.exclude(deliveries__in=endpoint.deliveries.exclude(state=WebhookDelivery.State.FAILED))
    events = [one for one in missing.order_by("pk")[: REPLAYED_MAX + 1] if matches(endpoint.types, one.type)]
    if len(events) > REPLAYED_MAX:
        text = gettext("More than %(most)s events happened since then; choose a later moment.")
        raise BadOrder("since", text % {"most": REPLAYED_MAX})
    endpoint.deliveries.filter(event__in=events).update(state=WebhookDelivery.State.PENDING, tries=0, next_try_at=at)
    WebhookDelivery.objects.bulk_create(
        [WebhookDelivery(endpoint=endpoint, event=event, next_try_at=at) for event in events], ignore_conflicts=True
    )
    _record(endpoint, "webhook.replay", actor=actor, after={"since": since.isoformat(), "events": len(events)})
    return len(events)


def new_secret() -> str:
    """Return a secret of 256 random bits, written as Standard Webhooks does."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _checked(url: str, types: Sequence[str], description: str) -> dict[str, Any]:
    unknown = are_types(types)
    if unknown:
        raise BadOrder("types", gettext("There are no events of type %(type)s.") % {"type": unknown[0]})
    if len(description) > DESCRIPTION_LENGTH_MAX:
        text = gettext("Use at most %(most)s characters.")
        raise BadOrder("description", text % {"most": DESCRIPTION_LENGTH_MAX})
    return {"url": reach.check(url), "types": sorted(set(types)), "description": description.strip()}


def _record(endpoint: WebhookEndpoint, verb: str, *, actor: Actor, **said: Any) -> None:
    audit.record(actor=actor, organization=endpoint.organization, verb=verb, subject_id=endpoint.public_id, **said)
