"""The shapes of events and webhooks."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import Shape, Text
from marketplace.events.endpoints import DESCRIPTION_LENGTH_MAX
from marketplace.events.reach import URL_LENGTH_MAX
from marketplace.events.sources import TYPES
from marketplace.models import WebhookDelivery

EVENTS_MAX = 1000
ABOUT_TYPES = "instance.failed, or instance.* for all of a kind; several with commas between"


class FeedQuery(serializers.Serializer[Any]):
    after = serializers.CharField(
        required=False, max_length=32, help_text="id of the last event seen, or `first` for the oldest kept"
    )
    type = serializers.CharField(required=False, max_length=500, help_text=ABOUT_TYPES)
    limit = serializers.IntegerField(min_value=1, max_value=EVENTS_MAX, default=100)
    organization = serializers.CharField(required=False, max_length=32)


class FeedEvent(serializers.Serializer[Any]):
    id = serializers.CharField()
    type = serializers.ChoiceField(choices=TYPES)
    timestamp = serializers.DateTimeField(help_text="when it happened")
    organization = serializers.CharField()
    project = serializers.CharField(allow_null=True)
    subject = serializers.CharField(help_text="the id of what it happened to")
    data = serializers.DictField()  # type: ignore[assignment]


class FeedAnswer(serializers.Serializer[Any]):
    data = FeedEvent(many=True)  # type: ignore[assignment]
    last = serializers.CharField(allow_null=True, help_text="ask for what comes next with `after` = this")


class AddWebhook(Shape):
    url = Text(max_length=URL_LENGTH_MAX, help_text="https, port 443 or 8443, at a public address")
    types = serializers.ListField(child=Text(max_length=40), default=list, max_length=50, help_text="empty: all")
    description = Text(max_length=DESCRIPTION_LENGTH_MAX, required=False, allow_blank=True)
    organization = Text(max_length=32, required=False)


class ChangeWebhook(Shape):
    url = Text(max_length=URL_LENGTH_MAX, required=False)
    types = serializers.ListField(child=Text(max_length=40), required=False, max_length=50)
    description = Text(max_length=DESCRIPTION_LENGTH_MAX, required=False, allow_blank=True)
    enabled = serializers.BooleanField(required=False)


class WebhookAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    url = serializers.CharField()
    description = serializers.CharField()
    types = serializers.ListField(child=serializers.CharField())
    enabled = serializers.BooleanField()
    disabled_because = serializers.CharField()
    failing_since = serializers.DateTimeField(allow_null=True)
    former_secret_until = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()


class NewWebhookAnswer(WebhookAnswer):
    secret = serializers.CharField(help_text="whsec_...; in this answer only")


class AttemptAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.IntegerField(allow_null=True)
    error = serializers.CharField()
    answer = serializers.CharField(help_text="the beginning of what was answered")
    milliseconds = serializers.IntegerField()


class DeliveryAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    event = serializers.CharField()
    type = serializers.CharField()
    state = serializers.ChoiceField(choices=WebhookDelivery.State.choices)
    tries = serializers.IntegerField()
    next_try_at = serializers.DateTimeField(allow_null=True)
    attempts = AttemptAnswer(many=True)


class DeliveryQuery(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=WebhookDelivery.State.choices, required=False)


class Replay(Shape):
    since = serializers.DateTimeField(help_text="what happened from then on and did not arrive is sent again")


class Replayed(serializers.Serializer[Any]):
    events = serializers.IntegerField()
