"""Events: the feed that nobody misses one of, and webhooks that bring them."""

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access
from marketplace.api import event_shapes, shapes
from marketplace.api.answers import Answer
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.errors import BadOrder
from marketplace.events import door, endpoints, feed
from marketplace.events.sources import are_types
from marketplace.models import Event, WebhookDelivery, WebhookEndpoint

FIRST = "first"


class EventFeed(APIView):
    @extend_schema(
        operation_id="list_events",
        parameters=[event_shapes.FeedQuery],
        responses={200: event_shapes.FeedAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List what happened, the oldest first: what follows `after`, without it the newest. None is ever missed."""
        query = queried(request, event_shapes.FeedQuery)
        actor = actor_of(request)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="event.view")
        found = door.feed(actor, organization)
        last = _last(found, query.get("after"))
        types = _types(query.get("type", ""))
        rows = feed.after(found.filter(feed.of_types(types)), last, limit=query["limit"])
        seen = rows[-1].public_id if rows else query.get("after")
        return Response({"data": [feed.document(row) for row in rows], "last": seen})


def _last(found: Any, after: str | None) -> Event | None:
    if not after:
        return None
    if after == FIRST:
        return Event(pk=0)
    event: Event | None = found.filter(public_id=after).first()
    if event is None:
        raise BadOrder("after", gettext("There is no such event any more; they are kept for 90 days."))
    return event


def _types(text: str) -> list[str]:
    types = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := are_types(types):
        raise BadOrder("type", gettext("There are no events of type %(type)s.") % {"type": unknown[0]})
    return types


def webhook(row: WebhookEndpoint) -> Answer:
    return {
        "id": row.public_id,
        "url": row.url,
        "description": row.description,
        "types": row.types,
        "enabled": row.is_enabled,
        "disabled_because": row.disabled_because,
        "failing_since": row.failing_since,
        "former_secret_until": row.former_until,
        "created_at": row.created_at,
    }


def delivery(row: WebhookDelivery) -> Answer:
    return {
        "id": row.public_id,
        "event": row.event.public_id,
        "type": row.event.type,
        "state": row.state,
        "tries": row.tries,
        "next_try_at": row.next_try_at if row.state == WebhookDelivery.State.PENDING else None,
        "attempts": [
            {
                "at": one.at,
                "status": one.status,
                "error": one.error,
                "answer": one.answer,
                "milliseconds": one.milliseconds,
            }
            for one in row.attempts.all()
        ],
    }


class WebhookList(APIView):
    @extend_schema(
        operation_id="list_webhooks",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(event_shapes.WebhookAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the organization's webhooks."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="webhook.view")
        return paged(door.webhooks(organization), query, lambda found: [webhook(row) for row in found])

    @extend_schema(
        operation_id="add_webhook",
        request=event_shapes.AddWebhook,
        responses={201: event_shapes.NewWebhookAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Send events to an address from now on; its secret is in this answer only."""
        queried(request)
        actor, asked = actor_of(request), checked(event_shapes.AddWebhook, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.pop("organization", None), verb="webhook.change")
        row, secret = endpoints.add(actor=actor, organization=organization, **asked)
        return Response({**webhook(row), "secret": secret}, status=201)


class WebhookDetail(APIView):
    @extend_schema(
        operation_id="show_webhook", responses={200: event_shapes.WebhookAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, webhook_id: str) -> Response:
        """Show a webhook."""
        queried(request)
        return Response(webhook(door.webhook_for(actor_of(request), webhook_id, verb="webhook.view")))

    @extend_schema(
        operation_id="change_webhook",
        request=event_shapes.ChangeWebhook,
        responses={200: event_shapes.WebhookAnswer, shapes.REFUSED: shapes.Problem},
    )
    def patch(self, request: Request, webhook_id: str) -> Response:
        """Change a webhook; what is not named stays. Enabled again, it gets what waited for it."""
        queried(request)
        actor, asked = actor_of(request), checked(event_shapes.ChangeWebhook, request.data)
        row = door.webhook_for(actor, webhook_id, verb="webhook.change")
        endpoints.change(
            actor=actor, endpoint=row, url=asked.get("url", row.url), types=asked.get("types", row.types),
            description=asked.get("description", row.description), is_enabled=asked.get("enabled", row.is_enabled),
        )  # fmt: skip
        return Response(webhook(row))

    @extend_schema(operation_id="remove_webhook", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, webhook_id: str) -> Response:
        """Send nothing there any more; the events stay in the feed."""
        queried(request)
        actor = actor_of(request)
        endpoints.remove(actor=actor, endpoint=door.webhook_for(actor, webhook_id, verb="webhook.change"))
        return Response(status=204)


class WebhookRotate(APIView):
    @extend_schema(
        operation_id="rotate_webhook",
        request=None,
        responses={200: event_shapes.NewWebhookAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, webhook_id: str) -> Response:
        """Make a new secret, which is in this answer only. The former one signs beside it for 24 hours."""
        queried(request)
        actor = actor_of(request)
        row = door.webhook_for(actor, webhook_id, verb="webhook.change")
        secret = endpoints.rotate(actor=actor, endpoint=row, at=timezone.now())
        row.refresh_from_db()
        return Response({**webhook(row), "secret": secret})


class WebhookTest(APIView):
    @extend_schema(
        operation_id="test_webhook",
        request=None,
        responses={202: event_shapes.DeliveryAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, webhook_id: str) -> Response:
        """Send a test event."""
        queried(request)
        actor = actor_of(request)
        row = door.webhook_for(actor, webhook_id, verb="webhook.change")
        return Response(delivery(endpoints.test(actor=actor, endpoint=row, at=timezone.now())), status=202)


class WebhookReplay(APIView):
    @extend_schema(
        operation_id="replay_webhook",
        request=event_shapes.Replay,
        responses={202: event_shapes.Replayed, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, webhook_id: str) -> Response:
        """Send what happened since a moment and did not arrive; what arrived is not sent again."""
        queried(request)
        actor, asked = actor_of(request), checked(event_shapes.Replay, request.data)
        row = door.webhook_for(actor, webhook_id, verb="webhook.change")
        count = endpoints.replay(actor=actor, endpoint=row, since=asked["since"], at=timezone.now())
        return Response({"events": count}, status=202)


class WebhookDeliveries(APIView):
    @extend_schema(
        operation_id="list_webhook_deliveries",
        parameters=[event_shapes.DeliveryQuery, PageQuery],
        responses={200: shapes.page_of(event_shapes.DeliveryAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, webhook_id: str) -> Response:
        """List what was sent there, newest first, with every try and what was answered."""
        query = queried(request, event_shapes.DeliveryQuery, PageQuery)
        rows = door.deliveries(door.webhook_for(actor_of(request), webhook_id, verb="webhook.view"))
        rows = rows.filter(state=query["state"]) if "state" in query else rows
        return paged(rows, query, lambda found: [delivery(row) for row in found])


class WebhookDeliveryAgain(APIView):
    @extend_schema(
        operation_id="resend_webhook_delivery",
        request=None,
        responses={202: event_shapes.DeliveryAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, delivery_id: str) -> Response:
        """Send one event again, whether it arrived or not."""
        queried(request)
        row = door.delivery_for(actor_of(request), delivery_id, verb="webhook.change")
        endpoints.again(delivery=row, at=timezone.now())
        row.refresh_from_db()
        return Response(delivery(row), status=202)
