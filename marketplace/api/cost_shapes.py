"""The shapes of requests and answers about costs."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import NamedRef
from marketplace.breakdown import DIMENSIONS

MONTH = r"^20[0-9]{2}-(0[1-9]|1[0-2])$"


class CostQuery(serializers.Serializer[Any]):
    by = serializers.CharField(
        max_length=40, default="day", help_text=f"what tells costs apart, with commas: {', '.join(DIMENSIONS)}"
    )
    month = serializers.RegexField(MONTH, required=False, help_text="such as 2026-11, UTC; default: this month")
    since = serializers.DateField(required=False, help_text="the first day, UTC")
    until = serializers.DateField(required=False, help_text="the day after the last, UTC")
    project = serializers.CharField(max_length=32, required=False, help_text="of this project alone, by its id")
    model = serializers.CharField(max_length=64, required=False, help_text="of this GPU model alone, or `storage`")
    market = serializers.ChoiceField(
        choices=["on_demand", "spot", "reserved", "storage", "adjustment"],
        required=False,
        help_text="reserved: what was paid ahead, on the day of payment, less what was given back; "
        "adjustment: what tiers, minimums and commitments made of use",
    )


class CostsAnswer(serializers.Serializer[Any]):
    day = serializers.DateField(required=False)
    project = NamedRef(required=False)
    model = serializers.CharField(required=False)
    market = serializers.CharField(required=False)
    amount = serializers.CharField(help_text="exact decimal, before tax; negative where more was given back")


class CostListAnswer(serializers.Serializer[Any]):
    organization = NamedRef()
    currency = serializers.CharField()
    by = serializers.ListField(child=serializers.ChoiceField(choices=DIMENSIONS))
    total = serializers.CharField()
    data = CostsAnswer(many=True)  # type: ignore[assignment]
