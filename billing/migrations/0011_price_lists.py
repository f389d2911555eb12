"""Price lists with versions, tiers, commitments, and what both change of a bill."""

import billing.public_ids
import django.contrib.postgres.constraints
import django.db.models.deletion
import django.db.models.expressions
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models


# [[0, micros], [hours, micros], ...]: from zero on, each later than the one before, every price more than nothing.
TIERS = """
CREATE FUNCTION billing_tiers_hold_together(model text, base bigint, tiers jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN model = 'flat' THEN tiers = '[]'::jsonb ELSE jsonb_array_length(tiers) BETWEEN 1 AND 20
        AND tiers -> 0 = jsonb_build_array(0, base)
        AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(tiers) WITH ORDINALITY AS tier (said, n)
            WHERE jsonb_array_length(said) <> 2 OR (said ->> 1)::bigint <= 0
               OR (said ->> 0)::bigint <= coalesce((tiers -> (n - 2)::int ->> 0)::bigint, -1) AND n > 1
        )
    END
$$
"""
# A list that was approved says what it says for ever, and only its state moves on.
LISTS = """
CREATE FUNCTION billing_refuse_change_of_list() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (OLD.state = 'scheduled')
        OR (OLD.state IN ('approved', 'withdrawn') AND (
            (OLD.state, NEW.state) NOT IN (('approved', 'scheduled'), ('approved', 'withdrawn'))
            OR (NEW.currency, NEW.number, NEW.note, NEW.drafted_by_id, NEW.edited_by_id, NEW.approved_by_id,
                NEW.approved_at, NEW.simulated_at)
            IS DISTINCT FROM (OLD.currency, OLD.number, OLD.note, OLD.drafted_by_id, OLD.edited_by_id,
                OLD.approved_by_id, OLD.approved_at, OLD.simulated_at)
        )) THEN
        RAISE EXCEPTION 'price list % % is %: % refused', OLD.currency, OLD.number, OLD.state, TG_OP
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
ITEMS = """
CREATE FUNCTION billing_refuse_item_of_final_list() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE said text;
BEGIN
    SELECT state INTO said FROM billing_pricelist
    WHERE id = CASE WHEN TG_OP = 'DELETE' THEN OLD.price_list_id ELSE NEW.price_list_id END;
    IF TG_OP = 'UPDATE' OR said NOT IN ('draft', 'simulated') THEN
        RAISE EXCEPTION 'an item of a price list that is %: % refused', said, TG_OP
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$
"""
# What was agreed stays; only what was drawn of it, and what was left over, move on.
COMMITMENTS = """
CREATE FUNCTION billing_refuse_change_of_commitment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (OLD.state <> 'proposed' AND (
        NEW.organization_id, NEW.currency, NEW.kind, NEW.state, NEW.committed_micros, NEW.committed_unit_hours,
        NEW.discount_bps, NEW.starts_at, NEW.ends_at, NEW.note, NEW.proposed_by_id, NEW.decided_by_id, NEW.decided_at
    ) IS DISTINCT FROM (
        OLD.organization_id, OLD.currency, OLD.kind, OLD.state, OLD.committed_micros, OLD.committed_unit_hours,
        OLD.discount_bps, OLD.starts_at, OLD.ends_at, OLD.note, OLD.proposed_by_id, OLD.decided_by_id, OLD.decided_at
    )) THEN
        RAISE EXCEPTION 'commitment % is %: % refused', OLD.public_id, OLD.state, TG_OP
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""


