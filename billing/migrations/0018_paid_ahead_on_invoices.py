"""What was paid ahead, on invoices once."""

import django.db.models.deletion
from django.db import migrations, models


# What was paid ahead before invoices knew of it, by its transfers: without hours, which nobody kept beside them.
BEFORE = """
INSERT INTO billing_prepaiditem (key, kind, organization_id, currency, resource_id, name, project, starts_at, ends_at,
    hours, kept_micros, amount_micros, promo_micros, at)
SELECT key, kind, organization_id, min(currency), split_part(key, ':', 2), min(reason), '', min(at), min(at), '[]', 0,
    sum(amount), coalesce(sum(amount) FILTER (WHERE paid_by = 'promo'), 0), min(at)
FROM (
    SELECT split_part(key, ':', 1) || ':' || split_part(key, ':', 2) AS key, payer.kind AS paid_by, organization_id,
        currency, reason, effective_at AS at, amount_micros AS amount, CASE WHEN key LIKE 'trade:%' THEN 'trade'
        WHEN reason LIKE 'Extension%' THEN 'extension' ELSE 'reservation' END AS kind
    FROM billing_transfer transfer JOIN billing_account payer ON payer.id = transfer.source_id
    WHERE key LIKE 'prepay:%' OR key LIKE 'trade:%'
    UNION ALL
    SELECT regexp_replace(key, ':[^:]*:[^:]*$', ''), payee.kind, organization_id, currency, reason, effective_at,
        -amount_micros, 'cancelled'
    FROM billing_transfer transfer JOIN billing_account payee ON payee.id = transfer.target_id
    WHERE key LIKE 'unpay:%'
) leg GROUP BY key, kind, organization_id
"""


def guarded(table):
    """Let what was written once stay as it is."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_keeps BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW "
        "EXECUTE FUNCTION billing_refuse_change()",
        f"DROP TRIGGER {table}_keeps ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0017_daily_revenue"),
        ("marketplace", "0010_reservations_and_resale"),
    ]

    operations = [
        migrations.CreateModel(
            name="PrepaidItem",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=200, unique=True)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("reservation", "Reservation"),
                            ("extension", "Extension"),
                            ("trade", "Trade"),
                            ("cancelled", "Cancelled"),
                            ("shortfall", "Shortfall"),
                            ("resold", "Resold"),
                        ],
                        max_length=12,
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("resource_id", models.CharField(max_length=64)),
                ("name", models.CharField(max_length=200)),
                ("project", models.CharField(blank=True, max_length=32)),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("hours", models.JSONField(default=list)),
                (
                    "kept_micros",
                    models.BigIntegerField(default=0, help_text="of what the hours had cost, what is not given back"),
                ),
                ("amount_micros", models.BigIntegerField()),
                ("promo_micros", models.BigIntegerField(help_text="of that, promotional credit; of the same sign")),
                ("at", models.DateTimeField(help_text="when it was paid, or given back")),
                (
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="prepaid_items",
                        to="marketplace.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="InvoicePrepaid",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "line",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="prepaid", to="billing.invoiceline"
                    ),
                ),
                (
                    "item",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="invoiced", to="billing.prepaiditem"
                    ),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name="prepaiditem",
            index=models.Index(fields=["organization", "at"], name="prepaid_of_an_organization"),
        ),
        migrations.AddConstraint(
            model_name="prepaiditem",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gt", 0),
                        ("kind__in", ("reservation", "extension", "trade")),
                        ("promo_micros__gte", 0),
                        ("kept_micros", 0),
                        ("promo_micros__lte", models.F("amount_micros")),
                    ),
                    models.Q(
                        models.Q(("kind__in", ("reservation", "extension", "trade")), _negated=True),
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
        guarded("billing_prepaiditem"),
        guarded("billing_invoiceprepaid"),
        migrations.RunSQL(BEFORE, migrations.RunSQL.noop),
    ]
