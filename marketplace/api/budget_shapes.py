"""The shapes of requests and answers about budgets."""

from typing import Any

from rest_framework import serializers

from marketplace.api.quota_shapes import Money
from marketplace.api.shapes import Count, Shape, Text
from marketplace.budget_counters import COUNTERS
from marketplace.budgets import GRACE_MINUTES_MAX, SHARE_MAX, SHARES_MOST
from marketplace.models import Budget, BudgetAlert
from marketplace.models.budgets import MONEY


class Counted(serializers.Serializer[Any]):
    counts = serializers.ChoiceField(choices=list(COUNTERS), default=MONEY, help_text="what it counts")


class AlertAnswer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=BudgetAlert.Kind.choices)
    share = serializers.IntegerField(help_text="in percent")
    amount = serializers.CharField(help_text="of the budget, as it was")
    reached = serializers.CharField(help_text="what was used, or was forecast")
    at = serializers.DateTimeField()
    sent_at = serializers.DateTimeField(allow_null=True, help_text="when its e-mail was sent")


class BudgetAnswer(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="of the organization, project or token whose budget it is")
    kind = serializers.ChoiceField(choices=["organization", "project", "token"])
    name = serializers.CharField()
    currency = serializers.CharField()
    counts = serializers.ChoiceField(choices=list(COUNTERS))
    monthly = serializers.CharField(allow_null=True, help_text="for a calendar month, UTC; null: none")
    hourly = serializers.CharField(allow_null=True)
    month_since = serializers.DateTimeField()
    used = serializers.CharField(help_text="used since the month began, charged or not, with what was paid ahead")
    forecast = serializers.CharField(help_text="used at the month's end, if all goes on as now")
    spent = serializers.CharField(help_text="money used since the month began, charged or not")
    set_aside = serializers.CharField(help_text="for what is ordered, and not used yet")
    shares_due = serializers.CharField(help_text="what shares of revenue will ask that fall due in this month")
    per_hour = serializers.CharField(help_text="what all that is held costs for an hour")
    action = serializers.ChoiceField(
        choices=Budget.Action.choices, help_text="what follows once it is used up: alert, block starts, or stop too"
    )
    grace_minutes = serializers.IntegerField(help_text="how long what runs goes on then")
    used_shares = serializers.ListField(child=serializers.IntegerField(), help_text="alerts at these percentages")
    forecast_shares = serializers.ListField(child=serializers.IntegerField())
    passed_at = serializers.DateTimeField(allow_null=True, help_text="since when it is used up")
    stops_at = serializers.DateTimeField(allow_null=True, help_text="when what runs is stopped")
    alerts = AlertAnswer(many=True, help_text="of this month")


class BudgetListAnswer(serializers.Serializer[Any]):
    data = BudgetAnswer(many=True)  # type: ignore[assignment]


class Shares(serializers.ListField):
    """Different whole percentages."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(child=Count(min_value=1, max_value=SHARE_MAX), max_length=SHARES_MOST, **kwargs)


class ChangeBudget(Shape):
    counts = Text(max_length=16, required=False, help_text="default: money")
    monthly = Text(
        max_length=20, allow_null=True,
        help_text="money as a decimal string, or a whole number of outcomes as a string; null: no budget",
    )  # fmt: skip
    hourly = Money(allow_null=True, help_text="null: no budget")
    action = serializers.ChoiceField(choices=Budget.Action.choices, required=False, help_text="default: as it is")
    grace_minutes = Count(min_value=0, max_value=GRACE_MINUTES_MAX, required=False)
    used_shares = Shares(required=False)
    forecast_shares = Shares(required=False)
