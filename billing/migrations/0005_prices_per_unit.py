"""A price is for an hour of one unit: a GPU, or a GiB of a volume."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0004_never_emptied")]

    operations = [
        migrations.RemoveConstraint(model_name="priceversion", name="price_is_positive"),
        migrations.RenameField("priceversion", "micros_per_gpu_hour", "micros_per_unit_hour"),
        migrations.AddField(
            model_name="priceversion",
            name="unit",
            field=models.CharField(choices=[("gpu", "GPU"), ("gib", "GiB")], default="gpu", max_length=8),
        ),
        migrations.AddConstraint(
            model_name="priceversion",
            constraint=models.CheckConstraint(
                condition=models.Q(("micros_per_unit_hour__gt", 0)), name="price_is_positive"
            ),
        ),
        migrations.AlterField(
            model_name="usagespan",
            name="meter",
            field=models.CharField(choices=[("gpu", "GPUs"), ("volume", "Volumes")], default="gpu", max_length=16),
        ),
    ]