def guarded(table, event, when="", function="billing_refuse_change"):
    """Let a function see every row of the table before this event."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE {event} ON {table} FOR EACH ROW {when} EXECUTE FUNCTION {function}()",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


def tiers_hold_together(table, name):
    """Let the database refuse tiers with a gap, an overlap or no beginning."""
    return migrations.RunSQL(
        f"ALTER TABLE {table} ADD CONSTRAINT {name} "
        "CHECK (billing_tiers_hold_together(model, micros_per_unit_hour, tiers))",
        f"ALTER TABLE {table} DROP CONSTRAINT {name}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0010_suppliers"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="PriceListItem",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.CharField(max_length=100)),
                ("name", models.CharField(max_length=200)),
                ("unit", models.CharField(choices=[("gpu", "GPU"), ("gib", "GiB")], default="gpu", max_length=8)),
                (
                    "model",
                    models.CharField(
                        choices=[
                            ("flat", "One price"),
                            ("graduated", "Graduated: each hour at the price of its tier"),
                            ("volume", "Volume: all hours at the price of the tier that the month reached"),
                        ],
                        default="flat",
                        max_length=12,
                    ),
                ),
                ("micros_per_unit_hour", models.BigIntegerField()),
                ("tiers", models.JSONField(default=list)),
                ("minimum_micros", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="SimulatedBill",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("before_micros", models.BigIntegerField()),
                ("after_micros", models.BigIntegerField()),
            ],
        ),
        migrations.AddField(
            model_name="priceversion",
            name="minimum_micros",
            field=models.BigIntegerField(default=0, help_text="what a month in which it is used costs at least"),
        ),
        migrations.AddField(
            model_name="priceversion",
            name="model",
            field=models.CharField(
                choices=[
                    ("flat", "One price"),
                    ("graduated", "Graduated: each hour at the price of its tier"),
                    ("volume", "Volume: all hours at the price of the tier that the month reached"),
                ],
                default="flat",
                max_length=12,
            ),
        ),
        migrations.AddField(
            model_name="priceversion",
            name="name",
            field=models.CharField(blank=True, max_length=200),
        ),
        migrations.AddField(
            model_name="priceversion",
            name="tiers",
            field=models.JSONField(default=list),
        ),
        migrations.CreateModel(
            name="Adjustment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="adj")),
                ("month", models.DateTimeField()),
                ("through", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField(default=0)),
                ("covered_unit_milliseconds", models.BigIntegerField(default=0, help_text="drawn from the commitment")),
                ("base_micros", models.BigIntegerField(default=0)),
                ("committed_micros", models.BigIntegerField(default=0, help_text="what the covered use costs")),
                (
                    "minimum_micros",
                    models.BigIntegerField(default=0, help_text="what was missing to the month's minimum"),
                ),
                ("rated_micros", models.BigIntegerField(default=0)),
                ("amount_micros", models.BigIntegerField(default=0)),
                ("evaluated_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("invoiced_micros", models.BigIntegerField(default=0)),
                ("invoiced_through", models.DateTimeField(blank=True, null=True)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="adjustments",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "price_version",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.priceversion",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AdjustmentPosting",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="apo")),
                ("through", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("rated_micros", models.BigIntegerField()),
                ("base_micros", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "adjustment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="postings", to="billing.adjustment"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Commitment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="cmt")),
                ("key", models.UUIDField(unique=True)),
                ("currency", models.CharField(max_length=3)),
                ("kind", models.CharField(choices=[("spend", "Spend"), ("hours", "Hours")], max_length=8)),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "Proposed"), ("agreed", "Agreed"), ("declined", "Declined")],
                        default="proposed",
                        max_length=12,
                    ),
                ),
                ("committed_micros", models.BigIntegerField()),
                ("committed_unit_hours", models.BigIntegerField(default=0)),
                ("discount_bps", models.PositiveIntegerField()),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("note", models.CharField(help_text="the contract in which it was agreed", max_length=200)),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("drawn_micros", models.BigIntegerField(default=0)),
                ("drawn_unit_milliseconds", models.BigIntegerField(default=0)),
                ("breakage_micros", models.BigIntegerField(default=0)),
                (
                    "decided_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="commitments",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "proposed_by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="adjustment",
            name="commitment",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="adjustments",
                to="billing.commitment",
            ),
        ),
        migrations.CreateModel(
            name="CommitmentPrice",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.CharField(max_length=100)),
                ("name", models.CharField(max_length=200)),
                ("unit", models.CharField(choices=[("gpu", "GPU"), ("gib", "GiB")], max_length=8)),
                (
                    "list_micros_per_unit_hour",
                    models.BigIntegerField(help_text="what the list said when it was proposed"),
                ),
                ("micros_per_unit_hour", models.BigIntegerField()),
                ("is_agreed", models.BooleanField(default=False)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                (
                    "commitment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="prices", to="billing.commitment"
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceAdjustment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("through", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("covered_unit_milliseconds", models.BigIntegerField()),
                ("base_micros", models.BigIntegerField()),
                ("committed_micros", models.BigIntegerField()),
                ("minimum_micros", models.BigIntegerField()),
                ("rated_micros", models.BigIntegerField()),
                ("before_micros", models.BigIntegerField(help_text="what earlier invoices had of it")),
                ("amount_micros", models.BigIntegerField()),
                (
                    "adjustment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="invoiced", to="billing.adjustment"
                    ),
                ),
                (
                    "line",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="adjustment", to="billing.invoiceline"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PriceList",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="lst")),
                ("key", models.UUIDField(unique=True)),
                ("currency", models.CharField(max_length=3)),
                ("number", models.PositiveIntegerField(help_text="counts the lists of a currency")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("draft", "Draft"),
                            ("simulated", "Simulated"),
                            ("approved", "Approved"),
                            ("scheduled", "Scheduled"),
                            ("withdrawn", "Withdrawn"),
                        ],
                        default="draft",
                        max_length=12,
                    ),
                ),
                ("note", models.CharField(blank=True, max_length=200)),
                ("drafted_at", models.DateTimeField()),
                ("simulated_at", models.DateTimeField(blank=True, null=True)),
                ("approved_at", models.DateTimeField(blank=True, null=True)),
                ("scheduled_at", models.DateTimeField(blank=True, null=True)),
                ("effective_from", models.DateTimeField(blank=True, null=True)),
                (
                    "approved_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "drafted_by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "edited_by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "restores",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.pricelist",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="priceversion",
            name="price_list",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="versions",
                to="billing.pricelist",
            ),
        ),
        migrations.AddIndex(
            model_name="priceversion",
            index=models.Index(
                condition=models.Q(
                    models.Q(("model", "flat"), _negated=True), ("minimum_micros__gt", 0), _connector="OR"
                ),
                fields=["id"],
                name="price_to_adjust",
            ),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("is_floating", False), models.Q(("minimum_micros", 0), ("model", "flat")), _connector="OR"
                ),
                name="price_that_floats_is_flat",
            ),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.CheckConstraint(
                condition=models.Q(("minimum_micros__gte", 0)), name="price_minimum_is_not_negative"
            ),
        ),
        migrations.AddField(
            model_name="pricelistitem",
            name="price_list",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="items",
                to="billing.pricelist",
            ),
        ),
        migrations.AddField(
            model_name="simulatedbill",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="simulatedbill",
            name="price_list",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="simulated_bills",
                to="billing.pricelist",
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustmentposting",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros", 0), _negated=True), name="adjustment_posting_moves_something"
            ),
        ),
        migrations.AddIndex(
            model_name="commitment",
            index=models.Index(fields=["organization", "-starts_at"], name="commitment_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "agreed"), _negated=True),
                    models.Q(
                        ("decided_by__isnull", False), models.Q(("decided_by", models.F("proposed_by")), _negated=True)
                    ),
                    _connector="OR",
                ),
                name="commitment_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("committed_micros__gt", 0),
                    ("discount_bps__lt", 10000),
                    ("starts_at__lt", models.F("ends_at")),
                    models.Q(
                        models.Q(("committed_unit_hours", 0), ("kind", "spend")),
                        models.Q(("committed_unit_hours__gt", 0), ("kind", "hours")),
                        _connector="OR",
                    ),
                ),
                name="commitment_promises_something",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(("starts_at__gte", models.F("proposed_at"))),
                name="commitment_never_begins_in_the_past",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("breakage_micros__gte", 0),
                    (
                        "committed_micros__gte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("drawn_micros"), "+", models.F("breakage_micros")
                        ),
                    ),
                    ("drawn_micros__gte", 0),
                    ("drawn_unit_milliseconds__gte", 0),
                ),
                name="commitment_is_never_drawn_below_zero",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind", "spend"),
                    (
                        "drawn_unit_milliseconds__lte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("committed_unit_hours"), "*", models.Value(3600000)
                        ),
                    ),
                    _connector="OR",
                ),
                name="commitment_gives_no_more_hours_than_it_has",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(("currency__regex", "^[A-Z]{3}$")), name="commitment_currency_is_an_iso_code"
            ),
        ),
        migrations.AddIndex(
            model_name="adjustment",
            index=models.Index(
                condition=models.Q(("amount_micros", models.F("invoiced_micros")), _negated=True),
                fields=["organization"],
                name="adjustment_to_invoice",
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("price_version__isnull", False)),
                fields=("organization", "price_version", "month"),
                name="adjustment_once_per_version_and_month",
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("price_version", None)), fields=("commitment",), name="breakage_once_per_commitment"
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(("price_version__isnull", False), ("commitment__isnull", False), _connector="OR"),
                name="adjustment_is_of_a_version_or_a_commitment",
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "amount_micros",
                        django.db.models.expressions.CombinedExpression(
                            models.F("rated_micros"), "-", models.F("base_micros")
                        ),
                    )
                ),
                name="adjustment_is_a_difference",
            ),
        ),
        migrations.AddConstraint(
            model_name="adjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("covered_unit_milliseconds__gte", 0),
                    ("covered_unit_milliseconds__lte", models.F("unit_milliseconds")),
                ),
                name="adjustment_covers_no_more_than_was_used",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitmentprice",
            constraint=models.UniqueConstraint(fields=("commitment", "sku"), name="commitment_prices_a_thing_once"),
        ),
        migrations.AddConstraint(
            model_name="commitmentprice",
            constraint=models.CheckConstraint(
                condition=models.Q(("micros_per_unit_hour__gt", 0)), name="commitment_price_is_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="commitmentprice",
            constraint=django.contrib.postgres.constraints.ExclusionConstraint(
                condition=models.Q(("is_agreed", True)),
                expressions=[
                    (
                        models.Func(
                            models.Func(
                                models.F("sku"),
                                models.F("organization_id"),
                                function="hashtextextended",
                                output_field=models.BigIntegerField(),
                            ),
                            models.Func(
                                models.F("sku"),
                                models.F("organization_id"),
                                function="hashtextextended",
                                output_field=models.BigIntegerField(),
                            ),
                            models.Value("[]"),
                            function="int8range",
                            output_field=models.TextField(),
                        ),
                        "&&",
                    ),
                    (
                        models.Func(
                            models.F("starts_at"),
                            models.F("ends_at"),
                            function="tstzrange",
                            output_field=models.TextField(),
                        ),
                        "&&",
                    ),
                ],
                name="commitment_covers_a_thing_once_at_a_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoiceadjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "amount_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.F("rated_micros"), "-", models.F("base_micros")
                            ),
                            "-",
                            models.F("before_micros"),
                        ),
                    )
                ),
                name="invoice_adjustment_is_a_difference",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.UniqueConstraint(
                fields=("currency", "number"), name="price_list_numbered_once_per_currency"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.UniqueConstraint(
                condition=models.Q(("effective_from__isnull", False)),
                fields=("currency", "effective_from"),
                name="price_list_one_per_moment",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("approved_by", None),
                    models.Q(
                        models.Q(("approved_by", models.F("drafted_by")), _negated=True),
                        models.Q(("approved_by", models.F("edited_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="price_list_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state__in", ["draft", "withdrawn"]),
                    models.Q(("simulated_at__isnull", False), ("state", "simulated")),
                    models.Q(
                        ("approved_by__isnull", False),
                        ("simulated_at__isnull", False),
                        ("state__in", ["approved", "scheduled"]),
                    ),
                    _connector="OR",
                ),
                name="price_list_is_simulated_then_approved",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("effective_from__gt", models.F("scheduled_at")),
                        ("effective_from__isnull", False),
                        ("state", "scheduled"),
                    ),
                    models.Q(models.Q(("state", "scheduled"), _negated=True), ("effective_from", None)),
                    _connector="OR",
                ),
                name="price_list_never_begins_in_the_past",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelist",
            constraint=models.CheckConstraint(
                condition=models.Q(("currency__regex", "^[A-Z]{3}$")), name="price_list_currency_is_an_iso_code"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricelistitem",
            constraint=models.UniqueConstraint(fields=("price_list", "sku"), name="price_list_names_a_thing_once"),
        ),
        migrations.AddConstraint(
            model_name="pricelistitem",
            constraint=models.CheckConstraint(
                condition=models.Q(("micros_per_unit_hour__gt", 0), ("minimum_micros__gte", 0)),
                name="price_list_item_is_positive",
            ),
        ),
        migrations.AddConstraint(
            model_name="simulatedbill",
            constraint=models.UniqueConstraint(
                fields=("price_list", "organization"), name="simulated_bill_once_per_customer"
            ),
        ),
        migrations.RunSQL(TIERS, "DROP FUNCTION billing_tiers_hold_together"),
        tiers_hold_together("billing_priceversion", "price_tiers_hold_together"),
        tiers_hold_together("billing_pricelistitem", "price_list_tiers_hold_together"),
        migrations.RunSQL(LISTS, "DROP FUNCTION billing_refuse_change_of_list"),
        guarded("billing_pricelist", "UPDATE OR DELETE", function="billing_refuse_change_of_list"),
        migrations.RunSQL(ITEMS, "DROP FUNCTION billing_refuse_item_of_final_list"),
        guarded("billing_pricelistitem", "INSERT OR UPDATE OR DELETE", function="billing_refuse_item_of_final_list"),
        migrations.RunSQL(COMMITMENTS, "DROP FUNCTION billing_refuse_change_of_commitment"),
        guarded("billing_commitment", "UPDATE OR DELETE", function="billing_refuse_change_of_commitment"),
        guarded("billing_commitmentprice", "UPDATE OR DELETE", "WHEN (OLD.is_agreed)"),
        guarded("billing_adjustmentposting", "UPDATE OR DELETE"),
        guarded("billing_invoiceadjustment", "UPDATE OR DELETE"),
    ]
