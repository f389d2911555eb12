"""Keep nodes for orders that wait, where every claim sees it, and let placement's snapshots hear of it."""

from django.db import migrations, models

READ = "free_mask, state, reachability, is_held, exclusive_to_id, offer_id, fabric_id, rack, gpu_count, nvlink_groups"


def trigger(read: str) -> str:
    """Note a node's change where one of these columns does change."""
    old, new = (", ".join(f"{row}.{name}" for name in [*read.split(", "), "changed"]) for row in ("OLD", "NEW"))
    return f"""
DROP TRIGGER provisioning_node_notes_its_change ON provisioning_node;
CREATE TRIGGER provisioning_node_notes_its_change BEFORE UPDATE ON provisioning_node FOR EACH ROW
    WHEN (({old}) IS DISTINCT FROM ({new})) EXECUTE FUNCTION provisioning_node_notes_its_change();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0031_disputes_are_noted"),
        ("provisioning", "0034_what_quotas_have_reserved"),
    ]

    operations = [
        migrations.AddField(
            model_name="capacity",
            name="lets_pass",
            field=models.BooleanField(
                db_default=True, default=True, help_text="new orders may have what those that wait leave over"
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="kept_for",
            field=models.CharField(
                blank=True,
                choices=[("", "For everybody"), ("queue", "For an order that waits")],
                db_default="",
                default="",
                help_text="whose place it is to be",
                max_length=6,
            ),
        ),
        migrations.AddIndex(
            model_name="node",
            index=models.Index(condition=models.Q(("kept_for", ""), _negated=True), fields=["offer"], name="node_kept"),
        ),
        migrations.RunSQL(trigger(f"{READ}, kept_for"), trigger(READ)),
    ]
