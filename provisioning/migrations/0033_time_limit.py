from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("provisioning", "0032_counters"),
    ]

    operations = [
        migrations.AddField(
            model_name="instance",
            name="time_limit_s",
            field=models.PositiveIntegerField(help_text="from when it has its GPUs: charged no longer", null=True),
        ),
    ]
