"""What becomes of unpaid invoices, bank transfers and disputes."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


# The table of steps, and what was issued before it: due a week from now.
STEPS = """
INSERT INTO billing_dunningstep (day_offset, action, is_active) VALUES
    (-7, 'charge', true), (-3, 'mail', true), (0, 'charge', true), (1, 'mail', true), (3, 'charge', true),
    (7, 'charge', true), (7, 'restrict', true), (14, 'charge', true), (14, 'stop_spot', true),
    (21, 'stop_on_demand', true), (30, 'mail', true), (60, 'write_off', true)
"""
SEEDS = (
    STEPS
    + """;
INSERT INTO billing_collection
    (invoice_id, organization_id, state, state_since, due_at, look_at, written_off_micros, recovered_micros)
SELECT id, organization_id, 'open', now(), now() + interval '7 days', now(), 0, 0
FROM billing_invoice WHERE kind = 'invoice' AND due_micros > 0
"""
)


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0015_credit"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="BankTransfer",
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
                ("public_id", billing.public_ids.PublicIdField(prefix="btr")),
                ("direction", models.CharField(choices=[("in", "came in"), ("out", "goes back")], max_length=3)),
                ("amount_micros", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                ("bank_reference", models.CharField(max_length=64)),
                ("value_on", models.DateField()),
                ("note", models.CharField(blank=True, max_length=200)),
            ],
        ),
        migrations.CreateModel(
            name="Collection",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("past_due", "past due"),
                            ("paid", "paid"),
                            ("uncollectible", "uncollectible"),
                        ],
                        default="open",
                        max_length=16,
                    ),
                ),
                ("state_since", models.DateTimeField()),
                ("due_at", models.DateTimeField()),
                ("look_at", models.DateTimeField(null=True)),
                ("written_off_micros", models.BigIntegerField(default=0)),
                (
                    "recovered_micros",
                    models.BigIntegerField(default=0, help_text="of what was written off, what came after all"),
                ),
            ],
        ),
        migrations.CreateModel(
            name="DunningEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("done", "done"),
                            ("ordered", "charge ordered"),
                            ("no_card", "no card saved"),
                            ("no_processor", "no card processor"),
                            ("bad_amount", "amount not payable by card"),
                        ],
                        max_length=16,
                    ),
                ),
                ("left_micros", models.BigIntegerField(help_text="what was left of the invoice then")),
            ],
        ),
        migrations.CreateModel(
            name="DunningStep",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day_offset", models.SmallIntegerField()),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("charge", "charge the saved card"),
                            ("mail", "remind by e-mail"),
                            ("restrict", "let nothing new start"),
                            ("stop_spot", "stop what runs on spot"),
                            ("stop_on_demand", "stop everything that runs"),
                            ("write_off", "write it off"),
                        ],
                        max_length=16,
                    ),
                ),
                ("is_active", models.BooleanField(default=True)),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceDispute",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="idp")),
                ("key", models.UUIDField(unique=True)),
                ("net_micros", models.BigIntegerField()),
                ("gross_micros", models.BigIntegerField()),
                ("reason", models.CharField(max_length=500)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("upheld", "upheld"),
                            ("rejected", "rejected"),
                            ("withdrawn", "withdrawn"),
                        ],
                        default="open",
                        max_length=10,
                    ),
                ),
                ("opened_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                ("answer", models.CharField(blank=True, max_length=500)),
            ],
        ),
        migrations.CreateModel(
            name="InvoicePayment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("transfer_key", models.CharField(max_length=200, unique=True)),
                ("amount_micros", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="account",
            name="sanction",
            field=models.CharField(
                blank=True, help_text="of a receivable: what unpaid invoices forbid, see collecting", max_length=16
            ),
        ),
        migrations.AlterField(
            model_name="notice",
            name="kind",
            field=models.CharField(
                choices=[
                    ("runway_week", "Money for a week"),
                    ("runway_day", "Money for a day"),
                    ("runway_hour", "Money for an hour"),
                    ("used_up", "Money used up"),
                    ("volumes_kept", "Volumes kept unpaid"),
                    ("volumes_soon", "Volumes to be deleted soon"),
                    ("volumes_deleted", "Volumes deleted"),
                    ("due_soon", "Invoice due soon"),
                    ("past_due", "Invoice past due"),
                    ("due_restricted", "Nothing new starts"),
                    ("due_spot_stopped", "Spot stopped"),
                    ("due_stopped", "Everything stopped"),
                    ("due_written_off", "Invoice written off"),
                    ("charge_failed", "Charge failed"),
                    ("charge_needs_you", "Charge needs the customer"),
                    ("dispute_upheld", "Dispute upheld"),
                    ("dispute_rejected", "Dispute rejected"),
                ],
                max_length=24,
            ),
        ),
        migrations.AddIndex(
            model_name="account",
            index=models.Index(
                condition=models.Q(("sanction", ""), _negated=True), fields=["sanction"], name="account_sanctioned"
            ),
        ),
        migrations.AddConstraint(
            model_name="account",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("sanction", ""),
                    models.Q(("kind", "receivable"), ("sanction__in", ["restrict", "stop_spot", "stop_on_demand"])),
                    _connector="OR",
                ),
                name="account_is_sanctioned_for_what_is_owed_only",
            ),
        ),
        migrations.AddField(
            model_name="banktransfer",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="banktransfer",
            name="invoice",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="bank_transfers",
                to="billing.invoice",
            ),
        ),
        migrations.AddField(
            model_name="banktransfer",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="bank_transfers",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="banktransfer",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="collection",
            name="invoice",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="collection", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="collection",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="collections", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="dunningevent",
            name="invoice",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dunning_events",
                to="billing.invoice",
            ),
        ),
        migrations.AddField(
            model_name="dunningevent",
            name="payment",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dunning_event",
                to="billing.payment",
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningstep",
            constraint=models.UniqueConstraint(
                fields=("day_offset", "action"), name="dunning_step_once_per_day_and_action"
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningstep",
            constraint=models.CheckConstraint(
                condition=models.Q(("action__in", ["charge", "mail"]), ("day_offset__gt", 0), _connector="OR"),
                name="dunning_is_harmless_until_an_invoice_is_past_due",
            ),
        ),
        migrations.AddField(
            model_name="dunningevent",
            name="step",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="events",
                to="billing.dunningstep",
            ),
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="disputes", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="line",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="disputes",
                to="billing.invoiceline",
            ),
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="opened_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="proposal",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="dispute",
                to="billing.creditproposal",
            ),
        ),
        migrations.AddField(
            model_name="invoicepayment",
            name="invoice",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="named_payments",
                to="billing.invoice",
            ),
        ),
        migrations.AddIndex(
            model_name="banktransfer",
            index=models.Index(fields=["organization", "-id"], name="bank_transfer_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="banktransfer",
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
                name="bank_transfer_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="banktransfer",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="bank_transfer_moves_something"
            ),
        ),
        migrations.AddConstraint(
            model_name="banktransfer",
            constraint=models.CheckConstraint(
                condition=models.Q(("bank_reference", ""), _negated=True), name="bank_transfer_stands_on_a_statement"
            ),
        ),
        migrations.AddConstraint(
            model_name="banktransfer",
            constraint=models.CheckConstraint(
                condition=models.Q(("direction", "in"), ("invoice", None), _connector="OR"),
                name="bank_transfer_that_goes_back_pays_no_invoice",
            ),
        ),
        migrations.AddConstraint(
            model_name="banktransfer",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "declined"), _negated=True),
                fields=("bank_reference",),
                name="bank_transfer_once_per_line_of_the_bank",
            ),
        ),
        migrations.AddIndex(
            model_name="collection",
            index=models.Index(
                condition=models.Q(("look_at__isnull", False)), fields=["look_at"], name="collection_to_look_at"
            ),
        ),
        migrations.AddIndex(
            model_name="collection",
            index=models.Index(fields=["organization", "state"], name="collection_by_organization"),
        ),
        migrations.AddConstraint(
            model_name="collection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("look_at__isnull", False), ("state__in", ["open", "past_due"])),
                    models.Q(("look_at", None), ("state__in", ["paid", "uncollectible"])),
                    _connector="OR",
                ),
                name="collection_is_looked_at_while_unpaid",
            ),
        ),
        migrations.AddConstraint(
            model_name="collection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("recovered_micros__gte", 0), ("written_off_micros__gte", models.F("recovered_micros"))
                ),
                name="collection_recovers_no_more_than_it_wrote_off",
            ),
        ),
        migrations.AddConstraint(
            model_name="collection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "uncollectible"), _negated=True), ("written_off_micros__gt", 0), _connector="OR"
                ),
                name="collection_is_uncollectible_once_written_off",
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningevent",
            constraint=models.UniqueConstraint(fields=("invoice", "step"), name="dunning_step_once_per_invoice"),
        ),
        migrations.AddConstraint(
            model_name="dunningevent",
            constraint=models.CheckConstraint(
                condition=models.Q(("left_micros__gt", 0)), name="dunning_only_while_something_is_left"
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningevent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("outcome", "ordered"), ("payment__isnull", False)),
                    models.Q(models.Q(("outcome", "ordered"), _negated=True), ("payment", None)),
                    _connector="OR",
                ),
                name="dunning_charge_is_a_payment",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicedispute",
            constraint=models.CheckConstraint(
                condition=models.Q(("gross_micros__gte", models.F("net_micros")), ("net_micros__gt", 0)),
                name="dispute_is_about_something",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicedispute",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_by", None), ("proposal", None), ("state", "open")),
                    models.Q(("decided_by__isnull", False), ("proposal__isnull", False), ("state", "upheld")),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("proposal", None),
                        ("state", "rejected"),
                        models.Q(("answer", ""), _negated=True),
                    ),
                    models.Q(("decided_by__isnull", False), ("proposal", None), ("state", "withdrawn")),
                    _connector="OR",
                ),
                name="dispute_is_open_or_decided_with_its_reason",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicedispute",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "open")),
                fields=("invoice", "line"),
                name="dispute_open_once_per_line",
                nulls_distinct=False,
            ),
        ),
        migrations.AddIndex(
            model_name="invoicepayment",
            index=models.Index(fields=["invoice"], name="invoice_payment_by_invoice"),
        ),
        migrations.AddConstraint(
            model_name="invoicepayment",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="invoice_payment_pays_something"
            ),
        ),
        migrations.RunSQL(SEEDS, migrations.RunSQL.noop),
    ]
