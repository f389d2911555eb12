"""What GPUs' meters said over time: one row per node and ten seconds, in partitions by day.

The rows hold arrays, one entry per GPU, because a fleet writes thousands of rows a second: a batch of many nodes is one
statement. They have no model: Django neither knows partitions nor should write them one by one.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog
from django.db import DatabaseError, connection, transaction

from provisioning import partitions
from provisioning.models import Gpu, GpuHold, Instance
from provisioning.protocol import Report
from provisioning.readings import readings

log = structlog.get_logger("provisioning.telemetry")

METRICS = (
    "utilization_percent",
    "memory_used_mib",
    "power_mw",
    "temperature_c",
    "memory_temperature_c",
    "sm_clock_mhz",
)
SLOT = timedelta(seconds=10)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
# Later than this it is not worth it to sum up their time again.
LATE_MAX = timedelta(hours=1)

RECORD = f"""
INSERT INTO provisioning_sample (node_id, at, driver_epoch, gpu_ids, millijoules, {", ".join(METRICS)})
SELECT said.node_id, %(slot)s, said.driver_epoch, ids.gpu_ids, said.millijoules,
    {", ".join(f"said.{name}" for name in METRICS)}
FROM jsonb_to_recordset(%(rows)s::jsonb) AS said (node_id bigint, driver_epoch bigint, uuids text[],
    millijoules bigint[], {", ".join(f"{name} int[]" for name in METRICS)})
CROSS JOIN LATERAL (
    SELECT array_agg(gpu.id ORDER BY told.n) AS gpu_ids, count(gpu.id) AS known
    FROM unnest(said.uuids) WITH ORDINALITY AS told (uuid, n)
    LEFT JOIN provisioning_gpu gpu ON gpu.uuid = told.uuid AND gpu.node_id = said.node_id AND gpu.removed_at IS NULL
) ids
WHERE ids.known > 0
ON CONFLICT DO NOTHING
"""  # noqa: S608  the names are ours
# Where samples come so late that their time is summed up already, it is done again.
REDO = """
UPDATE provisioning_rollup SET until = date_trunc(level, %(slot)s::timestamptz, 'UTC')
WHERE until > %(slot)s AND until - %(slot)s <= make_interval(secs => %(late)s)
"""

_prepared: set[datetime] = set()


def record(said: Sequence[tuple[int, Report]], *, at: datetime) -> int:
    """Keep what these nodes read, as of now; return how many rows are new. Two statements for any number of nodes.

    The first sample of a node in ten seconds counts: a replay changes nothing.
    GPUs that are not the node's own are left out. Readings are worth no report:
    where they cannot be kept that is logged, and the nodes are heard all the same.
    """
    rows = [row for node_id, report in said if (row := _row(node_id, report))]
    if not rows:
        return 0
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            _prepare(at)
            cursor.execute(RECORD, {"slot": slot_of(at), "rows": msgspec.json.encode(rows).decode()})
            new: int = cursor.rowcount
            cursor.execute(REDO, {"slot": slot_of(at), "late": LATE_MAX.total_seconds()})
    except DatabaseError:
        log.exception("readings lost", nodes=len(rows))
        _prepared.clear()
        return 0
    return new


def slot_of(at: datetime) -> datetime:
    """Return the ten seconds that a moment lies in, by their beginning."""
    return at.astimezone(UTC) - timedelta(seconds=at.second % 10, microseconds=at.microsecond)


def floor(at: datetime, step: timedelta) -> datetime:
    """Return the beginning of the step of time that a moment lies in."""
    return datetime.fromtimestamp(at.timestamp() // step.total_seconds() * step.total_seconds(), UTC)


def _prepare(at: datetime) -> None:
    """Make sure that there is a partition; a process asks the database once a day."""
    begin = partitions.SAMPLE.begin(at)
    if begin not in _prepared:
        partitions.prepare(partitions.SAMPLE, since=at, until=at)
        _prepared.add(begin)


def _row(node_id: int, report: Report) -> dict[str, Any] | None:
    told = {one["uuid"]: one for one in readings(report.telemetry)}
    energy = {one["uuid"]: one for one in readings(report.energy)}
    uuids = sorted(told.keys() | energy.keys())
    if not uuids:
        return None
    epochs = [one["driver_epoch"] for one in energy.values() if one.get("driver_epoch") is not None]
    row: dict[str, Any] = {"node_id": node_id, "driver_epoch": max(epochs, default=None), "uuids": uuids}
    row["millijoules"] = [energy.get(name, {}).get("millijoules") for name in uuids]
    return row | {metric: [told.get(name, {}).get(metric) for name in uuids] for metric in METRICS}


# What is asked of them


@dataclass(frozen=True)
class Point:
    """One GPU's meters over one step of time. None: it did not tell. Energy is since the point before."""

    at: datetime
    utilization_percent: float | None
    memory_used_mib: float | None
    power_mw: float | None
    temperature_c: float | None
    energy_mj: int | None


@dataclass(frozen=True)
class Series:
    """One GPU's points in order; those of a time without samples are not there."""

    uuid: str
    step: timedelta
    points: list[Point]
    is_current: bool = True  # For an instance: its current run has or had this GPU.


