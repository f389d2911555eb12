"""Invoices: written once, numbered without gaps, and what a span has on them."""

import billing.public_ids
import django.db.models.deletion
import django.db.models.expressions
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models


SERIES = """
CREATE FUNCTION billing_refuse_renumbering() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.prefix <> OLD.prefix OR NEW.kind <> OLD.kind OR NEW.next_number < OLD.next_number THEN
        RAISE EXCEPTION 'the series % keeps its numbers: % refused', OLD.prefix, TG_OP
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


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0007_paid_ahead"),
        ("marketplace", "0008_spot"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="transfer",
            index=models.Index(
                condition=models.Q(("key__startswith", "charge:"), _negated=True),
                fields=["source"],
                name="transfer_other_than_for_use",
            ),
        ),
        migrations.CreateModel(
            name="BillingDetails",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("legal_name", models.CharField(max_length=200)),
                ("address", models.CharField(help_text="lines of an address, without the country", max_length=400)),
                ("country", models.CharField(max_length=2)),
                ("tax_id", models.CharField(blank=True, max_length=32)),
                (
                    "email",
                    models.EmailField(
                        blank=True, help_text="where invoices go; empty: to owners and billing members", max_length=254
                    ),
                ),
                (
                    "language",
                    models.CharField(choices=[("en", "English"), ("ja", "Japanese")], default="en", max_length=2),
                ),
                ("changed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "verbose_name_plural": "billing details",
            },
        ),
        migrations.CreateModel(
            name="CreditProposal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="cpr")),
                ("net_micros", models.BigIntegerField()),
                ("reason", models.CharField(max_length=200)),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "proposed"), ("issued", "issued"), ("declined", "declined")],
                        default="proposed",
                        max_length=8,
                    ),
                ),
                ("key", models.UUIDField(unique=True)),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Invoice",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="ivc")),
                ("number", models.CharField(max_length=32, unique=True)),
                ("sequence", models.BigIntegerField()),
                (
                    "kind",
                    models.CharField(choices=[("invoice", "Invoice"), ("credit_note", "Credit note")], max_length=12),
                ),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("issued_at", models.DateTimeField()),
                ("currency", models.CharField(max_length=3)),
                ("language", models.CharField(max_length=2)),
                ("seller", models.JSONField(help_text="name, address, country and tax_id as they were")),
                ("customer", models.JSONField(help_text="name, address, country and tax_id as they were")),
                ("exact_micros", models.BigIntegerField()),
                ("exact_promo_micros", models.BigIntegerField()),
                ("subtotal_micros", models.BigIntegerField()),
                ("promo_micros", models.BigIntegerField()),
                ("net_micros", models.BigIntegerField()),
                (
                    "tax_treatment",
                    models.CharField(
                        choices=[
                            ("domestic", "Taxed in the seller's country"),
                            ("destination", "Taxed in the customer's country"),
                            ("reverse_charge", "Reverse charge: the customer accounts for the tax"),
                            ("outside", "Outside of the scope of the seller's tax"),
                        ],
                        max_length=16,
                    ),
                ),
                ("tax_country", models.CharField(blank=True, max_length=2)),
                ("tax_name", models.CharField(blank=True, max_length=40)),
                ("tax_rate_bps", models.PositiveIntegerField()),
                ("tax_micros", models.BigIntegerField()),
                ("total_micros", models.BigIntegerField()),
                ("paid_micros", models.BigIntegerField(help_text="already paid from the balance at its issue")),
                ("due_micros", models.BigIntegerField()),
                (
                    "older_due_micros",
                    models.BigIntegerField(default=0, help_text="what was owed for earlier invoices at its issue"),
                ),
                ("reason", models.CharField(blank=True, max_length=200)),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceItem",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceLine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=240)),
                ("resource_id", models.CharField(blank=True, max_length=64)),
                ("resource_name", models.CharField(max_length=200)),
                ("project", models.CharField(blank=True, max_length=32)),
                (
                    "meter",
                    models.CharField(blank=True, choices=[("gpu", "GPUs"), ("volume", "Volumes")], max_length=16),
                ),
                ("unit", models.CharField(blank=True, choices=[("gpu", "GPU"), ("gib", "GiB")], max_length=8)),
                ("market", models.CharField(blank=True, max_length=16)),
                (
                    "is_late",
                    models.BooleanField(
                        default=False, help_text="use of an earlier period that became known afterwards"
                    ),
                ),
                ("micros_per_unit_hour", models.BigIntegerField(help_text="null where the price floats", null=True)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("exact_micros", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceMail",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("tries", models.PositiveSmallIntegerField(default=0)),
                ("next_try_at", models.DateTimeField()),
                ("sent_at", models.DateTimeField(null=True)),
            ],
            options={
                "verbose_name_plural": "invoice mails",
            },
        ),
        migrations.CreateModel(
            name="InvoiceSeries",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(choices=[("invoice", "Invoice"), ("credit_note", "Credit note")], max_length=12),
                ),
                ("prefix", models.CharField(max_length=12)),
                ("next_number", models.BigIntegerField(default=1)),
            ],
            options={
                "verbose_name_plural": "invoice series",
            },
        ),
        migrations.AddField(
            model_name="usagespan",
            name="invoiced_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="usagespan",
            name="invoiced_through",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(
                condition=models.Q(
                    ("ended_at", None),
                    ("invoiced_through", None),
                    models.Q(("invoiced_through", models.F("ended_at")), _negated=True),
                    _connector="OR",
                ),
                fields=["organization"],
                name="usage_span_to_invoice",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagespan",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("invoiced_micros", 0), ("invoiced_through", None)),
                    models.Q(("invoiced_micros__gte", 0), ("invoiced_through__gte", models.F("started_at"))),
                    _connector="OR",
                ),
                name="usage_span_invoiced_from_its_start",
            ),
        ),
        migrations.AddField(
            model_name="billingdetails",
            name="organization",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="billing_details",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="creditproposal",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="creditproposal",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="invoice",
            name="credited",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="credit_notes",
                to="billing.invoice",
            ),
        ),
        migrations.AddField(
            model_name="invoice",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="invoices", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="creditproposal",
            name="credit_note",
            field=models.OneToOneField(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="proposal", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="creditproposal",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="credit_proposals", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoiceitem",
            name="span",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="invoice_items",
                to="billing.usagespan",
            ),
        ),
        migrations.AddField(
            model_name="invoiceline",
            name="invoice",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name="lines", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoiceline",
            name="price_version",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="billing.priceversion",
            ),
        ),
        migrations.AddField(
            model_name="invoiceitem",
            name="line",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="items", to="billing.invoiceline"
            ),
        ),
        migrations.AddField(
            model_name="invoicemail",
            name="invoice",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="mail", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoiceseries",
            name="seller",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="invoice_series",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="invoice",
            name="series",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="invoices",
                to="billing.invoiceseries",
            ),
        ),
        migrations.AddConstraint(
            model_name="billingdetails",
            constraint=models.CheckConstraint(
                condition=models.Q(("country__regex", "^[A-Z]{2}$")), name="billing_country_is_an_iso_code"
            ),
        ),
        migrations.AddConstraint(
            model_name="billingdetails",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("legal_name", ""), _negated=True), models.Q(("address", ""), _negated=True)
                ),
                name="billing_details_say_who",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditproposal",
            constraint=models.CheckConstraint(
                condition=models.Q(("net_micros__gt", 0)), name="credit_proposal_gives_something"
            ),
        ),
        migrations.AddConstraint(
            model_name="creditproposal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "issued"), _negated=True),
                    models.Q(
                        ("decided_by__isnull", False), models.Q(("decided_by", models.F("proposed_by")), _negated=True)
                    ),
                    _connector="OR",
                ),
                name="credit_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditproposal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("credit_note__isnull", False), ("state", "issued")),
                    models.Q(("credit_note", None), ("state__in", ["proposed", "declined"])),
                    _connector="OR",
                ),
                name="credit_is_issued_with_its_note",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoiceline",
            constraint=models.UniqueConstraint(fields=("invoice", "key"), name="invoice_line_once_per_key"),
        ),
        migrations.AddConstraint(
            model_name="invoiceitem",
            constraint=models.UniqueConstraint(fields=("span", "line"), name="invoice_item_once_per_line"),
        ),
        migrations.AddIndex(
            model_name="invoicemail",
            index=models.Index(
                condition=models.Q(("sent_at", None)), fields=["next_try_at"], name="invoice_mail_to_send"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoiceseries",
            constraint=models.UniqueConstraint(fields=("prefix",), name="invoice_prefix_once"),
        ),
        migrations.AddConstraint(
            model_name="invoiceseries",
            constraint=models.UniqueConstraint(fields=("kind",), name="invoice_series_one_per_kind"),
        ),
        migrations.AddConstraint(
            model_name="invoiceseries",
            constraint=models.CheckConstraint(
                condition=models.Q(("next_number__gte", 1)), name="invoice_numbers_begin_at_one"
            ),
        ),
        migrations.AddIndex(
            model_name="invoice",
            index=models.Index(fields=["organization", "-id"], name="invoice_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.UniqueConstraint(fields=("series", "sequence"), name="invoice_number_once_per_series"),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "invoice")),
                fields=("organization", "period_end"),
                name="invoice_once_per_period",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "due_micros",
                        django.db.models.expressions.CombinedExpression(
                            models.F("total_micros"), "-", models.F("paid_micros")
                        ),
                    ),
                    (
                        "net_micros",
                        django.db.models.expressions.CombinedExpression(
                            models.F("subtotal_micros"), "-", models.F("promo_micros")
                        ),
                    ),
                    (
                        "total_micros",
                        django.db.models.expressions.CombinedExpression(
                            models.F("net_micros"), "+", models.F("tax_micros")
                        ),
                    ),
                ),
                name="invoice_adds_up",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("due_micros__gte", 0), ("net_micros__gte", 0), ("older_due_micros__gte", 0), ("tax_micros__gte", 0)
                ),
                name="invoice_asks_for_nothing_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("credited", None), ("kind", "invoice"), ("reason", "")),
                    models.Q(
                        ("credited__isnull", False),
                        ("due_micros", 0),
                        ("kind", "credit_note"),
                        ("net_micros__gt", 0),
                        models.Q(("reason", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="credit_note_says_what_and_why",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(("period_start__lte", models.F("period_end"))), name="invoice_period_runs_forward"
            ),
        ),
        guarded("billing_invoice", "UPDATE OR DELETE"),
        guarded("billing_invoiceline", "UPDATE OR DELETE"),
        guarded("billing_invoiceitem", "UPDATE OR DELETE"),
        guarded("billing_creditproposal", "UPDATE OR DELETE", "WHEN (OLD.state <> 'proposed')"),
        migrations.RunSQL(SERIES, "DROP FUNCTION billing_refuse_renumbering"),
        guarded("billing_invoiceseries", "UPDATE OR DELETE", function="billing_refuse_renumbering"),
    ]
