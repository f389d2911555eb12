from collections.abc import Callable
from typing import Any

import billing.public_ids
import django.contrib.postgres.fields
import django.db.models.deletion
import marketplace.models.budgets
from django.db import migrations, models

from billing.public_ids import new_public_id


def into_rows(apps: Any, _schema: Any) -> None:
    """What a budget for a month was before: money, and nothing new starts beyond it."""
    budgets = apps.get_model("marketplace", "Budget").objects
    for name, organization_of in OWNERS.items():
        model = apps.get_model("marketplace", name)
        for owner in model.objects.filter(monthly_budget_micros__isnull=False):
            budgets.create(
                public_id=new_public_id("bud"), organization_id=organization_of(owner), amount=owner.monthly_budget_micros,
                project_id=owner.pk if name == "Project" else None, token_id=owner.pk if name == "ApiToken" else None,
            )  # fmt: skip
            model.objects.filter(pk=owner.pk).update(has_monthly_budget=True)


def back_into_columns(apps: Any, _schema: Any) -> None:
    for budget in apps.get_model("marketplace", "Budget").objects.filter(counts="money"):
        name = "Project" if budget.project_id else "ApiToken" if budget.token_id else "Organization"
        key = budget.project_id or budget.token_id or budget.organization_id
        apps.get_model("marketplace", name).objects.filter(pk=key).update(monthly_budget_micros=budget.amount)


OWNERS: dict[str, Callable[[Any], int]] = {
    "Organization": lambda owner: owner.pk,
    "Project": lambda owner: owner.organization_id,
    "ApiToken": lambda owner: owner.membership.organization_id,
}


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0010_reservations_and_resale"),
    ]

    operations = [
        migrations.CreateModel(
            name="Budget",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="bud")),
                ("counts", models.CharField(default="money", max_length=16)),
                (
                    "amount",
                    models.BigIntegerField(
                        help_text="in the counter's unit; of money, micros of the organization's currency"
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("alert", "Tell only"),
                            ("block", "Start nothing new"),
                            ("stop", "Start nothing new, and stop what runs"),
                        ],
                        default="block",
                        max_length=5,
                    ),
                ),
                (
                    "grace_minutes",
                    models.PositiveIntegerField(default=60, help_text="how long what runs goes on once it is used up"),
                ),
                (
                    "used_shares",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.PositiveSmallIntegerField(),
                        default=marketplace.models.budgets.used_shares_default,
                        help_text="in percent",
                        size=None,
                    ),
                ),
                (
                    "forecast_shares",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.PositiveSmallIntegerField(),
                        default=marketplace.models.budgets.forecast_shares_default,
                        help_text="of the forecast, in percent",
                        size=None,
                    ),
                ),
                (
                    "passed_at",
                    models.DateTimeField(help_text="since when it is used up, as the sweep found it", null=True),
                ),
            ],
        ),
        migrations.CreateModel(
            name="BudgetAlert",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("period", models.DateTimeField(help_text="the beginning of the month")),
                ("kind", models.CharField(choices=[("used", "Used"), ("forecast", "Forecast")], max_length=8)),
                ("share", models.PositiveSmallIntegerField(help_text="in percent")),
                ("amount", models.BigIntegerField(help_text="of the budget, as it was")),
                ("reached", models.BigIntegerField(help_text="what was used, or is forecast, as it was")),
                ("at", models.DateTimeField()),
                ("tries", models.PositiveSmallIntegerField(default=0)),
                ("next_try_at", models.DateTimeField()),
                ("sent_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AddField(
            model_name="apitoken",
            name="has_monthly_budget",
            field=models.BooleanField(default=False, help_text="kept by `budgets.change`"),
        ),
        migrations.AddField(
            model_name="organization",
            name="has_monthly_budget",
            field=models.BooleanField(default=False, help_text="kept by `budgets.change`"),
        ),
        migrations.AddField(
            model_name="project",
            name="has_monthly_budget",
            field=models.BooleanField(default=False, help_text="kept by `budgets.change`"),
        ),
        migrations.AddField(
            model_name="budget",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="budgets", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="project",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="marketplace.project"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="token",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="marketplace.apitoken"
            ),
        ),
        migrations.AddField(
            model_name="budgetalert",
            name="budget",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="alerts", to="marketplace.budget"
            ),
        ),
        migrations.AddIndex(
            model_name="budget",
            index=models.Index(
                condition=models.Q(("action", "stop"), ("passed_at__isnull", False)),
                fields=["passed_at"],
                name="budget_to_stop",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.UniqueConstraint(
                condition=models.Q(("project", None), ("token", None)),
                fields=("organization", "counts"),
                name="budget_once_per_organization_and_counter",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.UniqueConstraint(
                condition=models.Q(("project__isnull", False)),
                fields=("project", "counts"),
                name="budget_once_per_project_and_counter",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.UniqueConstraint(
                condition=models.Q(("token__isnull", False)),
                fields=("token", "counts"),
                name="budget_once_per_token_and_counter",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("project", None), ("token", None), _connector="OR"),
                name="budget_is_of_a_project_or_of_a_token",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="budget_is_never_negative"),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("action__in", ["alert", "block", "stop"])), name="budget_action_is_known"
            ),
        ),
        migrations.AddIndex(
            model_name="budgetalert",
            index=models.Index(
                condition=models.Q(("sent_at", None)), fields=["next_try_at"], name="budget_alert_to_send"
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetalert",
            constraint=models.UniqueConstraint(
                fields=("budget", "period", "kind", "share"), name="budget_alert_once_per_month_and_share"
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetalert",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["used", "forecast"])), name="budget_alert_kind_is_known"
            ),
        ),
        migrations.RunPython(into_rows, back_into_columns),
        migrations.RemoveConstraint(
            model_name="apitoken",
            name="token_budget_is_never_negative",
        ),
        migrations.RemoveConstraint(
            model_name="organization",
            name="organization_budget_is_never_negative",
        ),
        migrations.RemoveConstraint(
            model_name="project",
            name="project_budget_is_never_negative",
        ),
        migrations.RemoveField(
            model_name="apitoken",
            name="monthly_budget_micros",
        ),
        migrations.RemoveField(
            model_name="organization",
            name="monthly_budget_micros",
        ),
        migrations.RemoveField(
            model_name="project",
            name="monthly_budget_micros",
        ),
        migrations.AddConstraint(
            model_name="apitoken",
            constraint=models.CheckConstraint(
                condition=models.Q(("hourly_budget_micros", None), ("hourly_budget_micros__gte", 0), _connector="OR"),
                name="token_budget_is_never_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="organization",
            constraint=models.CheckConstraint(
                condition=models.Q(("hourly_budget_micros", None), ("hourly_budget_micros__gte", 0), _connector="OR"),
                name="organization_budget_is_never_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="project",
            constraint=models.CheckConstraint(
                condition=models.Q(("hourly_budget_micros", None), ("hourly_budget_micros__gte", 0), _connector="OR"),
                name="project_budget_is_never_negative",
            ),
        ),
    ]
