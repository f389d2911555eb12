"""A scheduled price list that two people withdraw before its moment, and prices that were published and never hold."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

# As it was, but for the one move that two people make.
LISTS = """
CREATE OR REPLACE FUNCTION billing_refuse_change_of_list() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (OLD.state = 'scheduled' AND NOT (
            NEW.state = 'withdrawn' AND to_jsonb(NEW) - '{state,effective_from}'::text[]
                IS NOT DISTINCT FROM to_jsonb(OLD) - '{state,effective_from}'::text[]
            AND EXISTS (SELECT FROM billing_pricewithdrawal WHERE price_list_id = OLD.id AND state = 'approved')
        ))
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
LISTS_BEFORE = """
CREATE OR REPLACE FUNCTION billing_refuse_change_of_list() RETURNS trigger LANGUAGE plpgsql AS $$
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
# A price says what it says for ever; that it was withdrawn, before it held, is written once.
PRICES = """
CREATE FUNCTION billing_refuse_change_of_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR OLD.withdrawn_at IS NOT NULL OR NEW.withdrawn_at IS NULL
        OR to_jsonb(NEW) - 'withdrawn_at' IS DISTINCT FROM to_jsonb(OLD) - 'withdrawn_at' THEN
        RAISE EXCEPTION 'billing_priceversion is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
GUARD = """
DROP TRIGGER billing_priceversion_is_append_only ON billing_priceversion;
CREATE TRIGGER billing_priceversion_is_append_only BEFORE UPDATE OR DELETE ON billing_priceversion
FOR EACH ROW EXECUTE FUNCTION {function}()
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0028_outcome_given_back"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="PriceWithdrawal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
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
                ("public_id", billing.public_ids.PublicIdField(prefix="pwd")),
                ("effective_from", models.DateTimeField(help_text="when the list would have begun")),
                ("reason", models.CharField(max_length=200)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="priceversion",
            name="price_one_per_moment",
        ),
        migrations.AddField(
            model_name="priceversion",
            name="withdrawn_at",
            field=models.DateTimeField(blank=True, help_text="with its list, before it ever held", null=True),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.UniqueConstraint(
                condition=models.Q(("withdrawn_at", None)),
                fields=("sku", "currency", "effective_from"),
                name="price_one_per_moment",
            ),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("withdrawn_at", None),
                    models.Q(
                        ("is_floating", False),
                        ("price_list__isnull", False),
                        ("withdrawn_at__lt", models.F("effective_from")),
                    ),
                    _connector="OR",
                ),
                name="price_is_withdrawn_before_it_holds_or_never",
            ),
        ),
        migrations.AddField(
            model_name="pricewithdrawal",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="pricewithdrawal",
            name="price_list",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="withdrawals",
                to="billing.pricelist",
            ),
        ),
        migrations.AddField(
            model_name="pricewithdrawal",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddIndex(
            model_name="pricewithdrawal",
            index=models.Index(fields=["price_list", "-id"], name="price_withdrawal_by_list"),
        ),
        migrations.AddConstraint(
            model_name="pricewithdrawal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_by", None), ("state", "proposed")),
                    models.Q(("decided_by__isnull", False), ("state", "declined")),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("state", "approved"),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="price_withdrawal_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricewithdrawal",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="price_withdrawal_says_why"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricewithdrawal",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "proposed")),
                fields=("price_list",),
                name="price_withdrawal_one_waits_per_list",
            ),
        ),
        migrations.RunSQL(LISTS, LISTS_BEFORE),
        migrations.RunSQL(PRICES, "DROP FUNCTION billing_refuse_change_of_price"),
        migrations.RunSQL(
            GUARD.format(function="billing_refuse_change_of_price"), GUARD.format(function="billing_refuse_change")
        ),
    ]
