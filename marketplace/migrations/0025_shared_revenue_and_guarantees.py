"""Periods and statements of shared revenue, and instances under guarantees."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0024_job_cost_hindrance"),
        ("provisioning", "0028_node_statements"),
    ]

    operations = [
        migrations.CreateModel(
            name="RevenuePeriod",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="rvp")),
                ("currency", models.CharField(max_length=3)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("due_at", models.DateTimeField()),
                ("final_at", models.DateTimeField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "Open for statements"),
                            ("estimated", "Charged by estimate"),
                            ("closed", "Closed"),
                        ],
                        default="open",
                        max_length=9,
                    ),
                ),
                (
                    "basis",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("", ""),
                            ("reported", "The customer's statement"),
                            ("last_statement", "Estimate: the last statement before"),
                            ("minimum", "Estimate: the minimum"),
                            ("metered_cost", "Estimate: the metered cost"),
                        ],
                        max_length=14,
                    ),
                ),
                ("revenue_micros", models.BigIntegerField(help_text="by which it was charged last", null=True)),
                (
                    "metered_micros",
                    models.BigIntegerField(help_text="what its use would have cost by the list", null=True),
                ),
                ("charged_micros", models.BigIntegerField(default=0)),
                ("closed_at", models.DateTimeField(null=True)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="revenue_periods",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="revenue_periods",
                        to="marketplace.contractversion",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RevenuePeriodEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "old_state",
                    models.CharField(
                        choices=[
                            ("open", "Open for statements"),
                            ("estimated", "Charged by estimate"),
                            ("closed", "Closed"),
                        ],
                        max_length=9,
                    ),
                ),
                (
                    "new_state",
                    models.CharField(
                        choices=[
                            ("open", "Open for statements"),
                            ("estimated", "Charged by estimate"),
                            ("closed", "Closed"),
                        ],
                        max_length=9,
                    ),
                ),
                ("message", models.CharField(max_length=200)),
                (
                    "period",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to="marketplace.revenueperiod",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RevenueStatement",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="rvs")),
                ("number", models.PositiveIntegerField()),
                ("revenue_micros", models.BigIntegerField()),
                ("lines", models.JSONField(default=list)),
                ("sha256", models.CharField(max_length=64)),
                (
                    "source",
                    models.CharField(choices=[("api", "API"), ("csv", "CSV file"), ("portal", "Portal")], max_length=6),
                ),
                ("by_name", models.CharField(max_length=254)),
                (
                    "token",
                    models.CharField(blank=True, help_text="the id of the API token that signed it", max_length=32),
                ),
                ("at", models.DateTimeField()),
                (
                    "by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "period",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="statements",
                        to="marketplace.revenueperiod",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Guarantee",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="gua")),
                ("since", models.DateTimeField()),
                ("judged_until", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "is_judged",
                    models.BooleanField(default=False, help_text="it has ended, and all of its hours are judged"),
                ),
                (
                    "instance",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="guarantees",
                        to="provisioning.instance",
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="guarantees",
                        to="marketplace.contractversion",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("is_judged", False)), fields=["judged_until"], name="guarantee_to_judge"
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at", None)),
                        fields=("instance",),
                        name="guarantee_one_at_a_time_per_instance",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("ended_at", None), ("ended_at__gte", models.F("since")), _connector="OR"),
                        name="guarantee_runs_forward",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("is_judged", False), ("ended_at__isnull", False), _connector="OR"),
                        name="guarantee_is_judged_once_it_ended",
                    ),
                ],
            },
        ),
        migrations.AddIndex(
            model_name="revenueperiod",
            index=models.Index(fields=["organization", "-id"], name="revenue_period_newest_first"),
        ),
        migrations.AddIndex(
            model_name="revenueperiod",
            index=models.Index(
                condition=models.Q(("state", "closed"), _negated=True),
                fields=["due_at"],
                name="revenue_period_not_closed",
            ),
        ),
        migrations.AddConstraint(
            model_name="revenueperiod",
            constraint=models.UniqueConstraint(
                fields=("version", "organization", "starts_at"), name="revenue_period_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="revenueperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("due_at__lt", models.F("final_at")),
                    ("ends_at__lt", models.F("due_at")),
                    ("starts_at__lt", models.F("ends_at")),
                ),
                name="revenue_period_runs_forward",
            ),
        ),
        migrations.AddConstraint(
            model_name="revenueperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", ["open", "estimated", "closed"])), name="revenue_period_state_is_known"
            ),
        ),
        migrations.AddConstraint(
            model_name="revenueperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("closed_at__isnull", False), ("state", "closed")),
                    models.Q(models.Q(("state", "closed"), _negated=True), ("closed_at", None)),
                    _connector="OR",
                ),
                name="revenue_period_says_when_it_closed",
            ),
        ),
        migrations.AddConstraint(
            model_name="revenueperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(("charged_micros__gte", 0)), name="revenue_period_charges_forward"
            ),
        ),
        migrations.AddConstraint(
            model_name="revenuestatement",
            constraint=models.UniqueConstraint(fields=("period", "number"), name="revenue_statement_number_once"),
        ),
        migrations.AddConstraint(
            model_name="revenuestatement",
            constraint=models.CheckConstraint(
                condition=models.Q(("revenue_micros__gte", 0)), name="revenue_statement_is_not_negative"
            ),
        ),
        migrations.RunSQL(
            "CREATE TRIGGER marketplace_revenuestatement_keeps BEFORE UPDATE OR DELETE ON marketplace_revenuestatement "
            "FOR EACH ROW EXECUTE FUNCTION billing_refuse_change()",
            "DROP TRIGGER marketplace_revenuestatement_keeps ON marketplace_revenuestatement",
        ),
    ]
