"""Statements of suppliers, written once and numbered without a gap, and payouts."""

import billing.public_ids
import django.db.models.deletion
import django.db.models.expressions
from django.conf import settings
from django.db import migrations, models


SERIES = """
CREATE FUNCTION billing_refuse_restating() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.prefix <> OLD.prefix OR NEW.next_number < OLD.next_number THEN
        RAISE EXCEPTION 'the series % keeps its numbers: % refused', OLD.prefix, TG_OP
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""


def kept(table, function="billing_refuse_change"):
    """Let a function see every row of the table before it is changed or deleted."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0012_service_levels"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="StatementSeries",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("prefix", models.CharField(max_length=12, unique=True)),
                ("next_number", models.BigIntegerField(default=1)),
            ],
            options={
                "verbose_name_plural": "statement series",
            },
        ),
        migrations.CreateModel(
            name="PayoutAccount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="pac")),
                ("processor_id", models.CharField(blank=True, max_length=64)),
                ("country", models.CharField(max_length=2)),
                ("can_be_paid", models.BooleanField(default=False)),
                ("is_submitted", models.BooleanField(default=False)),
                ("missing", models.JSONField(default=list, help_text="what the processor still asks for")),
                ("looked_at", models.DateTimeField(null=True)),
                (
                    "held_at",
                    models.DateTimeField(help_text="since when a capacity manager holds payouts back", null=True),
                ),
                (
                    "supplier",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="payout_account",
                        to="marketplace.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="SupplierStatement",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="sts")),
                ("sequence", models.BigIntegerField()),
                ("number", models.CharField(max_length=32, unique=True)),
                ("currency", models.CharField(max_length=3)),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("issued_at", models.DateTimeField()),
                ("language", models.CharField(max_length=2)),
                ("platform", models.JSONField(help_text="name, address, country and tax_id as they were")),
                ("party", models.JSONField(help_text="the supplier's name, address, country and tax_id as they were")),
                ("opening_micros", models.BigIntegerField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("charge_micros", models.BigIntegerField()),
                ("payout_micros", models.BigIntegerField()),
                ("reserve_micros", models.BigIntegerField()),
                ("fee_micros", models.BigIntegerField()),
                ("adjustment_micros", models.BigIntegerField()),
                ("paid_micros", models.BigIntegerField()),
                ("closing_micros", models.BigIntegerField()),
                ("held_micros", models.BigIntegerField()),
                (
                    "series",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="statements",
                        to="billing.statementseries",
                    ),
                ),
                (
                    "supplier",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="statements",
                        to="marketplace.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="StatementLine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=120)),
                ("node", models.CharField(blank=True, max_length=32)),
                ("offer", models.CharField(blank=True, max_length=32)),
                (
                    "month",
                    models.DateTimeField(
                        help_text="in which it was used; earlier than the statement's where late", null=True
                    ),
                ),
                ("text", models.CharField(blank=True, max_length=200)),
                ("unit_milliseconds", models.BigIntegerField(default=0)),
                ("charge_micros", models.BigIntegerField(default=0)),
                ("payout_micros", models.BigIntegerField(default=0)),
                ("reserve_micros", models.BigIntegerField(default=0)),
                ("adjustment_micros", models.BigIntegerField(default=0)),
                (
                    "adjustment",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="line",
                        to="billing.supplieradjustment",
                    ),
                ),
                (
                    "statement",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="lines",
                        to="billing.supplierstatement",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Payout",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="pyt")),
                ("currency", models.CharField(max_length=3)),
                ("amount_micros", models.BigIntegerField()),
                ("slot", models.DateField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("created", "ordered"),
                            ("sending", "being sent"),
                            ("unknown", "being looked for"),
                            ("paid", "paid out"),
                            ("failed", "failed"),
                            ("cancelled", "called off"),
                            ("reversing", "being taken back"),
                            ("reversed", "taken back"),
                        ],
                        default="created",
                        max_length=9,
                    ),
                ),
                ("processor_id", models.CharField(blank=True, max_length=64)),
                ("failure", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField()),
                ("sent_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("look_at", models.DateTimeField(null=True)),
                (
                    "reversal_approved_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "reversal_proposed_by",
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
                        related_name="payouts",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="payouts", to="billing.payoutaccount"
                    ),
                ),
                (
                    "statement",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="payouts",
                        to="billing.supplierstatement",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="StatementItem",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("unit_milliseconds", models.BigIntegerField()),
                ("charge_micros", models.BigIntegerField()),
                ("payout_micros", models.BigIntegerField()),
                ("reserve_micros", models.BigIntegerField()),
                (
                    "accrual",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="items", to="billing.accrual"
                    ),
                ),
                (
                    "line",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="items", to="billing.statementline"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("line", "accrual"), name="statement_item_once_per_line")
                ],
            },
        ),
        migrations.AddIndex(
            model_name="supplierstatement",
            index=models.Index(fields=["supplier", "-id"], name="statement_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="supplierstatement",
            constraint=models.UniqueConstraint(fields=("series", "sequence"), name="statement_number_once"),
        ),
        migrations.AddConstraint(
            model_name="supplierstatement",
            constraint=models.UniqueConstraint(
                fields=("supplier", "currency", "period_end"), name="statement_once_per_month"
            ),
        ),
        migrations.AddConstraint(
            model_name="supplierstatement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "charge_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.F("payout_micros"), "+", models.F("reserve_micros")
                            ),
                            "+",
                            models.F("fee_micros"),
                        ),
                    ),
                    (
                        "closing_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    django.db.models.expressions.CombinedExpression(
                                        models.F("opening_micros"), "+", models.F("payout_micros")
                                    ),
                                    "+",
                                    models.F("reserve_micros"),
                                ),
                                "+",
                                models.F("adjustment_micros"),
                            ),
                            "-",
                            models.F("paid_micros"),
                        ),
                    ),
                ),
                name="statement_adds_up",
            ),
        ),
        migrations.AddConstraint(
            model_name="statementline",
            constraint=models.UniqueConstraint(fields=("statement", "key"), name="statement_line_once_per_key"),
        ),
        migrations.AddIndex(
            model_name="payout",
            index=models.Index(
                condition=models.Q(("look_at__isnull", False)), fields=["look_at"], name="payout_to_look_at"
            ),
        ),
        migrations.AddIndex(
            model_name="payout",
            index=models.Index(fields=["supplier", "-id"], name="payout_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="payout_pays_something"
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state__in", ["created", "sending", "unknown"])),
                fields=("supplier", "currency"),
                name="payout_one_at_a_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state__in", ["failed", "cancelled"]), _negated=True),
                fields=("supplier", "currency", "slot"),
                name="payout_once_per_slot",
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state__in", ["reversing", "reversed"]), _negated=True),
                    models.Q(
                        ("reversal_approved_by__isnull", False),
                        ("reversal_proposed_by__isnull", False),
                        models.Q(("reversal_approved_by", models.F("reversal_proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="payout_reversal_needs_a_second_person",
            ),
        ),
        kept("billing_supplierstatement"),
        kept("billing_statementline"),
        kept("billing_statementitem"),
        migrations.RunSQL(SERIES, "DROP FUNCTION billing_refuse_restating"),
        kept("billing_statementseries", "billing_refuse_restating"),
    ]
