"""What is found at the card processor: a payout that was taken back there, and a statement too long to read at once."""

from django.db import migrations, models
from django.db.models import F, Q


class Migration(migrations.Migration):
    dependencies = [("billing", "0025_one_credit_for_an_hour")]

    operations = [
        migrations.CreateModel(
            name="BalanceReading",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("since", models.DateTimeField()),
                ("after", models.CharField(blank=True, max_length=100)),
            ],
        ),
        migrations.AddConstraint(
            model_name="balancereading",
            constraint=models.UniqueConstraint(models.Value(1), name="balance_reading_is_one"),
        ),
        migrations.RemoveConstraint(model_name="payout", name="payout_reversal_needs_a_second_person"),
        migrations.AddField(
            model_name="payout",
            name="reversal_found_at",
            field=models.DateTimeField(
                help_text="when it was seen that it had been taken back at the processor, by nobody here", null=True
            ),
        ),
        migrations.AddConstraint(
            model_name="payout",
            constraint=models.CheckConstraint(
                condition=~Q(state__in=["reversing", "reversed"])
                | Q(state="reversed", reversal_found_at__isnull=False)
                | Q(reversal_proposed_by__isnull=False, reversal_approved_by__isnull=False)
                & ~Q(reversal_approved_by=F("reversal_proposed_by")),
                name="payout_reversal_needs_a_second_person",
            ),
        ),
    ]
