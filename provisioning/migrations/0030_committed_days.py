"""Keep what is committed of an offer in a row for each day, hour by hour, instead of a row for each hour."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

DAYS = """
INSERT INTO provisioning_committedday (offer_id, day, gpus)
SELECT days.offer_id, days.day, array_agg(coalesce(there.gpus, 0) ORDER BY number)
FROM (SELECT DISTINCT offer_id, date_trunc('day', hour, 'UTC') AS day FROM provisioning_committedhour) days
CROSS JOIN generate_series(0, 23) AS number
LEFT JOIN provisioning_committedhour there
    ON there.offer_id = days.offer_id AND there.hour = days.day + number * interval '1 hour'
GROUP BY days.offer_id, days.day
"""
HOURS = """
INSERT INTO provisioning_committedhour (offer_id, hour, gpus)
SELECT offer_id, day + (number - 1) * interval '1 hour', of_hour
FROM provisioning_committedday, unnest(gpus) WITH ORDINALITY AS of_day (of_hour, number) WHERE of_hour > 0
"""


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0026_a_cap_on_an_organizations_share"),
        ("provisioning", "0029_advisories"),
    ]

    operations = [
        migrations.CreateModel(
            name="CommittedDay",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateTimeField(help_text="when it begins")),
                (
                    "gpus",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(), help_text="hour by hour", size=24
                    ),
                ),
                (
                    "offer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="committed_days",
                        to="marketplace.offer",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("offer", "day"), name="committed_day_once_per_offer"),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "day",
                                models.Func(
                                    models.Value("day"),
                                    models.F("day"),
                                    models.Value("UTC"),
                                    function="date_trunc",
                                    output_field=models.DateTimeField(),
                                ),
                            )
                        ),
                        name="committed_day_begins_at_midnight",
                    ),
                    models.CheckConstraint(condition=models.Q(("gpus__len", 24)), name="committed_day_has_24_hours"),
                    models.CheckConstraint(
                        condition=models.Func(
                            models.F("gpus"),
                            output_field=models.BooleanField(),
                            template="0 <= ALL (%(expressions)s)",
                        ),
                        name="committed_hours_are_never_below_zero",
                    ),
                ],
            },
        ),
        # So that a commitment finds room beside the row that it writes anew.
        migrations.RunSQL(
            "ALTER TABLE provisioning_committedday SET (fillfactor = 60)",
            "ALTER TABLE provisioning_committedday RESET (fillfactor)",
        ),
        migrations.RunSQL(DAYS, HOURS),
        migrations.DeleteModel(name="CommittedHour"),
    ]
