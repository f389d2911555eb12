"""The shapes of guaranteed performance."""

from typing import Any

from rest_framework import serializers

from marketplace.api.revenue_shapes import ContractRef
from marketplace.api.shapes import Shape, Text


class GuaranteeAnswer(serializers.Serializer[Any]):
    """Under which floor an instance is, from when on."""

    id = serializers.CharField()
    contract = ContractRef()
    terms = serializers.JSONField(help_text="metric, floor, curve and caps as the contract's version has them")
    since = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    judged_until = serializers.DateTimeField(help_text="the end of the last hour that was judged")


class GuaranteesAnswer(serializers.Serializer[Any]):
    guarantee = GuaranteeAnswer(allow_null=True)
    offered = ContractRef(many=True, help_text="what it may be put under: agreed to, and sold by who owns its GPUs")


class BeginGuarantee(Shape):
    contract = Text(max_length=32, help_text="the version, ctv_…")


class GuaranteedHourAnswer(serializers.Serializer[Any]):
    """One UTC hour. Its `credit` follows from its terms and evidence alone; see docs/guarantees.md."""

    id = serializers.CharField()
    hour = serializers.DateTimeField()
    contract = serializers.CharField()
    measured_milli = serializers.IntegerField(
        allow_null=True, help_text="thousandths of units per second, or of a percent; null: nothing was to be judged"
    )
    achieved_bps = serializers.IntegerField(allow_null=True, help_text="of the floor, in hundredths of a percent")
    paid = serializers.CharField()
    credit_bps = serializers.IntegerField()
    credit = serializers.CharField(help_text="when it was judged, by what the month's prices were until then")
    credited = serializers.CharField(
        help_text="with what came at the month's end, where the hour had cost more by then"
    )
    currency = serializers.CharField()
    terms = serializers.JSONField()
    evidence = serializers.JSONField()
