"""What is lent, reserves told apart by earning, and what customers are told of cards and credit."""

import django.db.models.deletion
from django.db import migrations, models


# Of reserves that had less than their earnings held back: what is released next went first.
TAKEN = """
UPDATE billing_earning SET taken_micros = told.taken FROM (
    SELECT held.id, least(reserve_micros, greatest(0, total - balance_micros - before)) AS taken
    FROM (
        SELECT id, supplier_id, currency, reserve_micros,
               sum(reserve_micros) OVER (PARTITION BY supplier_id, currency) AS total,
               sum(reserve_micros) OVER (PARTITION BY supplier_id, currency ORDER BY release_at, id) - reserve_micros
                   AS before
        FROM billing_earning WHERE released_at IS NULL AND reserve_micros > 0
    ) held JOIN billing_account account ON account.organization_id = held.supplier_id
        AND account.currency = held.currency AND account.kind = 'reserve'
) told WHERE told.id = billing_earning.id AND told.taken > 0
"""


def kept(*now: str, before: tuple[str, ...]):
    """Let nothing of an earning change but these."""

    def create(names):
        said = ", ".join(f"'{name}'" for name in names)
        return (
            "CREATE TRIGGER billing_earning_keeps BEFORE UPDATE OR DELETE ON billing_earning FOR EACH ROW "
            f"EXECUTE FUNCTION billing_refuse_change_but({said})"
        )

    drop = "DROP TRIGGER billing_earning_keeps ON billing_earning"
    return [migrations.RunSQL(f"{drop}; {create(now)}", f"{drop}; {create(before)}")]


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0021_corrections_and_waits"),
        ("marketplace", "0017_books_that_are_deleted"),
    ]

    operations = [
        migrations.CreateModel(
            name="LentUse",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=120, unique=True)),
                ("through", models.DateTimeField()),
                ("unit_milliseconds", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField(help_text="what the holders of the reservations were paid")),
            ],
        ),
        migrations.AddField(
            model_name="automatictopup",
            name="paused_code",
            field=models.CharField(blank=True, help_text="the processor's word for why", max_length=64),
        ),
        migrations.AddField(
            model_name="creditgrant",
            name="told_at",
            field=models.DateTimeField(blank=True, help_text="when its end was told to the customer", null=True),
        ),
        migrations.AddField(
            model_name="earning",
            name="taken_micros",
            field=models.BigIntegerField(
                db_default=0, help_text="of its reserve, what service credits and corrections took"
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
                    ("payment_needs_you", "Payment needs the customer"),
                    ("top_up_paused", "Automatic top-up paused"),
                    ("credit_expires", "Promotional credit expires"),
                ],
                max_length=24,
            ),
        ),
        migrations.AddIndex(
            model_name="creditgrant",
            index=models.Index(
                condition=models.Q(("left_micros__gt", 0), ("told_at", None)),
                fields=["expires_at"],
                name="credit_grant_to_tell",
            ),
        ),
        *kept("released_at", "released_micros", "taken_micros", before=("released_at", "released_micros")),
        migrations.RunSQL(TAKEN, migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="earning",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("taken_micros", 0),
                    models.Q(("taken_micros__gt", 0), ("taken_micros__lte", models.F("reserve_micros"))),
                    _connector="OR",
                ),
                name="earning_loses_no_more_than_its_reserve",
            ),
        ),
        migrations.AddField(
            model_name="lentuse",
            name="span",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="lent_uses", to="billing.usagespan"
            ),
        ),
        migrations.AddConstraint(
            model_name="lentuse",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0), ("unit_milliseconds__gte", 0)),
                name="lent_use_paid_somebody",
            ),
        ),
    ]
