"""Periods of shared revenue and hours under guarantees are events."""

from django.db import migrations


def noted(source, table):
    """Note every new row of a table, whoever writes it."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_is_noted AFTER INSERT ON {table} REFERENCING NEW TABLE AS made "
        f"FOR EACH STATEMENT EXECUTE FUNCTION marketplace_note('{source}')",
        f"DROP TRIGGER {table}_is_noted ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0020_guaranteed_hours"),
        ("marketplace", "0028_lending_spells"),
    ]

    operations = [
        noted("revenue_period", "marketplace_revenueperiodevent"),
        noted("guarantee_hour", "billing_guaranteehour"),
    ]
