"""An hour that fell short is credited at what it cost in the end."""

import django.db.models.deletion
import django.db.models.expressions

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0031_owed_for_nothing"),
    ]

    operations = [
        migrations.CreateModel(
            name="GuaranteeCorrection",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("paid_micros", models.BigIntegerField(help_text="what the hour cost in the end")),
                ("returned_micros", models.BigIntegerField(help_text="of that, what was given back otherwise")),
                ("credit_micros", models.BigIntegerField(help_text="besides what it credited when it was judged")),
                ("at", models.DateTimeField()),
                (
                    "hour",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="correction",
                        to="billing.guaranteehour",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("credit_micros__gt", 0)), name="guarantee_is_corrected_for_its_customer"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "credit_micros__lte",
                                django.db.models.expressions.CombinedExpression(
                                    models.F("paid_micros"), "-", models.F("returned_micros")
                                ),
                            ),
                            ("returned_micros__gte", 0),
                        ),
                        name="guarantee_correction_credits_no_more_than_was_paid",
                    ),
                ],
            },
        ),
        migrations.RunSQL(
            "CREATE TRIGGER billing_guaranteecorrection_keeps BEFORE UPDATE OR DELETE ON billing_guaranteecorrection "
            "FOR EACH ROW EXECUTE FUNCTION billing_refuse_change()",
            "DROP TRIGGER billing_guaranteecorrection_keeps ON billing_guaranteecorrection",
        ),
    ]
