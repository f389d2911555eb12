"""Results that were given back are found without reading all that were paid."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0027_payments_taken_back")]

    operations = [
        migrations.AddIndex(
            model_name="outcome",
            index=models.Index(
                fields=["organization", "-id"], name="outcome_given_back", condition=models.Q(kind="reversed")
            ),
        ),
    ]
