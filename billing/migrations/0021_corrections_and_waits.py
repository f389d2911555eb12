"""Ended use that is corrected, and invoices that would ask for nothing."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0020_guaranteed_hours"),
        ("marketplace", "0017_books_that_are_deleted"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="InvoiceWait",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("through", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="UsageCorrection",
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
                ("public_id", billing.public_ids.PublicIdField(prefix="ucr")),
                ("was_ended_at", models.DateTimeField(help_text="what was written when this was proposed")),
                ("ended_at", models.DateTimeField()),
                ("reason", models.CharField(max_length=200)),
                (
                    "amount_micros",
                    models.BigIntegerField(help_text="what was charged for it, below zero: given back", null=True),
                ),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="charge",
            name="charge_once_per_moment",
        ),
        migrations.RemoveConstraint(
            model_name="charge",
            name="charge_corrected_once",
        ),
        AddConstraintNotValid(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(("net_micros__gt", 0)), name="invoice_asks_for_something"
            ),
        ),
        migrations.AddField(
            model_name="invoicewait",
            name="organization",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="usagecorrection",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="usagecorrection",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="usagecorrection",
            name="span",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="corrections", to="billing.usagespan"
            ),
        ),
        migrations.AddField(
            model_name="charge",
            name="correction",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="charges",
                to="billing.usagecorrection",
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.UniqueConstraint(
                models.F("span"),
                models.F("through"),
                models.ExpressionWrapper(models.Q(("amount_micros__gt", 0)), output_field=models.BooleanField()),
                models.F("correction"),
                name="charge_once_per_moment",
                nulls_distinct=False,
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.UniqueConstraint(
                condition=models.Q(("amount_micros__lt", 0), ("correction", None)),
                fields=("span",),
                name="charge_corrected_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.UniqueConstraint(
                condition=models.Q(("correction__isnull", False)),
                fields=("correction",),
                name="charge_once_per_correction",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagecorrection",
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
                name="usage_correction_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagecorrection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at", models.F("was_ended_at")), _negated=True),
                    models.Q(("reason", ""), _negated=True),
                ),
                name="usage_correction_says_what_and_why",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagecorrection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("amount_micros__isnull", False), ("state", "approved")),
                    models.Q(("amount_micros", None), ("state__in", ["proposed", "declined"])),
                    _connector="OR",
                ),
                name="usage_correction_moves_money_with_its_approval",
            ),
        ),
        migrations.AddConstraint(
            model_name="usagecorrection",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "proposed")), fields=("span",), name="usage_correction_one_waits_per_span"
            ),
        ),
    ]
