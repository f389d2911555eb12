"""What an hour under a guarantee credited later is an event."""

from django.db import migrations

TABLE = "billing_guaranteecorrection"


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0032_guarantee_corrections"),
        ("marketplace", "0036_attempts_lost_by_us"),
    ]

    operations = [
        migrations.RunSQL(
            f"CREATE TRIGGER {TABLE}_is_noted AFTER INSERT ON {TABLE} REFERENCING NEW TABLE AS made "
            f"FOR EACH STATEMENT EXECUTE FUNCTION marketplace_note('guarantee_correction')",
            f"DROP TRIGGER {TABLE}_is_noted ON {TABLE}",
        ),
    ]
