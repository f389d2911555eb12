"""Leave room on the pages of rows that change all the time, so that an update stays on its page (HOT)."""

from django.db import migrations

TABLES = ("provisioning_heartbeat", "provisioning_node", "provisioning_workflow", "provisioning_assignment")


class Migration(migrations.Migration):
    dependencies = [("provisioning", "0001_initial")]

    operations = [
        migrations.RunSQL(f"ALTER TABLE {table} SET (fillfactor = 60)", f"ALTER TABLE {table} RESET (fillfactor)")
        for table in TABLES
    ]
