"""Charges of many spans at once: a charge says what paid it, transfers are an organization's, and rows change in place."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models


# Until now each charge was posted alone, and its transfers alone said what paid it.
WHAT_PAID = """
ALTER TABLE billing_charge DISABLE TRIGGER billing_charge_is_append_only;
UPDATE billing_charge SET posting = billing_charge.key, promo_micros = sign * promo, cash_micros = sign * cash,
    owed_micros = sign * (abs(amount_micros) - promo - cash)
FROM (
    SELECT charge.id, sign(charge.amount_micros)::bigint AS sign,
           coalesce(sum(transfer.amount_micros) FILTER (WHERE account.kind = 'promo'), 0)::bigint AS promo,
           coalesce(sum(transfer.amount_micros) FILTER (WHERE account.kind = 'cash'), 0)::bigint AS cash
    FROM billing_charge charge
    LEFT JOIN billing_transfer transfer ON (transfer.key LIKE 'charge:%' OR transfer.key LIKE 'refund:%')
        AND regexp_replace(transfer.key, ':[^:]*$', '') = charge.key
    LEFT JOIN billing_account account ON account.organization_id IS NOT NULL
        AND account.id IN (transfer.source_id, transfer.target_id)
    GROUP BY charge.id
) paid
WHERE paid.id = billing_charge.id;
ALTER TABLE billing_charge ENABLE TRIGGER billing_charge_is_append_only;
"""

ONE_CURRENCY_EACH = """
CREATE FUNCTION billing_refuse_exchanges() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE exchange text;
BEGIN
    SELECT moved.key INTO exchange FROM moved
    JOIN billing_account source ON source.id = moved.source_id
    JOIN billing_account target ON target.id = moved.target_id
    WHERE source.currency <> target.currency LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'transfer % changes currency', exchange USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER billing_transfers_in_one_currency AFTER INSERT ON billing_transfer
REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_exchanges();
DROP TRIGGER billing_transfer_in_one_currency ON billing_transfer;
DROP FUNCTION billing_refuse_exchange;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0013_payouts"),
        ("marketplace", "0010_reservations_and_resale"),
    ]

    operations = [
        # Taken away and made again below: with the index of its column Django would drop this one too.
        migrations.RemoveConstraint(
            model_name="charge",
            name="charge_corrected_once",
        ),
        migrations.RemoveConstraint(
            model_name="charge",
            name="charge_once_per_moment",
        ),
        migrations.RemoveIndex(
            model_name="usagespan",
            name="usage_span_to_charge",
        ),
        migrations.RemoveIndex(
            model_name="usagespan",
            name="usage_span_by_price",
        ),
        migrations.RemoveField(
            model_name="charge",
            name="public_id",
        ),
        migrations.AddField(
            model_name="charge",
            name="cash_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="charge",
            name="owed_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="charge",
            name="posting",
            field=models.CharField(
                default="", help_text="the key of the first charge that was posted with it", max_length=120
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="charge",
            name="promo_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="usagespan",
            name="is_charged",
            field=models.GeneratedField(
                db_persist=True,
                expression=models.ExpressionWrapper(
                    models.Q(("charged_through__gte", models.F("ended_at")), ("ended_at__isnull", False)),
                    output_field=models.BooleanField(),
                ),
                output_field=models.BooleanField(),
            ),
        ),
        migrations.RunSQL(WHAT_PAID, migrations.RunSQL.noop),
        migrations.RunSQL(ONE_CURRENCY_EACH),
        # Pages with room, in which a row that is charged again stays.
        migrations.RunSQL(
            "ALTER TABLE billing_usagespan SET (fillfactor = 85)", "ALTER TABLE billing_usagespan RESET (fillfactor)"
        ),
        migrations.AlterField(
            model_name="charge",
            name="key",
            field=models.CharField(max_length=120),
        ),
        migrations.AlterField(
            model_name="charge",
            name="span",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="charges",
                to="billing.usagespan",
            ),
        ),
        migrations.AddIndex(
            model_name="charge",
            index=models.Index(condition=models.Q(("owed_micros__gt", 0)), fields=["posting"], name="charge_owed"),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(fields=["price_version", "ended_at"], name="usage_span_by_price"),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(
                condition=models.Q(("is_charged", False)), fields=["organization"], name="usage_span_to_charge"
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.UniqueConstraint(
                models.F("span"),
                models.F("through"),
                models.ExpressionWrapper(models.Q(("amount_micros__gt", 0)), output_field=models.BooleanField()),
                name="charge_once_per_moment",
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.UniqueConstraint(
                condition=models.Q(("amount_micros__lt", 0)), fields=("span",), name="charge_corrected_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "amount_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.F("promo_micros"), "+", models.F("cash_micros")
                            ),
                            "+",
                            models.F("owed_micros"),
                        ),
                    )
                ),
                name="charge_says_what_paid_it",
            ),
        ),
    ]
