"""Note every new advisory, so that it becomes an event; plans become events of their instance."""

from django.db import migrations

FUNCTION = """
CREATE FUNCTION marketplace_note_risk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO marketplace_noted (source, "row") SELECT TG_ARGV[0], id FROM made WHERE state = 'advised';
    RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER provisioning_interruption_is_noted AFTER INSERT ON provisioning_interruption
REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION marketplace_note_risk('risk')
"""


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0026_a_cap_on_an_organizations_share"),
        ("provisioning", "0029_advisories"),
    ]

    operations = [
        migrations.RunSQL(FUNCTION, "DROP FUNCTION marketplace_note_risk"),
        migrations.RunSQL(TRIGGER, "DROP TRIGGER provisioning_interruption_is_noted ON provisioning_interruption"),
    ]
