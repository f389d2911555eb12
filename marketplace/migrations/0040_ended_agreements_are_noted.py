"""That a customer ended an agreement is an event."""

from django.db import migrations

TABLE = "marketplace_agreementend"


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0039_customers_end_agreements"),
    ]

    operations = [
        migrations.RunSQL(
            f"CREATE TRIGGER {TABLE}_is_noted AFTER INSERT ON {TABLE} REFERENCING NEW TABLE AS made "
            f"FOR EACH STATEMENT EXECUTE FUNCTION marketplace_note('agreement_end')",
            f"DROP TRIGGER {TABLE}_is_noted ON {TABLE}",
        ),
    ]
