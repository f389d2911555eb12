"""TRUNCATE passes triggers for rows by, so the ledger refuses it as a statement."""

from django.db import migrations


def never_emptied(table):
    """Refuse TRUNCATE of the table."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_is_never_emptied BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change()",
        f"DROP TRIGGER {table}_is_never_emptied ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_append_only")]

    operations = [never_emptied("billing_transfer"), never_emptied("billing_charge")]
