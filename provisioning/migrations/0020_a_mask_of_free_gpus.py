"""Keep a mask of the free GPUs in the node's own row, and the number of the transaction that last changed it."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import F, Q

import provisioning.models.fleet

FILL = """
UPDATE provisioning_node node SET free_mask = free.mask
FROM (
    SELECT node_id, bit_or(1::bigint << index) AS mask FROM provisioning_gpu gpu
    WHERE healthy AND state = 'clean' AND index < 63
        AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
    GROUP BY node_id
) free WHERE free.node_id = node.id
"""
EMPTY = "UPDATE provisioning_node SET free_gpus = bit_count(free_mask::bit(64))"

# What placement reads of a node; with `changed` itself, which nobody else may write.
READ = "free_mask, state, reachability, is_held, exclusive_to_id, offer_id, fabric_id, rack, gpu_count, nvlink_groups"
OLD, NEW = (", ".join(f"{row}.{name}" for name in [*READ.split(", "), "changed"]) for row in ("OLD", "NEW"))
TRIGGERS = f"""
CREATE FUNCTION provisioning_node_notes_its_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
CREATE TRIGGER provisioning_node_notes_its_change BEFORE UPDATE ON provisioning_node FOR EACH ROW
    WHEN (({OLD}) IS DISTINCT FROM ({NEW})) EXECUTE FUNCTION provisioning_node_notes_its_change();
CREATE TRIGGER provisioning_node_notes_its_birth BEFORE INSERT ON provisioning_node FOR EACH ROW
    EXECUTE FUNCTION provisioning_node_notes_its_change();
"""
NO_TRIGGERS = """
DROP TRIGGER provisioning_node_notes_its_birth ON provisioning_node;
DROP TRIGGER provisioning_node_notes_its_change ON provisioning_node;
DROP FUNCTION provisioning_node_notes_its_change();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0006_audit_of_the_system"),
        ("provisioning", "0019_clusters_that_change"),
    ]

    operations = [
        migrations.RemoveConstraint(model_name="node", name="node_never_has_more_free_than_it_has"),
        migrations.RemoveIndex(model_name="node", name="node_best_fit"),
        migrations.AddField(
            model_name="node",
            name="free_mask",
            field=models.BigIntegerField(
                default=0, help_text="a bit for each GPU, by its index, that may be placed on"
            ),
        ),
        migrations.RunSQL(FILL, EMPTY),
        migrations.RemoveField(model_name="node", name="free_gpus"),
        migrations.AddField(
            model_name="node",
            name="free_gpus",
            field=models.GeneratedField(
                db_persist=True,
                expression=provisioning.models.fleet.BitCount("free_mask"),
                output_field=models.PositiveSmallIntegerField(),
            ),
        ),
        migrations.AddConstraint(
            model_name="node",
            constraint=models.CheckConstraint(
                condition=Q(free_gpus__lte=F("gpu_count")), name="node_never_has_more_free_than_it_has"
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="nvlink_groups",
            field=models.JSONField(default=list, help_text="masks of GPU indices; none where all are one group"),
        ),
        migrations.AddField(
            model_name="node",
            name="exclusive_to",
            field=models.ForeignKey(
                help_text="the tenant whose policy lets nobody else in while anything of theirs is here",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="marketplace.organization",
            ),
        ),
        migrations.AddField(model_name="node", name="changed", field=models.BigIntegerField(default=0, editable=False)),
        migrations.AddIndex(model_name="node", index=models.Index(fields=["offer", "changed"], name="node_changed")),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
