"""What was sold in each day, summed up; all that was charged before is to be summed up by the first sweeps."""

import django.contrib.postgres.indexes
from django.db import migrations, models


EVERYTHING = """
INSERT INTO billing_revenuetosum (since, through)
SELECT min(started_at), greatest(max(charged_through), now()) FROM billing_usagespan HAVING count(*) > 0
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0016_collecting"),
    ]

    operations = [
        migrations.CreateModel(
            name="DailyRevenue",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateField()),
                ("thing", models.CharField(blank=True, max_length=100)),
                ("market", models.CharField(blank=True, max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("micros", models.BigIntegerField()),
                ("summed_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="RevenueToSum",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("since", models.DateTimeField()),
                ("through", models.DateTimeField()),
            ],
        ),
        migrations.AddIndex(
            model_name="transfer",
            index=django.contrib.postgres.indexes.BrinIndex(
                autosummarize=True, fields=["effective_at"], name="transfer_when_it_counts"
            ),
        ),
        migrations.AddIndex(
            model_name="usagespan",
            index=django.contrib.postgres.indexes.BrinIndex(
                autosummarize=True, fields=["ended_at"], name="usage_span_when_ended"
            ),
        ),
        migrations.AddConstraint(
            model_name="dailyrevenue",
            constraint=models.UniqueConstraint(
                fields=("day", "thing", "market", "currency"), name="daily_revenue_once_per_day_and_thing"
            ),
        ),
        migrations.RunSQL(EVERYTHING, migrations.RunSQL.noop),
    ]
