"""The shapes of requests and answers about quotas and orders that wait."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace import waiting
from marketplace.api.order_shapes import LaunchInstance
from marketplace.api.price_shapes import Amount, Price
from marketplace.api.shapes import NamedRef, Shape, Text
from marketplace.models import QuotaRequest, WaitingOrder
from marketplace.money import MICROS
from marketplace.quota_requests import REASON_LENGTH_MAX
from provisioning.models import Instance

WHOLE_DIGITS_MAX = 9
UNITS = ["gpus", "per_hour"]


class Money(serializers.DecimalField):
    """A decimal string of money with up to six places; its value is whole micro-units."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_digits=WHOLE_DIGITS_MAX + 6, decimal_places=6, min_value=0, **kwargs)

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid")
        return int(super().to_internal_value(data) * MICROS)


@extend_schema_field({"oneOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]+[.][0-9]{6}$"}]})
class QuotaAmount(serializers.Field[Any, Any, Any, Any]):
    """A whole number of GPUs, or a decimal string of money."""

    def to_representation(self, value: Any) -> Any:
        return value

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, int) and not isinstance(data, bool) and data >= 0:
            return data
        if isinstance(data, str):
            return Money().run_validation(data)
        raise serializers.ValidationError("Say a whole number of GPUs, or money per hour as a decimal string.")


class _QuotaWords(serializers.Serializer[Any]):
    gpu_model = serializers.CharField(allow_null=True, help_text="null: all models together")
    market = serializers.ChoiceField(choices=Instance.Market.choices, allow_null=True, help_text="null: all together")
    unit = serializers.ChoiceField(choices=UNITS, help_text="GPUs, or money for an hour of all of it")
    currency = serializers.CharField(allow_null=True, help_text="null where GPUs are counted")
    limit = QuotaAmount()


class QuotaAnswer(_QuotaWords):
    id = serializers.CharField()
    organization = NamedRef()
    project = NamedRef(allow_null=True, help_text="null: all projects of the organization together")
    held = QuotaAmount(help_text="from the request until the confirmed release")
    used = QuotaAmount(help_text="what of `held` runs now")
    reserved = QuotaAmount(help_text="GPUs of reservations in the fullest hour to come, whether used or not")
    free = QuotaAmount()


class QuotaRequestAnswer(_QuotaWords):
    id = serializers.CharField()
    organization = NamedRef()
    project = NamedRef(allow_null=True)
    reason = serializers.CharField()
    state = serializers.ChoiceField(choices=QuotaRequest.State.choices)
    asked_by = serializers.CharField()
    decided_by = serializers.CharField(allow_null=True, help_text="a person, or the rule that decided")
    automatic = serializers.BooleanField()
    note = serializers.CharField()
    created_at = serializers.DateTimeField()
    decided_at = serializers.DateTimeField(allow_null=True)


class RequestQuota(Shape):
    project = Text(max_length=32, required=False, help_text="default: the token's or the only one")
    organization_wide = serializers.BooleanField(default=False, help_text="of the organization over all its projects")
    gpu_model = Text(max_length=80, required=False, help_text="default: all models together")
    market = serializers.ChoiceField(choices=Instance.Market.choices, required=False, help_text="default: all together")
    limit = QuotaAmount(help_text="GPUs as a number; a decimal string asks for money per hour")
    reason = Text(max_length=REASON_LENGTH_MAX)


class QuotaRequestQuery(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=QuotaRequest.State.choices, required=False)


class CreateWait(LaunchInstance):
    max_price = Money(help_text="the most that a GPU-hour may cost")
    until = serializers.DateTimeField(help_text=f"{waiting.UNTIL_MAX.days} days at most")


class WaitQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    state = serializers.ChoiceField(choices=WaitingOrder.State.choices, required=False)


class WaitAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    project = NamedRef()
    offer = serializers.CharField()
    gpus = serializers.IntegerField(help_text="of each replica")
    replicas = serializers.IntegerField()
    max_price = Amount()
    until = serializers.DateTimeField()
    state = serializers.ChoiceField(choices=WaitingOrder.State.choices)
    position = serializers.IntegerField(allow_null=True, help_text="in the offer's queue, from 1")
    why = serializers.ChoiceField(choices=WaitingOrder.Why.choices, allow_null=True)
    message = serializers.CharField(help_text="why it waits, in words")
    estimate = serializers.DateTimeField(allow_null=True, help_text="a guess from what came free in the last day")
    instance = serializers.CharField(allow_null=True, help_text="what it became")
    tried_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()
    closed_at = serializers.DateTimeField(allow_null=True)


class OutlookQuery(serializers.Serializer[Any]):
    offer = serializers.CharField(max_length=64)
    gpus = serializers.IntegerField(min_value=1, max_value=1024, default=1)
    replicas = serializers.IntegerField(min_value=1, max_value=10_000, default=1)
    project = serializers.CharField(max_length=32, required=False)


class NearestAnswer(serializers.Serializer[Any]):
    offer = serializers.CharField()
    gpus = serializers.IntegerField()
    replicas = serializers.IntegerField()
    price = Price()


class OutlookAnswer(serializers.Serializer[Any]):
    fits_now = serializers.BooleanField()
    nearest = NearestAnswer(many=True, help_text="what of the same GPU model could start now")
    next_window = serializers.DateTimeField(allow_null=True, help_text="when there is room beside reservations")
    ahead = serializers.IntegerField(help_text="orders that wait for GPUs of this offer")
    gpus_ahead = serializers.IntegerField()
    estimate = serializers.DateTimeField(allow_null=True)
    as_of = serializers.DateTimeField()
