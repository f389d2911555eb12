"""Money for results: escrows, outcomes, suppliers' parts and what the work took."""

import billing.public_ids
import django.db.models.deletion
import django.db.models.expressions
from django.conf import settings
from django.db import migrations, models


def kept(table):
    """Refuse every change of a row of the table."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW "
        "EXECUTE FUNCTION billing_refuse_change()",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


# An outcome is shared out once; nothing else of it ever changes.
SHARED_ONCE = """
CREATE TRIGGER billing_outcome_keeps BEFORE UPDATE ON billing_outcome FOR EACH ROW
WHEN (OLD.sharing_id IS NOT NULL OR to_jsonb(OLD) - 'sharing_id' <> to_jsonb(NEW) - 'sharing_id')
EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER billing_outcome_stays BEFORE DELETE ON billing_outcome FOR EACH ROW
EXECUTE FUNCTION billing_refuse_change()
"""
NOT_SHARED_ONCE = """
DROP TRIGGER billing_outcome_keeps ON billing_outcome;
DROP TRIGGER billing_outcome_stays ON billing_outcome
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0018_paid_ahead_on_invoices"),
        ("marketplace", "0017_books_that_are_deleted"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Escrow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="esc")),
                ("resource_id", models.CharField(max_length=64, unique=True)),
                (
                    "version",
                    models.CharField(blank=True, help_text="the contract's version by which it is used", max_length=32),
                ),
                ("currency", models.CharField(max_length=3)),
                ("amount_micros", models.BigIntegerField()),
                ("posted_micros", models.BigIntegerField(default=0)),
                ("voided_micros", models.BigIntegerField(default=0)),
                (
                    "state",
                    models.CharField(choices=[("open", "open"), ("closed", "closed")], default="open", max_length=8),
                ),
                ("reason", models.CharField(max_length=200)),
                ("opened_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="EscrowRelease",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=160, unique=True)),
                ("amount_micros", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Outcome",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="out")),
                ("key", models.CharField(max_length=160, unique=True)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("outcome", "Outcome"),
                            ("share", "Share of revenue"),
                            ("true_up", "Up to the minimum"),
                            ("reversed", "Given back"),
                        ],
                        max_length=12,
                    ),
                ),
                ("resource_id", models.CharField(max_length=64)),
                ("version", models.CharField(max_length=32)),
                ("subject", models.CharField(max_length=200)),
                ("name", models.CharField(max_length=200)),
                ("project", models.CharField(blank=True, max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("unit", models.CharField(max_length=40)),
                ("quantity", models.BigIntegerField()),
                ("per", models.BigIntegerField(default=1)),
                ("micros_per_unit", models.BigIntegerField()),
                ("bps", models.PositiveIntegerField(default=10000)),
                ("asked_micros", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
                ("promo_micros", models.BigIntegerField()),
                ("shares", models.JSONField()),
                (
                    "period",
                    models.DateTimeField(
                        help_text="the beginning of the period in whose cap and floor it counts", null=True
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=200)),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="OutcomeCost",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("resource_id", models.CharField(max_length=64)),
                ("version", models.CharField(blank=True, max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("unit_milliseconds", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="OutcomePeriod",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.CharField(max_length=32)),
                ("starts_at", models.DateTimeField()),
                ("micros", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="OutcomeShare",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.CharField(max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("amount_micros", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="OutcomeSharing",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="osh")),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="account",
            name="account_kind_fits_its_owner",
        ),
        migrations.RemoveConstraint(
            model_name="prepaiditem",
            name="prepaid_item_is_paid_or_given_back",
        ),
        migrations.RemoveConstraint(
            model_name="supplieradjustment",
            name="supplier_adjustment_needs_a_second_person",
        ),
        migrations.AlterField(
            model_name="account",
            name="kind",
            field=models.CharField(
                choices=[
                    ("cash", "Cash"),
                    ("promo", "Promotional credit"),
                    ("receivable", "Receivable"),
                    ("payable", "Payable"),
                    ("reserve", "Reserve"),
                    ("revenue", "Revenue"),
                    ("fees", "Fees"),
                    ("tax", "Tax"),
                    ("sla_expense", "Service credits"),
                    ("processor", "Payment processor"),
                    ("bank", "Our bank account"),
                    ("promo_expense", "Promotional expense"),
                    ("deferred", "Paid ahead"),
                    ("bad_debt", "Bad debts"),
                    ("outcome_cost", "What results took"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="hold",
            name="expires_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AlterField(
            model_name="invoiceprepaid",
            name="line",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="prepaid", to="billing.invoiceline"
            ),
        ),
        migrations.AlterField(
            model_name="prepaiditem",
            name="kind",
            field=models.CharField(
                choices=[
                    ("reservation", "Reservation"),
                    ("extension", "Extension"),
                    ("trade", "Trade"),
                    ("cancelled", "Cancelled"),
                    ("shortfall", "Shortfall"),
                    ("resold", "Resold"),
                    ("outcome", "Outcome"),
                    ("share", "Share"),
                    ("true_up", "True Up"),
                    ("reversed", "Reversed"),
                ],
                max_length=12,
            ),
        ),
        migrations.AlterField(
            model_name="supplieradjustment",
            name="kind",
            field=models.CharField(
                choices=[
                    ("sla", "Service credit"),
                    ("outcome", "Share of results"),
                    ("refund", "Refund to a customer"),
                    ("other", "Other"),
                ],
                max_length=8,
            ),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(
                condition=models.Q(("covered_by", ""), _negated=True), fields=["covered_by"], name="usage_span_covered"
            ),
        ),
        migrations.AddConstraint(
            model_name="account",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        (
                            "kind__in",
                            (
                                "revenue",
                                "fees",
                                "tax",
                                "sla_expense",
                                "processor",
                                "bank",
                                "promo_expense",
                                "deferred",
                                "bad_debt",
                                "outcome_cost",
                            ),
                        ),
                        ("organization__isnull", True),
                    ),
                    models.Q(
                        ("kind__in", ("promo", "cash", "receivable", "payable", "reserve")),
                        ("organization__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="account_kind_fits_its_owner",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("expires_at", None), ("purpose", "escrow")),
                    models.Q(("expires_at__isnull", False), models.Q(("purpose", "escrow"), _negated=True)),
                    _connector="OR",
                ),
                name="hold_of_an_escrow_never_expires",
            ),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "approved"), _negated=True),
                    models.Q(("decided_by", None), ("kind", "sla"), ("proposed_by", None), ("verdict__isnull", False)),
                    models.Q(("decided_by", None), ("kind", "outcome"), ("proposed_by", None), ("verdict", None)),
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
        migrations.AddField(
            model_name="escrow",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="escrows", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="escrowrelease",
            name="escrow",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="releases", to="billing.escrow"
            ),
        ),
        migrations.AddField(
            model_name="outcome",
            name="escrow",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="outcomes", to="billing.escrow"
            ),
        ),
        migrations.AddField(
            model_name="outcome",
            name="of",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="reversals", to="billing.outcome"
            ),
        ),
        migrations.AddField(
            model_name="outcome",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="outcomes", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="prepaiditem",
            name="outcome",
            field=models.OneToOneField(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="item", to="billing.outcome"
            ),
        ),
        migrations.AddConstraint(
            model_name="prepaiditem",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gt", 0),
                        ("kind__in", ("reservation", "extension", "trade", "outcome", "share", "true_up")),
                        ("promo_micros__gte", 0),
                        ("kept_micros", 0),
                        ("promo_micros__lte", models.F("amount_micros")),
                    ),
                    models.Q(
                        models.Q(
                            ("kind__in", ("reservation", "extension", "trade", "outcome", "share", "true_up")),
                            _negated=True,
                        ),
                        ("amount_micros__lt", 0),
                        ("kept_micros__gte", 0),
                        ("promo_micros__gte", models.F("amount_micros")),
                        ("promo_micros__lte", 0),
                    ),
                    _connector="OR",
                ),
                name="prepaid_item_is_paid_or_given_back",
            ),
        ),
        migrations.AddConstraint(
            model_name="prepaiditem",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind__in", ("outcome", "share", "true_up", "reversed")), ("outcome__isnull", False)),
                    models.Q(
                        models.Q(("kind__in", ("outcome", "share", "true_up", "reversed")), _negated=True),
                        ("outcome", None),
                    ),
                    _connector="OR",
                ),
                name="prepaid_item_of_an_outcome_names_it",
            ),
        ),
        migrations.AddField(
            model_name="outcomecost",
            name="span",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="outcome_cost", to="billing.usagespan"
            ),
        ),
        migrations.AddField(
            model_name="outcomeperiod",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="outcomeshare",
            name="adjustment",
            field=models.OneToOneField(
                help_text="what moved for it",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="outcome_share",
                to="billing.supplieradjustment",
            ),
        ),
        migrations.AddField(
            model_name="outcomeshare",
            name="supplier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="outcome_shares",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="outcomeshare",
            name="sharing",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="shares", to="billing.outcomesharing"
            ),
        ),
        migrations.AddField(
            model_name="outcome",
            name="sharing",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="outcomes",
                to="billing.outcomesharing",
            ),
        ),
        migrations.AddIndex(
            model_name="escrow",
            index=models.Index(condition=models.Q(("state", "open")), fields=["organization"], name="escrow_open"),
        ),
        migrations.AddConstraint(
            model_name="escrow",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("posted_micros__gte", 0),
                    ("voided_micros__gte", 0),
                    (
                        "amount_micros__gte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("posted_micros"), "+", models.F("voided_micros")
                        ),
                    ),
                ),
                name="escrow_gives_out_no_more_than_it_holds",
            ),
        ),
        migrations.AddConstraint(
            model_name="escrow",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("closed_at", None), ("state", "open")),
                    models.Q(
                        (
                            "amount_micros",
                            django.db.models.expressions.CombinedExpression(
                                models.F("posted_micros"), "+", models.F("voided_micros")
                            ),
                        ),
                        ("closed_at__isnull", False),
                        ("state", "closed"),
                    ),
                    _connector="OR",
                ),
                name="escrow_is_closed_when_nothing_is_left",
            ),
        ),
        migrations.AddConstraint(
            model_name="escrowrelease",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gte", 0)), name="escrow_release_gives_back"
            ),
        ),
        migrations.AddIndex(
            model_name="outcomecost",
            index=models.Index(fields=["version", "at"], name="outcome_cost_by_version"),
        ),
        migrations.AddIndex(
            model_name="outcomecost",
            index=models.Index(fields=["resource_id"], name="outcome_cost_by_resource"),
        ),
        migrations.AddConstraint(
            model_name="outcomecost",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gte", 0)), name="outcome_cost_is_not_negative"
            ),
        ),
        migrations.AddConstraint(
            model_name="outcomeperiod",
            constraint=models.UniqueConstraint(
                fields=("organization", "version", "starts_at"), name="outcome_period_counted_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="outcomeperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(("micros__gte", 0)), name="outcome_period_is_not_negative"
            ),
        ),
        migrations.AddIndex(
            model_name="outcomeshare",
            index=models.Index(fields=["version"], name="outcome_share_by_version"),
        ),
        migrations.AddConstraint(
            model_name="outcomeshare",
            constraint=models.UniqueConstraint(
                fields=("sharing", "supplier", "version", "currency"), name="outcome_share_once_per_sharing"
            ),
        ),
        migrations.AddConstraint(
            model_name="outcomeshare",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("adjustment", None), ("amount_micros", 0)),
                    models.Q(models.Q(("amount_micros", 0), _negated=True), ("adjustment__isnull", False)),
                    _connector="OR",
                ),
                name="outcome_share_moves_its_money",
            ),
        ),
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(fields=["organization", "-id"], name="outcome_newest_first"),
        ),
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(fields=["resource_id", "id"], name="outcome_by_resource"),
        ),
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(fields=["version", "at"], name="outcome_by_version"),
        ),
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(condition=models.Q(("sharing", None)), fields=["id"], name="outcome_to_share"),
        ),
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(fields=["at"], name="outcome_when"),
        ),
        migrations.AddConstraint(
            model_name="outcome",
            constraint=models.UniqueConstraint(
                condition=models.Q(("of", None)),
                fields=("organization", "version", "subject", "kind"),
                name="outcome_paid_once_per_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="outcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gt", 0),
                        ("kind", "reversed"),
                        ("of__isnull", False),
                        models.Q(("reason", ""), _negated=True),
                    ),
                    models.Q(models.Q(("kind", "reversed"), _negated=True), ("of", None)),
                    _connector="OR",
                ),
                name="outcome_reversed_says_of_what_and_why",
            ),
        ),
        migrations.AddConstraint(
            model_name="outcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("promo_micros__gte", 0),
                    ("promo_micros__lte", models.F("amount_micros")),
                    ("amount_micros__lte", models.F("asked_micros")),
                ),
                name="outcome_costs_no_more_than_asked",
            ),
        ),
        migrations.AddConstraint(
            model_name="outcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("bps__lte", 10000), ("micros_per_unit__gte", 0), ("per__gt", 0), ("quantity__gte", 0)
                ),
                name="outcome_counts_something",
            ),
        ),
        kept("billing_escrowrelease"),
        kept("billing_outcomesharing"),
        kept("billing_outcomeshare"),
        kept("billing_outcomecost"),
        migrations.RunSQL(SHARED_ONCE, NOT_SHARED_ONCE),
    ]
