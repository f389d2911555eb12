"""An hour of a resource is judged once, under whichever of its guarantees."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0024_simulated_wares")]

    operations = [
        migrations.RemoveConstraint(model_name="guaranteehour", name="guarantee_judges_an_hour_once"),
        migrations.AddConstraint(
            model_name="guaranteehour",
            constraint=models.UniqueConstraint(
                fields=("resource_id", "hour"), name="guarantee_judges_an_hour_of_a_resource_once"
            ),
        ),
    ]
