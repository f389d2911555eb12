"""What each hour under a guarantee achieved."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0019_outcomes"),
        ("marketplace", "0019_contracts"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="GuaranteeHour",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="ghr")),
                ("guarantee", models.CharField(help_text="the public id of the guarantee", max_length=32)),
                ("resource_id", models.CharField(max_length=64)),
                ("resource_name", models.CharField(max_length=200)),
                ("project", models.CharField(blank=True, max_length=32)),
                ("version", models.CharField(max_length=32)),
                ("supplier_bps", models.PositiveIntegerField(help_text="of the credit, what the supplier bears")),
                ("currency", models.CharField(max_length=3)),
                ("hour", models.DateTimeField()),
                ("curve", models.JSONField()),
                ("evidence", models.JSONField()),
                ("measured_milli", models.BigIntegerField(null=True)),
                ("achieved_bps", models.BigIntegerField(null=True)),
                ("paid_micros", models.BigIntegerField()),
                ("credit_bps", models.PositiveIntegerField()),
                ("credit_micros", models.BigIntegerField()),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="supplieradjustment",
            name="supplier_adjustment_of_sla_takes",
        ),
        migrations.RemoveConstraint(
            model_name="supplieradjustment",
            name="supplier_adjustment_needs_a_second_person",
        ),
        migrations.AddField(
            model_name="guaranteehour",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="guarantee_hours",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="guaranteehour",
            name="supplier",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="supplieradjustment",
            name="hour",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="back_charge",
                to="billing.guaranteehour",
            ),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "approved"), _negated=True),
                    models.Q(
                        models.Q(("verdict__isnull", False), ("hour__isnull", False), _connector="OR"),
                        ("decided_by", None),
                        ("kind", "sla"),
                        ("proposed_by", None),
                    ),
                    models.Q(("decided_by", None), ("kind", "outcome"), ("proposed_by", None), ("verdict", None)),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("proposed_by__isnull", False),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="supplier_adjustment_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="supplieradjustment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "sla"), _negated=True),
                    models.Q(
                        ("amount_micros__lt", 0),
                        models.Q(
                            models.Q(("hour", None), ("verdict__isnull", False)),
                            models.Q(("hour__isnull", False), ("verdict", None)),
                            _connector="OR",
                        ),
                    ),
                    _connector="OR",
                ),
                name="supplier_adjustment_of_sla_takes",
            ),
        ),
        migrations.AddIndex(
            model_name="guaranteehour",
            index=models.Index(fields=["resource_id", "-hour"], name="guarantee_hour_of_resource"),
        ),
        migrations.AddIndex(
            model_name="guaranteehour",
            index=models.Index(fields=["organization", "-hour"], name="guarantee_hour_newest_first"),
        ),
        migrations.AddIndex(
            model_name="guaranteehour",
            index=models.Index(
                condition=models.Q(("credit_micros__gt", 0)), fields=["version", "hour"], name="guarantee_hour_credited"
            ),
        ),
        migrations.AddConstraint(
            model_name="guaranteehour",
            constraint=models.UniqueConstraint(fields=("guarantee", "hour"), name="guarantee_judges_an_hour_once"),
        ),
        migrations.AddConstraint(
            model_name="guaranteehour",
            constraint=models.CheckConstraint(
                condition=models.Q(("credit_micros__gte", 0), ("credit_micros__lte", models.F("paid_micros"))),
                name="guarantee_credits_no_more_than_was_paid",
            ),
        ),
        migrations.AddConstraint(
            model_name="guaranteehour",
            constraint=models.CheckConstraint(
                condition=models.Q(("supplier_bps__lte", 10000)), name="guarantee_charges_no_more_than_all"
            ),
        ),
        migrations.RunSQL(
            "CREATE TRIGGER billing_guaranteehour_keeps BEFORE UPDATE OR DELETE ON billing_guaranteehour FOR EACH ROW "
            "EXECUTE FUNCTION billing_refuse_change()",
            "DROP TRIGGER billing_guaranteehour_keeps ON billing_guaranteehour",
        ),
    ]
