"""Commitments that customers ask for and accept, and tables of dunning that are proposed."""

import billing.public_ids
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


FUNCTION = """
CREATE OR REPLACE FUNCTION billing_refuse_change_of_commitment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (OLD.state <> 'proposed' AND (
        NEW.organization_id, NEW.currency, NEW.kind, NEW.committed_micros, NEW.committed_unit_hours,
        NEW.discount_bps, NEW.starts_at, NEW.ends_at, NEW.note, NEW.proposed_by_id, NEW.decided_by_id, NEW.decided_at
    ) IS DISTINCT FROM (
        OLD.organization_id, OLD.currency, OLD.kind, OLD.committed_micros, OLD.committed_unit_hours,
        OLD.discount_bps, OLD.starts_at, OLD.ends_at, OLD.note, OLD.proposed_by_id, OLD.decided_by_id, OLD.decided_at
    )) OR ({answered}) THEN
        RAISE EXCEPTION 'commitment % is %: % refused', OLD.public_id, OLD.state, TG_OP
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
# What was offered waits for its customer's answer; what was agreed changes but for what is drawn of it.
BEFORE = "OLD.state <> 'proposed' AND NEW.state <> OLD.state"
NOW = """OLD.state NOT IN ('proposed', 'offered')
        AND (NEW.state, NEW.answered_by_id, NEW.answered_at) IS DISTINCT FROM (OLD.state, OLD.answered_by_id,
            OLD.answered_at)"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0022_lent_use_and_notices"),
        ("marketplace", "0020_receipts"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="CommitmentRequest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="cmr")),
                ("key", models.UUIDField(unique=True)),
                ("currency", models.CharField(max_length=3)),
                ("kind", models.CharField(choices=[("spend", "Spend"), ("hours", "Hours")], max_length=8)),
                ("skus", models.JSONField()),
                ("amount", models.BigIntegerField()),
                ("starts_at", models.DateTimeField()),
                ("months", models.PositiveSmallIntegerField()),
                ("note", models.CharField(blank=True, max_length=500)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("answered", "Answered with an offer"),
                            ("declined", "Declined"),
                            ("withdrawn", "Withdrawn"),
                        ],
                        default="open",
                        max_length=9,
                    ),
                ),
                ("asked_at", models.DateTimeField()),
                ("answer", models.CharField(blank=True, max_length=500)),
                ("decided_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="DunningTable",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "proposed"), ("approved", "approved"), ("declined", "declined")],
                        default="proposed",
                        max_length=8,
                    ),
                ),
                ("key", models.UUIDField(unique=True)),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                ("public_id", billing.public_ids.PublicIdField(prefix="dnt")),
                ("steps", models.JSONField()),
                ("reason", models.CharField(max_length=200)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="commitment",
            name="commitment_needs_a_second_person",
        ),
        migrations.AddField(
            model_name="commitment",
            name="answered_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="commitment",
            name="answered_by",
            field=models.ForeignKey(
                blank=True,
                help_text="who of the customer's accepted or refused what was offered",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AlterField(
            model_name="commitment",
            name="state",
            field=models.CharField(
                choices=[
                    ("proposed", "Proposed"),
                    ("offered", "Offered to the customer"),
                    ("agreed", "Agreed"),
                    ("declined", "Declined"),
                ],
                default="proposed",
                max_length=12,
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
                    ("commitment_offered", "Commitment offered"),
                ],
                max_length=24,
            ),
        ),
        migrations.AddConstraint(
            model_name="commitment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state__in", ["agreed", "offered"]), _negated=True),
                    models.Q(
                        ("decided_by__isnull", False), models.Q(("decided_by", models.F("proposed_by")), _negated=True)
                    ),
                    _connector="OR",
                ),
                name="commitment_needs_a_second_person",
            ),
        ),
        migrations.AddField(
            model_name="commitmentrequest",
            name="asked_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="commitmentrequest",
            name="commitment",
            field=models.OneToOneField(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="request", to="billing.commitment"
            ),
        ),
        migrations.AddField(
            model_name="commitmentrequest",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="commitment_requests",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(
            model_name="dunningtable",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="dunningtable",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddConstraint(
            model_name="commitmentrequest",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount__gt", 0), ("months__gt", 0)), name="commitment_request_asks_for_something"
            ),
        ),
        migrations.AddConstraint(
            model_name="commitmentrequest",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "open")),
                fields=("organization",),
                name="commitment_request_one_open_at_a_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="commitmentrequest",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("commitment__isnull", False), ("state", "answered")),
                    models.Q(models.Q(("state", "answered"), _negated=True), ("commitment", None)),
                    _connector="OR",
                ),
                name="commitment_request_is_answered_with_a_proposal",
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningtable",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_by", None), ("state", "proposed")),
                    models.Q(("decided_by__isnull", False), ("state", "declined")),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("state", "approved"),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="dunning_table_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningtable",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="dunning_table_says_why"
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningtable",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "proposed")), fields=("state",), name="dunning_table_one_waits_at_a_time"
            ),
        ),
        migrations.RunSQL(FUNCTION.format(answered=NOW), FUNCTION.format(answered=BEFORE)),
    ]
