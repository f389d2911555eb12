"""The shapes of shares of revenue."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import Shape, Text
from marketplace.models import PeriodState, RevenuePeriod, RevenueStatement
from marketplace.revenue_share.statements import LABEL_MAX

CSV_LENGTH_MAX = 2_000_000
STATEMENTS_MAX = 100
METERED_MAX = 1000
STEPS = ["revenue", "share", "minimum", "metered_cost", "cap", "true_up", "total"]


class ContractRef(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="of the version, ctv_…")
    title = serializers.CharField()


class PeriodAnswer(serializers.Serializer[Any]):
    """A day or month (UTC) of a share of revenue. Money is decimal strings."""

    id = serializers.CharField()
    contract = ContractRef()
    period = serializers.CharField(help_text="such as 2026-11, or 2026-11-26 where periods are days")
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    due_at = serializers.DateTimeField(help_text="statements that are there by then are charged; else an estimate is")
    final_at = serializers.DateTimeField(help_text="until then a statement still corrects an estimate")
    state = serializers.ChoiceField(choices=PeriodState.choices)
    basis = serializers.ChoiceField(choices=RevenuePeriod.Basis.choices, allow_null=True)
    revenue = serializers.CharField(allow_null=True, help_text="by which it was charged last")
    metered_cost = serializers.CharField(allow_null=True, help_text="what its use would have cost by the list")
    charged = serializers.CharField()
    currency = serializers.CharField()
    closed_at = serializers.DateTimeField(allow_null=True)


class RevenueLine(serializers.Serializer[Any]):
    label = serializers.CharField()  # type: ignore[assignment]
    amount = serializers.CharField()


class RevenueStatementAnswer(serializers.Serializer[Any]):
    """What was said of a period. It is never changed: what was said last counts."""

    id = serializers.CharField()
    period = serializers.CharField()
    number = serializers.IntegerField()
    revenue = serializers.CharField()
    currency = serializers.CharField()
    lines = RevenueLine(many=True)
    sha256 = serializers.CharField(help_text="of its period, number, revenue and lines as canonical JSON")
    source = serializers.ChoiceField(choices=RevenueStatement.Source.choices)  # type: ignore[assignment]
    by = serializers.CharField()
    token = serializers.CharField(allow_null=True, help_text="the API token that signed it")
    at = serializers.DateTimeField()


class ArithmeticStep(serializers.Serializer[Any]):
    name = serializers.ChoiceField(choices=STEPS)
    amount = serializers.CharField()


class MeteredUse(serializers.Serializer[Any]):
    """Use that the agreement covers, in the period: what it would have cost by the list."""

    usage = serializers.CharField(help_text="of the meter's span")
    resource = serializers.CharField()
    name = serializers.CharField()
    project = serializers.CharField()
    gpus = serializers.IntegerField()
    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    price = serializers.CharField(help_text="of a GPU-hour")
    amount = serializers.CharField()


class PeriodDetail(PeriodAnswer):
    terms = serializers.JSONField(help_text="the revenue terms of the contract's version")
    so_far = serializers.CharField(allow_null=True, help_text="what it would cost if it ended now")
    arithmetic = ArithmeticStep(many=True, help_text="how it was charged, or would be if it ended now, line by line")
    metered = MeteredUse(many=True, help_text="the lines of the metered cost, the earliest first, 1,000 at most")
    metered_spans = serializers.IntegerField(help_text="how many lines there are")
    statements = RevenueStatementAnswer(many=True, help_text="the newest first")


class NewLine(Shape):
    label = Text(max_length=LABEL_MAX)  # type: ignore[assignment]
    amount = Text(max_length=40)


class NewStatement(Shape):
    organization = Text(max_length=32, required=False, help_text="default: the token's own")
    contract = Text(max_length=32, help_text="the version, ctv_…")
    period = Text(max_length=10, help_text="such as 2026-11, or 2026-11-26 where periods are days")
    revenue = Text(max_length=40, required=False, help_text="such as 1234.50")
    lines = NewLine(many=True, required=False, help_text="what adds up to the revenue")
    csv = Text(
        max_length=CSV_LENGTH_MAX, required=False, help_text="instead of both: lines of the columns label and amount"
    )
