"""Disputes of claims are events; when a floor is looked at next is written down."""

import django.db.models.deletion
from django.db import migrations, models

TOLD = "'open', 'upheld', 'partial', 'rejected', 'withdrawn'"


def changed(source, table):
    """Note every row of a table that comes to one of these states, whoever moves it."""
    for name, what, when in (
        ("begins", "INSERT", f"NEW.state IN ({TOLD})"),
        ("moves", "UPDATE", f"OLD.state <> NEW.state AND NEW.state IN ({TOLD})"),
    ):
        yield migrations.RunSQL(
            f"CREATE TRIGGER {table}_{name}_is_noted AFTER {what} ON {table} FOR EACH ROW WHEN ({when}) "
            f"EXECUTE FUNCTION marketplace_note_state('{source}')",
            f"DROP TRIGGER {table}_{name}_is_noted ON {table}",
        )


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0030_bids_that_found_no_place"),
    ]

    operations = [
        migrations.CreateModel(
            name="FloorLook",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("due_at", models.DateTimeField(db_index=True)),
                (
                    "acceptance",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="floor_look",
                        to="marketplace.acceptance",
                    ),
                ),
            ],
        ),
        *changed("claim_dispute", "marketplace_claimdispute"),
    ]
