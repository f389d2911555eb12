"""What a bank took back is owed for its invoice again; a dispute remembers what was ordered."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0026_found_at_the_processor"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="invoicepayment",
            name="invoice_payment_pays_something",
        ),
        migrations.AddField(
            model_name="invoicedispute",
            name="asked_micros",
            field=models.BigIntegerField(help_text="before tax, as it was ordered; null: all of it", null=True),
        ),
        migrations.AlterField(
            model_name="dunningevent",
            name="outcome",
            field=models.CharField(
                choices=[
                    ("done", "done"),
                    ("ordered", "charge ordered"),
                    ("no_card", "no card saved"),
                    ("no_processor", "no card processor"),
                    ("bad_amount", "amount not payable by card"),
                    ("disputed", "its bank took a payment back"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="notice",
            name="kind",
            field=models.CharField(
                choices=[
                    ("runway_week", "Money for a week"),
                    ("runway_day", "Money for a day"),
                    ("runway_hour", "Money for an hour"),
                    ("used_up", "Money used up"),
                    ("volumes_kept", "Volumes kept unpaid"),
                    ("volumes_soon", "Volumes to be deleted soon"),
                    ("volumes_deleted", "Volumes deleted"),
                    ("due_soon", "Invoice due soon"),
                    ("past_due", "Invoice past due"),
                    ("due_restricted", "Nothing new starts"),
                    ("due_spot_stopped", "Spot stopped"),
                    ("due_stopped", "Everything stopped"),
                    ("due_written_off", "Invoice written off"),
                    ("charge_failed", "Charge failed"),
                    ("charge_needs_you", "Charge needs the customer"),
                    ("dispute_upheld", "Dispute upheld"),
                    ("dispute_rejected", "Dispute rejected"),
                    ("payment_needs_you", "Payment needs the customer"),
                    ("top_up_paused", "Automatic top-up paused"),
                    ("credit_expires", "Promotional credit expires"),
                    ("payment_taken_back", "Payment taken back"),
                    ("invoice_owed_again", "Invoice owed again"),
                    ("commitment_offered", "Commitment offered"),
                ],
                max_length=24,
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicepayment",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros", 0), _negated=True), name="invoice_payment_is_of_something"
            ),
        ),
    ]
