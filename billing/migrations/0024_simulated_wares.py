"""What a draft of prices changes, by what was used."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0023_offers_to_customers"),
    ]

    operations = [
        migrations.CreateModel(
            name="SimulatedWare",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.CharField(max_length=100)),
                ("name", models.CharField(max_length=200)),
                ("before_micros", models.BigIntegerField()),
                ("after_micros", models.BigIntegerField()),
                (
                    "price_list",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="simulated_wares",
                        to="billing.pricelist",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("price_list", "sku"), name="simulated_ware_once_per_list")
                ],
            },
        ),
    ]