SHOWN = METRICS[:4]
# A point counts where it lies wholly inside the time that is asked for and, for a customer, held.
# Energy counts from the second such point on: that of the first began before.
AT_SLOTS = f"""
WITH wanted AS ({{spans}}), said AS (
    SELECT DISTINCT ON (wanted.gpu_id, wanted.since, sample.at) wanted.gpu_id, wanted.since, sample.at,
        sample.driver_epoch, one.*
    FROM wanted JOIN provisioning_sample sample ON sample.node_id = wanted.node_id
        AND sample.at >= wanted.since AND sample.at + interval '10 seconds' <= wanted.until
        AND sample.at >= %(since)s AND sample.at < %(until)s
    CROSS JOIN LATERAL unnest(sample.gpu_ids, sample.millijoules, {", ".join(f"sample.{name}" for name in SHOWN)})
        AS one (id, millijoules, {", ".join(SHOWN)})
    WHERE one.id = wanted.gpu_id
)
SELECT gpu_id, at, {", ".join(SHOWN)}, CASE WHEN lag(driver_epoch) OVER steps = driver_epoch
    AND lag(millijoules) OVER steps <= millijoules THEN millijoules - lag(millijoules) OVER steps END
FROM said WINDOW steps AS (PARTITION BY gpu_id, since ORDER BY at) ORDER BY gpu_id, at
"""  # noqa: S608  the names are ours
SUMMED = f"""
WITH wanted AS ({{spans}})
SELECT summed.gpu_id, summed.at, {", ".join(f"{name}_sum::float8 / nullif({name}_count, 0)" for name in SHOWN)},
    CASE WHEN lag(summed.at) OVER (PARTITION BY summed.gpu_id, wanted.since ORDER BY summed.at) IS NOT NULL
        THEN energy_mj END
FROM wanted JOIN {{table}} summed ON summed.gpu_id = wanted.gpu_id
    AND summed.at >= wanted.since AND summed.at + %(step)s <= wanted.until
    AND summed.at >= %(since)s AND summed.at < %(until)s
ORDER BY summed.gpu_id, summed.at
"""  # noqa: S608  the names are ours
OF_GPUS = """
SELECT id AS gpu_id, node_id, '-infinity'::timestamptz AS since, 'infinity'::timestamptz AS until
FROM provisioning_gpu WHERE id = ANY (%(gpus)s::bigint[])
"""
OF_HOLDS = """
SELECT hold.gpu_id, assignment.node_id, hold.taken_at AS since, coalesce(hold.released_at, 'infinity') AS until
FROM provisioning_gpuhold hold JOIN provisioning_assignment assignment ON assignment.id = hold.assignment_id
WHERE assignment.instance_id = %(instance)s AND (%(run)s::int IS NULL OR assignment.fence = %(run)s)
"""
RESOLUTIONS = {"10s": SLOT, "1m": MINUTE, "1h": HOUR}
TABLES = {MINUTE: "provisioning_minute", HOUR: "provisioning_hour"}
# How long a time a resolution is for, where nobody chose one: a few hundred points for each GPU.
FINE_UP_TO = ((timedelta(hours=2), SLOT), (timedelta(days=1, hours=1), MINUTE))


def step_for(*, since: datetime, until: datetime) -> timedelta:
    """Return the finest resolution that shows this time in some hundred points."""
    return next((step for longest, step in FINE_UP_TO if until - since <= longest), HOUR)


def series(
    *,
    of: Instance | Sequence[Gpu],
    since: datetime,
    until: datetime,
    step: timedelta | None = None,
    run: int | None = None,
) -> list[Series]:
    """Return what the meters of these GPUs said, or of those that an instance holds or held, while it did. Two queries.

    With `run`, only what an instance holds or held in that run of it.
    Steps are ten seconds, a minute or an hour; None chooses by the length of the time.
    """
    step = step or step_for(since=since, until=until)
    asked: dict[str, Any] = {"since": since, "until": until, "step": step}
    if isinstance(of, Instance):
        spans, asked["instance"], asked["run"] = OF_HOLDS, of.pk, run
        held = GpuHold.objects.filter(assignment__instance=of).order_by(
            "assignment__replica", "gpu__index", "gpu_id", "assignment__fence"
        )
        held = held if run is None else held.filter(assignment__fence=run)
        names, runs = {}, {}
        for gpu_id, uuid, fence in held.values_list("gpu_id", "gpu__uuid", "assignment__fence"):
            names[gpu_id], runs[gpu_id] = uuid, fence
        old = {gpu_id for gpu_id, fence in runs.items() if fence != of.run}
    else:
        spans, asked["gpus"] = OF_GPUS, [gpu.pk for gpu in of]
        names, old = {gpu.pk: gpu.uuid for gpu in of}, set()
    query = AT_SLOTS if step == SLOT else SUMMED
    with connection.cursor() as cursor:
        cursor.execute(query.format(spans=spans, table=TABLES.get(step, "")), asked)
        return _by_gpu(names, old, step, cursor.fetchall())


def _by_gpu(
    names: dict[int, str], old: Collection[int], step: timedelta, rows: Iterable[tuple[Any, ...]]
) -> list[Series]:
    points: dict[int, list[Point]] = {gpu_id: [] for gpu_id in names}
    for gpu_id, at, *values in rows:
        points.setdefault(gpu_id, []).append(Point(at, *values))
    return [
        Series(names[gpu_id], step, found, gpu_id not in old) for gpu_id, found in points.items() if gpu_id in names
    ]
