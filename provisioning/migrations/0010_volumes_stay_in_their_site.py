"""A volume and the instance that uses it are in one site, whatever wrote the row."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION provisioning_refuse_another_site() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT site_id FROM provisioning_volume WHERE id = NEW.volume_id) IS DISTINCT FROM (
        SELECT offer.site_id FROM provisioning_instance instance
        JOIN marketplace_offer offer ON offer.id = instance.offer_id WHERE instance.id = NEW.instance_id
    ) THEN
        RAISE EXCEPTION 'volume_attached_within_its_site' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0005_what_real_nodes_need"),
        ("provisioning", "0009_volumes"),
    ]

    operations = [
        migrations.RunSQL(REFUSE, "DROP FUNCTION provisioning_refuse_another_site"),
        migrations.RunSQL(
            "CREATE TRIGGER volume_attached_within_its_site BEFORE INSERT OR UPDATE ON provisioning_volumeattachment "
            "FOR EACH ROW EXECUTE FUNCTION provisioning_refuse_another_site()",
            "DROP TRIGGER volume_attached_within_its_site ON provisioning_volumeattachment",
        ),
    ]
