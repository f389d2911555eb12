"""A price may float: its points say what it is from when on, with the integral up to them."""

import django.db.models.deletion
from django.db import migrations, models

import billing.models.usage

# In the order of time, each with the sum of those before it.
FOLLOWS = """
CREATE FUNCTION billing_refuse_point_out_of_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE last billing_pricepoint;
BEGIN
    SELECT * INTO last FROM billing_pricepoint WHERE price_version_id = NEW.price_version_id
    ORDER BY starts_at DESC LIMIT 1;
    IF FOUND AND NEW.starts_at <= last.starts_at THEN
        RAISE EXCEPTION 'a price point of % is over', NEW.starts_at USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.sum_micro_ms <> coalesce(last.sum_micro_ms + last.micros_per_unit_hour
        * round(1000 * extract(epoch FROM NEW.starts_at - last.starts_at)), 0) THEN
        RAISE EXCEPTION 'a price point of % has a wrong sum', NEW.starts_at USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""


def on_points(name, event, function):
    """Let a function see every row of price points before this event."""
    return migrations.RunSQL(
        f"CREATE TRIGGER billing_pricepoint_{name} BEFORE {event} ON billing_pricepoint "
        f"FOR EACH ROW EXECUTE FUNCTION {function}()",
        f"DROP TRIGGER billing_pricepoint_{name} ON billing_pricepoint",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0005_prices_per_unit"),
        ("marketplace", "0006_audit_of_the_system"),
    ]

    operations = [
        migrations.CreateModel(
            name="PricePoint",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("starts_at", models.DateTimeField()),
                ("micros_per_unit_hour", models.BigIntegerField()),
                ("sum_micro_ms", billing.models.usage.LongNumberField()),
            ],
        ),
        migrations.AddField(
            model_name="priceversion",
            name="is_floating",
            field=models.BooleanField(default=False),
        ),
        migrations.AlterField(
            model_name="usagespan",
            name="price_version",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="usage_spans",
                to="billing.priceversion",
            ),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=models.Index(fields=["price_version", "charged_through"], name="usage_span_by_price"),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.UniqueConstraint(
                condition=models.Q(("is_floating", True)),
                fields=("sku", "currency"),
                name="price_floats_once_per_sku_and_currency",
            ),
        ),
        migrations.AddField(
            model_name="pricepoint",
            name="price_version",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="points",
                to="billing.priceversion",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricepoint",
            constraint=models.UniqueConstraint(
                fields=("price_version", "starts_at"), name="price_point_one_per_moment"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricepoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("micros_per_unit_hour__gt", 0)), name="price_point_is_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricepoint",
            constraint=models.CheckConstraint(
                condition=models.Q(("sum_micro_ms__gte", 0)), name="price_point_sums_forward"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricepoint",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "starts_at",
                        models.Func(
                            models.Value("milliseconds"),
                            models.F("starts_at"),
                            function="date_trunc",
                            output_field=models.DateTimeField(),
                        ),
                    )
                ),
                name="price_point_at_a_whole_millisecond",
            ),
        ),
        on_points("is_append_only", "UPDATE OR DELETE", "billing_refuse_change"),
        migrations.RunSQL(FOLLOWS, "DROP FUNCTION billing_refuse_point_out_of_order"),
        on_points("follows", "INSERT", "billing_refuse_point_out_of_order"),
    ]
