"""Suppliers: their rate cards, what accrued to them, and what moved for it."""

import billing.public_ids
import django.db.models.deletion
import django.db.models.expressions
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models


# Everything may change but what the trigger names, and only while it says so.
KEEPS = """
CREATE FUNCTION billing_refuse_change_but() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR to_jsonb(OLD) - TG_ARGV IS DISTINCT FROM to_jsonb(NEW) - TG_ARGV THEN
        RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
# What runs already is told whose GPUs it has, as everything is that starts from now on.
WHOSE = """
UPDATE billing_usagespan span SET labels = span.labels || jsonb_build_object('supplier', supplier.public_id)
FROM marketplace_offer offer JOIN marketplace_organization supplier ON supplier.id = offer.supplier_id
WHERE offer.public_id = span.labels ->> 'offer' AND span.ended_at IS NULL
"""


def keeps(table, function="billing_refuse_change", but=(), when=""):
    """Let a function see every row of the table before it is changed or deleted."""
    names = ", ".join(f"'{name}'" for name in but)
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {when} "
        f"EXECUTE FUNCTION {function}({names})",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0009_payments"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Accrual",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("offer", models.CharField(max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("month", models.DateTimeField(help_text="the beginning of the UTC month in which it was used")),
                ("starts_at", models.DateTimeField()),
                ("through", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("charge_micros", models.BigIntegerField()),
                ("payout_micros", models.BigIntegerField()),
                ("reserve_micros", models.BigIntegerField()),
                (
                    "fee_micros",
                    models.BigIntegerField(
                        help_text="what the platform keeps; below zero where a fixed rate is dearer"
                    ),
                ),
                ("stated_milliseconds", models.BigIntegerField(db_default=0)),
                ("stated_charge_micros", models.BigIntegerField(db_default=0)),
                ("stated_payout_micros", models.BigIntegerField(db_default=0)),
                ("stated_reserve_micros", models.BigIntegerField(db_default=0)),
            ],
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=120, unique=True)),
                ("offer", models.CharField(max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
                ("is_accrued", models.BooleanField(db_default=False)),
            ],
            options={
                "verbose_name_plural": "deliveries",
            },
        ),
        migrations.CreateModel(
            name="Earning",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="ern")),
                ("currency", models.CharField(max_length=3)),
                ("at", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("charge_micros", models.BigIntegerField()),
                ("payout_micros", models.BigIntegerField()),
                ("reserve_micros", models.BigIntegerField()),
                ("fee_micros", models.BigIntegerField()),
                ("release_at", models.DateTimeField(help_text="when its reserve is paid out as well")),
                ("released_at", models.DateTimeField(null=True)),
                ("released_micros", models.BigIntegerField(db_default=0)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
        migrations.CreateModel(
            name="RateCard",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="rtc")),
                (
                    "offer",
                    models.CharField(
                        blank=True, help_text="the offer's id; empty: all without a card of theirs", max_length=32
                    ),
                ),
                (
                    "share_bps",
                    models.PositiveIntegerField(help_text="of what customers pay, in hundredths of a percent"),
                ),
                ("fixed_micros", models.BigIntegerField(help_text="for a GPU-hour, instead of a share", null=True)),
                ("fixed_currency", models.CharField(blank=True, max_length=3)),
                (
                    "reserve_bps",
                    models.PositiveIntegerField(default=0, help_text="of what the supplier gets, held back"),
                ),
                ("reserve_days", models.PositiveIntegerField(default=0)),
                (
                    "sla_bps",
                    models.PositiveIntegerField(
                        default=10000, help_text="of a service credit, what the supplier bears"
                    ),
                ),
                ("effective_from", models.DateTimeField()),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "proposed"), ("approved", "approved"), ("declined", "declined")],
                        default="proposed",
                        max_length=8,
                    ),
                ),
                ("key", models.UUIDField(unique=True)),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AddField(
            model_name="usagespan",
            name="is_accrued",
            field=models.BooleanField(
                db_default=False, help_text="it is over, and its supplier is owed its part of all of it"
            ),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(condition=models.Q(("is_accrued", False)), fields=["id"], name="usage_span_to_accrue"),
        ),
        migrations.AddField(
            model_name="accrual",
            name="span",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="accruals",
                to="billing.usagespan",
            ),
        ),
        migrations.AddField(
            model_name="accrual",
            name="supplier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="supplier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="accrual",
            name="delivery",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="accruals",
                to="billing.delivery",
            ),
        ),
        migrations.AddField(
            model_name="earning",
            name="supplier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="ratecard",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="ratecard",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="ratecard",
            name="supplier",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="rate_cards", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="accrual",
            name="card",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="accruals", to="billing.ratecard"
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(condition=models.Q(("is_accrued", False)), fields=["id"], name="delivery_to_accrue"),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_micros__gt", 0), ("starts_at__lte", models.F("ends_at")), ("unit_milliseconds__gte", 0)
                ),
                name="delivery_earned_something",
            ),
        ),
        migrations.AddIndex(
            model_name="earning",
            index=models.Index(fields=["supplier", "-at"], name="earning_newest_first"),
        ),
        migrations.AddIndex(
            model_name="earning",
            index=models.Index(
                condition=models.Q(("released_at", None), ("reserve_micros__gt", 0)),
                fields=["release_at"],
                name="earning_to_release",
            ),
        ),
        migrations.AddConstraint(
            model_name="earning",
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
                    )
                ),
                name="earning_shares_out_its_charge",
            ),
        ),
        migrations.AddConstraint(
            model_name="earning",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("released_at", None), ("released_micros", 0)),
                    models.Q(("released_at__isnull", False), ("released_micros__gte", 0)),
                    _connector="OR",
                ),
                name="earning_releases_its_reserve_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "approved")),
                fields=("supplier", "offer", "effective_from"),
                name="rate_card_one_per_moment",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(("reserve_bps__lte", 10000), ("share_bps__lte", 10000), ("sla_bps__lte", 10000)),
                name="rate_card_shares_no_more_than_all",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("fixed_currency", ""), ("fixed_micros", None)),
                    models.Q(("fixed_currency__regex", "^[A-Z]{3}$"), ("fixed_micros__gte", 0)),
                    _connector="OR",
                ),
                name="rate_card_fixes_an_amount_of_a_currency",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "approved"), _negated=True),
                    models.Q(
                        ("decided_at__isnull", False),
                        ("decided_by__isnull", False),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="rate_card_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "approved"), _negated=True),
                    ("effective_from__gte", models.F("decided_at")),
                    _connector="OR",
                ),
                name="rate_card_never_begins_in_the_past",
            ),
        ),
        migrations.AddIndex(
            model_name="accrual",
            index=models.Index(fields=["supplier", "month"], name="accrual_by_supplier_and_month"),
        ),
        migrations.AddIndex(
            model_name="accrual",
            index=models.Index(
                condition=models.Q(
                    ("charge_micros", models.F("stated_charge_micros")),
                    ("payout_micros", models.F("stated_payout_micros")),
                    ("reserve_micros", models.F("stated_reserve_micros")),
                    ("unit_milliseconds", models.F("stated_milliseconds")),
                    _negated=True,
                ),
                fields=["supplier"],
                name="accrual_to_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="accrual",
            constraint=models.UniqueConstraint(
                condition=models.Q(("span__isnull", False)),
                fields=("span", "month", "card"),
                name="accrual_once_per_span_and_month",
            ),
        ),
        migrations.AddConstraint(
            model_name="accrual",
            constraint=models.UniqueConstraint(
                condition=models.Q(("delivery__isnull", False)),
                fields=("delivery", "card"),
                name="accrual_once_per_delivery",
            ),
        ),
        migrations.AddConstraint(
            model_name="accrual",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("delivery", None), ("span__isnull", False)),
                    models.Q(("delivery__isnull", False), ("span", None)),
                    _connector="OR",
                ),
                name="accrual_is_for_one_thing",
            ),
        ),
        migrations.AddConstraint(
            model_name="accrual",
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
                    )
                ),
                name="accrual_shares_out_its_charge",
            ),
        ),
        migrations.AddConstraint(
            model_name="accrual",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("charge_micros__gte", 0),
                    ("payout_micros__gte", 0),
                    ("reserve_micros__gte", 0),
                    ("unit_milliseconds__gte", 0),
                ),
                name="accrual_owes_nothing_negative",
            ),
        ),
        migrations.RunSQL(KEEPS, "DROP FUNCTION billing_refuse_change_but"),
        keeps("billing_ratecard", when="WHEN (OLD.state <> 'proposed')"),
        keeps("billing_delivery", "billing_refuse_change_but", but=["is_accrued"]),
        keeps("billing_earning", "billing_refuse_change_but", but=["released_at", "released_micros"]),
        migrations.RunSQL(WHOSE, migrations.RunSQL.noop),
    ]
