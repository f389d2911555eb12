"""The feed: rows that triggers noted become events, in one order that nobody can miss one of.

Only one publisher works at a time, so an event's key is also the order in which
it became visible: who asks for what follows the last one they saw gets all.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q, QuerySet

from marketplace.events.mail import TOLD
from marketplace.events.sources import SOURCES, matches
from marketplace.models import Event, EventMail, Noted, StateChange, WebhookDelivery, WebhookEndpoint

PUBLISHER = 0x6576656E7473  # an advisory lock of PostgreSQL; the letters of "events"
KEPT_FOR = timedelta(days=90)


@transaction.atomic
def publish(*, at: datetime, limit: int) -> int:
    """Turn up to `limit` noted rows into events, with their deliveries; return how many events there are now.

    Queries: four, one or two for each kind of row, and two for deliveries. Nobody publishes twice at once.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [PUBLISHER])
        if not cursor.fetchone()[0]:
            return 0
    noted = list(Noted.objects.order_by("pk")[:limit])
    if not noted:
        return 0
    rows = defaultdict(list)
    for one in noted:
        rows[one.source].append(one.row)
    made: dict[tuple[str, int], list[Event]] = defaultdict(list)
    for source, keys in rows.items():
        for event in SOURCES[source].read(keys):
            event.source = source
            made[source, event.row].append(event)
    events = Event.objects.bulk_create([event for one in noted for event in made.pop((one.source, one.row), ())])
    Noted.objects.filter(pk__in=[one.pk for one in noted]).delete()
    _address(events, at=at)
    EventMail.objects.bulk_create(EventMail(event=event, next_try_at=at) for event in events if event.type in TOLD)
    return len(events)


def publish_own(event: Event) -> None:
    """Put an event that tells of no row into the feed, in the order of all others; waits for who publishes now.

    In the caller's transaction: until its end nobody else publishes.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PUBLISHER])
    event.save(force_insert=True)


def _address(events: list[Event], *, at: datetime) -> None:
    """Put events on their way to the endpoints that want them."""
    listening = WebhookEndpoint.objects.filter(organization__in={event.organization_id for event in events})
    by_organization = defaultdict(list)
    for endpoint in listening:
        by_organization[endpoint.organization_id].append(endpoint)
    WebhookDelivery.objects.bulk_create(
        WebhookDelivery(endpoint=endpoint, event=event, next_try_at=at)
        for event in events
        for endpoint in by_organization[event.organization_id]
        if matches(endpoint.types, event.type)
    )


def after(found: QuerySet[Event], last: Event | None, *, limit: int) -> list[Event]:
    """Return the events that follow one, the oldest first; without one the newest. One query."""
    if last is None:
        return list(found.order_by("-pk")[:limit])[::-1]
    return list(found.filter(pk__gt=last.pk).order_by("pk")[:limit])


def of_types(patterns: list[str]) -> Q:
    """Return the condition for these types; none stand for all."""
    wanted = Q()
    for pattern in patterns:
        kind, _, name = pattern.partition(".")
        wanted |= Q(type__startswith=f"{kind}.") if name == "*" else Q(type=pattern)
    return wanted


def document(event: Event) -> dict[str, Any]:
    """Return an event as the feed and webhooks tell it (Standard Webhooks: `type`, `timestamp`, `data`)."""
    return {
        "id": event.public_id,
        "type": event.type,
        "timestamp": event.at.isoformat().replace("+00:00", "Z"),
        "organization": event.organization.public_id,
        "project": event.project.public_id if event.project else None,
        "subject": event.subject_id,
        "data": event.data,
    }


def purge(*, at: datetime, limit: int) -> int:
    """Forget events that are too old, with what was sent of them; return how many."""
    old = Event.objects.filter(at__lt=at - KEPT_FOR).order_by("pk").values("pk")[:limit]
    changes = StateChange.objects.filter(at__lt=at - KEPT_FOR).order_by("pk").values("pk")[:limit]
    StateChange.objects.filter(pk__in=list(changes.values_list("pk", flat=True))).delete()
    return Event.objects.filter(pk__in=list(old.values_list("pk", flat=True))).delete()[1].get("marketplace.Event", 0)
