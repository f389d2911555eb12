from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("provisioning", "0033_time_limit"),
    ]

    operations = [
        migrations.AddField(
            model_name="quota",
            name="reserved",
            field=models.PositiveBigIntegerField(
                default=0,
                help_text="GPUs of reservations in the fullest hour to come: never too few, and soon not too many",
            ),
        ),
    ]
