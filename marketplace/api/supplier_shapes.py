"""The shapes of what suppliers earn."""

from typing import Any

from rest_framework import serializers

from billing.models import Payout
from marketplace.api.invoice_shapes import Party, Period


class StatementAnswer(serializers.Serializer[Any]):
    """closing = opening + payout + held_back + adjustments - paid_out. Money is decimal strings."""

    id = serializers.CharField()
    number = serializers.CharField()
    period = Period()
    issued_at = serializers.DateTimeField()
    currency = serializers.CharField()
    platform = Party()
    supplier = Party()
    gpu_milliseconds = serializers.IntegerField()
    opening = serializers.CharField()
    charged = serializers.CharField(help_text="what customers paid")
    payout = serializers.CharField()
    held_back = serializers.CharField()
    fee = serializers.CharField(help_text="what the platform keeps: charged = payout + held_back + fee")
    adjustments = serializers.CharField()
    paid_out = serializers.CharField()
    closing = serializers.CharField()
    closing_held_back = serializers.CharField(help_text="of the closing balance, what is not paid out yet")


class StatementItemAnswer(serializers.Serializer[Any]):
    """A part of a line: one span, or hours paid ahead, under one rate card; the change since the last statement."""

    of = serializers.CharField(help_text="a usage span, or what was paid ahead")
    starts_at = serializers.DateTimeField()
    through = serializers.DateTimeField()
    card = serializers.CharField()
    share_bps = serializers.IntegerField()
    fixed_per_gpu_hour = serializers.CharField(allow_null=True)
    reserve_bps = serializers.IntegerField()
    gpu_milliseconds = serializers.IntegerField()
    charged = serializers.CharField()
    payout = serializers.CharField()
    held_back = serializers.CharField()


class StatementLineAnswer(serializers.Serializer[Any]):
    key = serializers.CharField()
    offer = serializers.CharField()
    node = serializers.CharField()
    month = serializers.CharField(help_text="in which it was used, such as 2026-11; empty for an adjustment")
    text = serializers.CharField()
    gpu_milliseconds = serializers.IntegerField()
    charged = serializers.CharField()
    payout = serializers.CharField()
    held_back = serializers.CharField()
    fee = serializers.CharField()
    adjustment = serializers.CharField()
    items = StatementItemAnswer(many=True)


class PayoutAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    statement = serializers.CharField(help_text="its number")
    day = serializers.DateField(help_text="of the calendar")
    amount = serializers.CharField()
    currency = serializers.CharField()
    state = serializers.ChoiceField(choices=Payout.State.choices)
    failure = serializers.CharField()
