from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("provisioning", "0024_placement_decisions_by_age"),
    ]

    operations = [
        migrations.AddField(
            model_name="capacity",
            name="for_spot",
            field=models.PositiveIntegerField(
                help_text="the most that spot may hold until the next auction; none: there was no auction yet",
                null=True,
            ),
        ),
    ]
