import django.db.models.deletion
from django.db import migrations, models

import billing.public_ids

OLD = """
CREATE TABLE provisioning_quota_kept AS SELECT project_id, "limit" FROM provisioning_quota
"""
OLD_AGAIN = """
INSERT INTO provisioning_quota (project_id, "limit", held)
SELECT kept.project_id, kept."limit",
    coalesce((SELECT sum(quota_held) FROM provisioning_instance WHERE project_id = kept.project_id), 0)
FROM provisioning_quota_kept kept;
DROP TABLE provisioning_quota_kept;
"""
# An organization's own limit is new: as much as its projects had together, so that nobody has less than before.
NEW = """
INSERT INTO provisioning_quotahold (holder, project_id, gpu_model, market, gpus, micros_per_hour)
SELECT instance.public_id, instance.project_id, offer.gpu_model, instance.market, instance.quota_held,
    price.micros_per_unit_hour * instance.quota_held
FROM provisioning_instance instance JOIN marketplace_offer offer ON offer.id = instance.offer_id
JOIN billing_priceversion price ON price.id = instance.price_version_id
WHERE instance.quota_held > 0;

INSERT INTO provisioning_quota (public_id, organization_id, project_id, gpu_model, market, unit, "limit", held)
SELECT 'quo_' || left(translate(md5('project ' || project.id), '0189', 'wxyz'), 20), project.organization_id,
    project.id, '', '', 'gpus', least(coalesce(kept."limit", 16), 2147483647),
    coalesce((SELECT sum(gpus) FROM provisioning_quotahold WHERE project_id = project.id), 0)
FROM marketplace_project project LEFT JOIN provisioning_quota_kept kept ON kept.project_id = project.id
UNION ALL
SELECT 'quo_' || left(translate(md5('organization ' || organization.id), '0189', 'wxyz'), 20), organization.id,
    NULL, '', '', 'gpus',
    greatest(64, coalesce((SELECT sum(coalesce(kept."limit", 16)) FROM marketplace_project project
        LEFT JOIN provisioning_quota_kept kept ON kept.project_id = project.id
        WHERE project.organization_id = organization.id), 0)),
    coalesce((SELECT sum(gpus) FROM provisioning_quotahold hold
        JOIN marketplace_project project ON project.id = hold.project_id
        WHERE project.organization_id = organization.id), 0)
FROM marketplace_organization organization;

DROP TABLE provisioning_quota_kept;
"""
NEW_KEPT = """
CREATE TABLE provisioning_quota_kept AS
SELECT project_id, least("limit", 2147483647)::integer AS "limit" FROM provisioning_quota
WHERE project_id IS NOT NULL AND gpu_model = '' AND market = '' AND unit = 'gpus'
"""
MARKETS = [("on_demand", "On demand"), ("spot", "Spot"), ("reserved", "Reserved")]


class Migration(migrations.Migration):
    dependencies = [
        ("marketplace", "0006_audit_of_the_system"),
        ("provisioning", "0016_interruptions"),
    ]

    operations = [
        migrations.RunSQL(OLD, OLD_AGAIN),
        migrations.DeleteModel(name="Quota"),
        migrations.CreateModel(
            name="Quota",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="quo")),
                (
                    "gpu_model",
                    models.CharField(blank=True, help_text="as offers name it; empty: all together", max_length=80),
                ),
                (
                    "market",
                    models.CharField(blank=True, choices=MARKETS, help_text="empty: all", max_length=10),
                ),
                (
                    "unit",
                    models.CharField(
                        choices=[("gpus", "GPUs"), ("micros_per_hour", "Spend per hour")],
                        default="gpus",
                        max_length=15,
                    ),
                ),
                (
                    "limit",
                    models.BigIntegerField(
                        help_text="GPUs, or micros of the organization's currency for an hour of all of it"
                    ),
                ),
                ("held", models.BigIntegerField(default=0)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="quotas",
                        to="marketplace.organization",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        help_text="null: all projects together",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="quotas",
                        to="marketplace.project",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "project", "gpu_model", "market", "unit"),
                        name="quota_one_per_owner_model_market_and_unit",
                        nulls_distinct=False,
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("held__gte", 0), ("limit__gte", 0)), name="quota_is_never_negative"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="QuotaHold",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "holder",
                    models.CharField(help_text="the public id of what holds it", max_length=32, unique=True),
                ),
                ("gpu_model", models.CharField(max_length=80)),
                ("market", models.CharField(choices=MARKETS, max_length=10)),
                ("gpus", models.PositiveIntegerField()),
                (
                    "micros_per_hour",
                    models.BigIntegerField(help_text="what all of it costs for an hour while it runs"),
                ),
                (
                    "project",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="marketplace.project"
                    ),
                ),
                (
                    "token",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="marketplace.apitoken",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(models.F("project"), models.F("market"), name="quota_hold_by_project"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("gpus__gt", 0),
                            ("micros_per_hour__gte", 0),
                            models.Q(("gpu_model", ""), _negated=True),
                            models.Q(("market", ""), _negated=True),
                        ),
                        name="quota_hold_holds_something_of_a_model_on_a_market",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="instance",
            name="ordered_with",
            field=models.ForeignKey(
                help_text="the token that started this run",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="marketplace.apitoken",
            ),
        ),
        migrations.RunSQL(NEW, NEW_KEPT),
    ]
