"""How available things were, and what was given back for it."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


def kept(table, when=""):
    """Refuse every change of a row of the table."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {when} "
        "EXECUTE FUNCTION billing_refuse_change()",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0011_price_lists"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="SlaVerdict",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="sla")),
                ("resource_id", models.CharField(max_length=64)),
                ("resource_name", models.CharField(max_length=200)),
                ("project", models.CharField(blank=True, max_length=32)),
                ("offer", models.CharField(blank=True, max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("month", models.DateTimeField()),
                ("terms_version", models.CharField(max_length=20)),
                ("up_ms", models.BigIntegerField()),
                ("down_ms", models.BigIntegerField()),
                ("degraded_ms", models.BigIntegerField()),
                ("availability_ppm", models.PositiveIntegerField()),
                ("paid_micros", models.BigIntegerField()),
                ("credit_bps", models.PositiveIntegerField()),
                ("credit_micros", models.BigIntegerField()),
                ("evidence", models.JSONField()),
                ("at", models.DateTimeField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="sla_verdicts",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "supplier",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="marketplace.organization",
                    ),
                ),
            ],
            options={
                "verbose_name": "SLA verdict",
            },
        ),
        migrations.CreateModel(
            name="SupplierAdjustment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="sad")),
                (
                    "kind",
                    models.CharField(
                        choices=[("sla", "Service credit"), ("refund", "Refund to a customer"), ("other", "Other")],
                        max_length=6,
                    ),
                ),
                (
                    "cause",
                    models.CharField(help_text="the verdict's id, or the proposal's key", max_length=80, unique=True),
                ),
                ("offer", models.CharField(blank=True, max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("amount_micros", models.BigIntegerField()),
                ("reason", models.CharField(max_length=200)),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "proposed"), ("approved", "approved"), ("declined", "declined")],
                        default="proposed",
                        max_length=8,
                    ),
                ),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                (
                    "decided_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "proposed_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "supplier",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="supplier_adjustments",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "verdict",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="back_charge",
                        to="billing.slaverdict",
                    ),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name="slaverdict",
            index=models.Index(fields=["organization", "-month", "resource_id"], name="sla_newest_month_first"),
        ),
        migrations.AddIndex(
            model_name="slaverdict",
            index=models.Index(
                condition=models.Q(("credit_micros__gt", 0)), fields=["supplier", "-month"], name="sla_of_supplier"
            ),
        ),
        migrations.AddConstraint(
            model_name="slaverdict",
            constraint=models.UniqueConstraint(fields=("resource_id", "month"), name="sla_judged_once_per_month"),
        ),
        migrations.AddConstraint(
            model_name="slaverdict",
            constraint=models.CheckConstraint(
                condition=models.Q(("credit_micros__gte", 0), ("credit_micros__lte", models.F("paid_micros"))),
                name="sla_credits_no_more_than_was_paid",
            ),
        ),
        migrations.AddConstraint(
            model_name="slaverdict",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("degraded_ms__gte", 0),
                    ("degraded_ms__lte", models.F("up_ms")),
                    ("down_ms__gte", 0),
                    ("up_ms__gte", 0),
                    ("availability_ppm__lte", 1000000),
                ),
                name="sla_figures_make_sense",
            ),
        ),
        migrations.AddIndex(
            model_name="supplieradjustment",
            index=models.Index(fields=["supplier", "-id"], name="supplier_adjustment_newest"),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros", 0), _negated=True), name="supplier_adjustment_moves_something"
            ),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "approved"), _negated=True),
                    models.Q(("decided_by", None), ("kind", "sla"), ("proposed_by", None), ("verdict__isnull", False)),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("proposed_by__isnull", False),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="supplier_adjustment_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "sla"), _negated=True),
                    models.Q(("amount_micros__lt", 0), ("verdict__isnull", False)),
                    _connector="OR",
                ),
                name="supplier_adjustment_of_sla_takes",
            ),
        ),
        kept("billing_slaverdict"),
        kept("billing_supplieradjustment", "WHEN (OLD.state <> 'proposed')"),
    ]
