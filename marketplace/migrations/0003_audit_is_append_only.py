"""What was written down about a change is never changed itself."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("marketplace", "0002_owners_and_constraints"), ("billing", "0003_append_only")]

    operations = [
        migrations.RunSQL(
            "CREATE TRIGGER marketplace_auditentry_is_append_only BEFORE UPDATE OR DELETE ON marketplace_auditentry "
            "FOR EACH ROW EXECUTE FUNCTION billing_refuse_change()",
            "DROP TRIGGER marketplace_auditentry_is_append_only ON marketplace_auditentry",
        ),
    ]
