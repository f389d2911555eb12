"""Budgets: so much of what a counter counts in a calendar month, whom that is told, and what follows."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField

# What budgets count; see `budget_counters`.
MONEY, OUTCOMES = "money", "outcomes"


def used_shares_default() -> list[int]:
    return [50, 80, 100]


def forecast_shares_default() -> list[int]:
    return [100]


class Budget(models.Model):
    """What an organization, one of its projects or one of its tokens means to use in a calendar month (UTC) at most.

    `counts` names an entry of `budget_counters.COUNTERS`, in whose unit `amount` is. The owner's own row is locked
    wherever a budget is changed or an order is held against it.
    """

    class Action(models.TextChoices):
        """What follows once it is used up."""

        ALERT = "alert", _("Tell only")
        BLOCK = "block", _("Start nothing new")
        STOP = "stop", _("Start nothing new, and stop what runs")

    public_id = PublicIdField(prefix="bud")
    organization = models.ForeignKey("marketplace.Organization", models.CASCADE, related_name="budgets")
    project = models.ForeignKey("marketplace.Project", models.CASCADE, null=True, related_name="+")
    token = models.ForeignKey("marketplace.ApiToken", models.CASCADE, null=True, related_name="+")
    counts = models.CharField(max_length=16, default=MONEY)
    amount = models.BigIntegerField(help_text="in the counter's unit; of money, micros of the organization's currency")
    action = models.CharField(max_length=5, choices=Action.choices, default=Action.BLOCK)
    grace_minutes = models.PositiveIntegerField(default=60, help_text="how long what runs goes on once it is used up")
    used_shares = ArrayField(models.PositiveSmallIntegerField(), default=used_shares_default, help_text="in percent")
    forecast_shares = ArrayField(
        models.PositiveSmallIntegerField(), default=forecast_shares_default, help_text="of the forecast, in percent"
    )
    passed_at = models.DateTimeField(null=True, help_text="since when it is used up, as the sweep found it")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "counts"], condition=Q(project=None, token=None),
                name="budget_once_per_organization_and_counter",
            ),
            models.UniqueConstraint(
                fields=["project", "counts"], condition=Q(project__isnull=False),
                name="budget_once_per_project_and_counter",
            ),
            models.UniqueConstraint(
                fields=["token", "counts"], condition=Q(token__isnull=False), name="budget_once_per_token_and_counter"
            ),
            models.CheckConstraint(
                condition=Q(project=None) | Q(token=None), name="budget_is_of_a_project_or_of_a_token"
            ),
            models.CheckConstraint(condition=Q(amount__gte=0), name="budget_is_never_negative"),
            models.CheckConstraint(condition=Q(action__in=["alert", "block", "stop"]), name="budget_action_is_known"),
        ]  # fmt: skip
        indexes = [
            models.Index(
                fields=["passed_at"], name="budget_to_stop", condition=Q(action="stop", passed_at__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.counts} of {self.owner}"

    @property
    def owner(self) -> Any:
        """Whose it is: the token, the project, or the organization."""
        return self.token or self.project or self.organization

    @property
    def stops_at(self) -> datetime | None:
        """When what runs is stopped; None unless that is to come."""
        if self.action != self.Action.STOP or self.passed_at is None:
            return None
        return self.passed_at + timedelta(minutes=self.grace_minutes)


class BudgetAlert(models.Model):
    """That a share of a budget was reached, by use or by the forecast. Once per month and share; it also carries its
    e-mail, so that a message that was lost or a sender that died loses none."""

    class Kind(models.TextChoices):
        USED = "used", _("Used")
        FORECAST = "forecast", _("Forecast")

    budget = models.ForeignKey(Budget, models.CASCADE, related_name="alerts")
    period = models.DateTimeField(help_text="the beginning of the month")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    share = models.PositiveSmallIntegerField(help_text="in percent")
    amount = models.BigIntegerField(help_text="of the budget, as it was")
    reached = models.BigIntegerField(help_text="what was used, or is forecast, as it was")
    at = models.DateTimeField()
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["budget", "period", "kind", "share"], name="budget_alert_once_per_month_and_share"
            ),
            models.CheckConstraint(condition=Q(kind__in=["used", "forecast"]), name="budget_alert_kind_is_known"),
        ]
        indexes = [models.Index(fields=["next_try_at"], name="budget_alert_to_send", condition=Q(sent_at=None))]

    def __str__(self) -> str:
        return f"{self.kind} {self.share} % of {self.budget}"
