"""The shapes of amounts, prices with their tiers, and commitments."""

from typing import Any

from rest_framework import serializers

from billing.models import Commitment, CommitmentRequest, PriceModel


class Amount(serializers.Serializer[Any]):
    amount = serializers.CharField(help_text="exact decimal")
    currency = serializers.CharField()


class Price(Amount):
    unit = serializers.ChoiceField(choices=["gpu_hour", "gib_hour"])


class PriceTier(serializers.Serializer[Any]):
    from_unit_hours = serializers.IntegerField()
    up_to_unit_hours = serializers.IntegerField(allow_null=True, help_text="null: without end")
    amount = serializers.CharField(help_text="exact decimal, per unit-hour")


class ListedPrice(Price):
    """`amount` is what is charged each minute; tiers and a minimum bring the difference within the hour."""

    model = serializers.ChoiceField(choices=PriceModel.values, help_text="how a month's use becomes an amount")
    tiers = PriceTier(many=True, help_text="of a month's use, in UTC; empty where there is one price")
    minimum_per_month = serializers.CharField(allow_null=True, help_text="what a month in which it is used costs")


class CommitmentPriceAnswer(Price):
    name = serializers.CharField()
    sku = serializers.CharField()
    list_amount = serializers.CharField(help_text="what the list said when it was agreed")


class CommitmentAnswer(serializers.Serializer[Any]):
    """What an organization promised to use: drawn by its use, and charged at the end where something is left."""

    id = serializers.CharField()
    state = serializers.ChoiceField(choices=Commitment.State.values, help_text="offered: accept or decline it")
    kind = serializers.ChoiceField(choices=Commitment.Kind.values)
    currency = serializers.CharField()
    committed = serializers.CharField(help_text="exact decimal")
    committed_unit_hours = serializers.IntegerField(allow_null=True, help_text="null for a promise of money")
    drawn = serializers.CharField(help_text="of the committed amount, until the last full hour")
    drawn_unit_milliseconds = serializers.IntegerField()
    left = serializers.CharField()
    left_over = serializers.CharField(help_text="what was charged at the end of the term for what was not used")
    discount_bps = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    prices = CommitmentPriceAnswer(many=True)


class AskCommitment(serializers.Serializer[Any]):
    """What an organization would promise: an amount of money, or hours of one thing, in whole UTC months."""

    kind = serializers.ChoiceField(choices=Commitment.Kind.values)
    skus = serializers.ListField(child=serializers.CharField(max_length=100), allow_empty=False, max_length=50)
    amount = serializers.CharField(required=False, allow_null=True, default=None, help_text="of a promise of money")
    hours = serializers.IntegerField(required=False, allow_null=True, default=None, min_value=1)
    starts_at = serializers.DateTimeField(help_text="the beginning of a UTC month that is still to come")
    months = serializers.IntegerField(min_value=1, max_value=60)
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")
    organization = serializers.CharField(required=False)


class CommitmentRequestAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    state = serializers.ChoiceField(choices=CommitmentRequest.State.values)
    kind = serializers.ChoiceField(choices=Commitment.Kind.values)
    skus = serializers.ListField(child=serializers.CharField())
    amount = serializers.CharField(allow_null=True)
    hours = serializers.IntegerField(allow_null=True)
    currency = serializers.CharField()
    starts_at = serializers.DateTimeField()
    months = serializers.IntegerField()
    note = serializers.CharField()
    answer = serializers.CharField(help_text="why it was declined")
    asked_at = serializers.DateTimeField()
