from django.db import migrations

# Cut by time, which Django cannot say; without a model, so that nobody writes them row by row.
METRICS = (
    ("utilization_percent", "smallint"),
    ("memory_used_mib", "integer"),
    ("power_mw", "integer"),
    ("temperature_c", "smallint"),
    ("memory_temperature_c", "smallint"),
    ("sm_clock_mhz", "smallint"),
)


def summed(metric: str, kind: str) -> str:
    return (
        f"{metric}_min {kind}, {metric}_max {kind}, {metric}_sum bigint, {metric}_count integer, {metric}_last {kind}"
    )


SUMMED = ", ".join(summed(*metric) for metric in METRICS)

MAKE = f"""
CREATE TABLE provisioning_sample (
    node_id bigint NOT NULL, at timestamptz NOT NULL, driver_epoch bigint, gpu_ids bigint[] NOT NULL,
    millijoules bigint[], {", ".join(f"{name} {kind}[]" for name, kind in METRICS)}, PRIMARY KEY (node_id, at)
) PARTITION BY RANGE (at);
CREATE TABLE provisioning_minute (
    gpu_id bigint NOT NULL, at timestamptz NOT NULL, samples integer NOT NULL, {SUMMED}, energy_mj bigint,
    driver_epoch bigint, millijoules_last bigint, counted_at timestamptz, PRIMARY KEY (gpu_id, at)
) PARTITION BY RANGE (at);
CREATE TABLE provisioning_hour (
    gpu_id bigint NOT NULL, at timestamptz NOT NULL, samples integer NOT NULL, {SUMMED}, energy_mj bigint,
    PRIMARY KEY (gpu_id, at)
) PARTITION BY RANGE (at);
CREATE INDEX provisioning_sample_at ON provisioning_sample USING brin (at) WITH (pages_per_range = 16);
CREATE INDEX provisioning_minute_at ON provisioning_minute USING brin (at) WITH (pages_per_range = 16);
"""
DROP = "DROP TABLE provisioning_sample, provisioning_minute, provisioning_hour"


class Migration(migrations.Migration):
    dependencies = [("provisioning", "0006_accepted_inventory_and_rollups")]

    operations = [migrations.RunSQL(MAKE, DROP)]
