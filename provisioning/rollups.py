"""Sums readings up: ten seconds to minutes, minutes to hours. In sets, in order, and safe to do again.

Each level has a mark up to when it is done (RollUp). A sweep goes on from there some steps at a time, so that a worker
which was away catches up, and writes over what it did before, so that doing a time twice changes nothing.

Energy is the difference of a GPU's counter from its sample before, in whichever step that was: a gap in the samples
loses none of it. It counts only inside one driver epoch, where the counter did not fall and grew no faster than any GPU
can draw: a reset never yields negative or doubled joules, at the price of what was used between the last sample before
it and the first after it.
"""

from datetime import datetime, timedelta
from time import monotonic

import structlog
from django.db import connection, transaction

from provisioning import partitions
from provisioning.models import RollUp
from provisioning.telemetry import HOUR, METRICS, MINUTE, floor

log = structlog.get_logger("provisioning.rollups")

# A batch that was stamped is committed within this time.
GRACE = timedelta(seconds=30)
# How far back the sample before is looked for: as long as samples are kept by default.
BEFORE_MAX = timedelta(days=2)
# No GPU draws ten kilowatts; a sample may be up to two slots apart from its stamp.
MILLIWATTS_MAX, SLACK_S = 10_000_000, 20

# Well inside the time limit of a task.
BUDGET_S = 20.0

COLUMNS = [f"{metric}_{what}" for metric in METRICS for what in ("min", "max", "sum", "count", "last")]


def _written_over(columns: list[str]) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in columns)


def _of_samples(metric: str) -> str:
    return (
        f"min({metric}), max({metric}), sum({metric}), count({metric}),"
        f" (array_agg({metric} ORDER BY at DESC) FILTER (WHERE {metric} IS NOT NULL))[1]"
    )


def _of_minutes(metric: str) -> str:
    return (
        f"min({metric}_min), max({metric}_max), sum({metric}_sum), sum({metric}_count),"
        f" (array_agg({metric}_last ORDER BY at DESC) FILTER (WHERE {metric}_last IS NOT NULL))[1]"
    )


COUNTERS = ["samples", "energy_mj", "driver_epoch", "millijoules_last", "counted_at"]
MINUTES = f"""
WITH said AS (
    SELECT one.gpu_id, sample.at, date_trunc('minute', sample.at, 'UTC') AS minute, sample.driver_epoch,
        one.millijoules, {", ".join(f"one.{metric}" for metric in METRICS)}
    FROM provisioning_sample sample CROSS JOIN LATERAL unnest(sample.gpu_ids, sample.millijoules,
        {", ".join(f"sample.{metric}" for metric in METRICS)}) AS one (gpu_id, millijoules, {", ".join(METRICS)})
    WHERE sample.at >= %(since)s AND sample.at < %(until)s AND one.gpu_id IS NOT NULL
), before AS (
    SELECT gpu.gpu_id, last.at, last.driver_epoch, last.millijoules
    FROM (SELECT DISTINCT gpu_id FROM said) gpu CROSS JOIN LATERAL (
        SELECT counted_at AS at, driver_epoch, millijoules_last AS millijoules FROM provisioning_minute minute
        WHERE minute.gpu_id = gpu.gpu_id AND minute.at < %(since)s AND minute.at >= %(before)s
            AND millijoules_last IS NOT NULL
        ORDER BY minute.at DESC LIMIT 1
    ) last
), counted AS (
    SELECT gpu_id, at, minute, driver_epoch, millijoules, millijoules - lag(millijoules) OVER steps AS grown,
        extract(epoch FROM at - lag(at) OVER steps) AS seconds, lag(driver_epoch) OVER steps AS epoch_before
    FROM (
        SELECT gpu_id, at, minute, driver_epoch, millijoules FROM said WHERE millijoules IS NOT NULL
        UNION ALL SELECT gpu_id, at, NULL, driver_epoch, millijoules FROM before
    ) one WINDOW steps AS (PARTITION BY gpu_id ORDER BY at)
), energy AS (
    SELECT gpu_id, minute, (array_agg(millijoules ORDER BY at DESC))[1] AS millijoules_last, max(at) AS counted_at,
        (array_agg(driver_epoch ORDER BY at DESC))[1] AS driver_epoch,
        sum(grown) FILTER (WHERE driver_epoch IS NOT DISTINCT FROM epoch_before AND grown >= 0
            AND grown <= (seconds + {SLACK_S}) * {MILLIWATTS_MAX}) AS energy_mj
    FROM counted WHERE minute IS NOT NULL GROUP BY gpu_id, minute
), summed AS (
    SELECT gpu_id, minute, count(*) AS samples, {", ".join(f"{_of_samples(metric)}" for metric in METRICS)}
    FROM said GROUP BY gpu_id, minute
)
INSERT INTO provisioning_minute (gpu_id, at, samples, {", ".join(COLUMNS)}, energy_mj, driver_epoch, millijoules_last,
    counted_at)
SELECT summed.*, energy.energy_mj, energy.driver_epoch, energy.millijoules_last, energy.counted_at
FROM summed LEFT JOIN energy USING (gpu_id, minute)
ON CONFLICT (gpu_id, at) DO UPDATE SET {_written_over(COUNTERS + COLUMNS)}
"""  # noqa: S608  the names are ours
HOURS = f"""
INSERT INTO provisioning_hour (gpu_id, at, samples, energy_mj, {", ".join(COLUMNS)})
SELECT gpu_id, date_trunc('hour', at, 'UTC') AS hour, sum(samples), sum(energy_mj),
    {", ".join(_of_minutes(metric) for metric in METRICS)}
FROM provisioning_minute WHERE at >= %(since)s AND at < %(until)s GROUP BY gpu_id, hour
ON CONFLICT (gpu_id, at) DO UPDATE SET {_written_over(["samples", "energy_mj", *COLUMNS])}
"""  # noqa: S608  the names are ours


def catch_up(*, at: datetime, minutes: int = 30, hours: int = 6, budget_s: float = BUDGET_S) -> int:
    """Sum up what is over, at most so many steps of each level; return how many were done.

    Each step is a transaction, and none is begun after `budget_s`: what a large
    fleet leaves undone the next sweep does, and the end of a worker costs one step.
    Two workers never do it at once: the second finds the marks locked and leaves it to the first.
    """
    stop, done = monotonic() + budget_s, 0
    while done < minutes and monotonic() < stop and _go_on("minute", until=at - GRACE):
        done += 1
    minute = RollUp.objects.filter(level="minute").first()
    if minute is None:
        return done
    for _ in range(hours):
        if monotonic() > stop or not _go_on("hour", until=minute.until):
            break
        done += 1
    return done


LEVELS = {"minute": (MINUTE, MINUTES, partitions.MINUTE), "hour": (HOUR, HOURS, partitions.HOUR)}


@transaction.atomic
def _go_on(level: str, *, until: datetime) -> bool:
    """Sum up the next step of a level, if it is over; return whether it was."""
    step, statement, table = LEVELS[level]
    mark = RollUp.objects.select_for_update(skip_locked=True).filter(level=level).first()
    if mark is None:
        if not RollUp.objects.filter(level=level).exists():
            begin = _first_sample()
            if begin is not None:
                RollUp.objects.get_or_create(level=level, defaults={"until": floor(begin, step)})
        return False
    since, end = mark.until, mark.until + step
    if end > until:
        return False
    partitions.prepare(table, since=since, until=end)
    with connection.cursor() as cursor:
        cursor.execute(statement, {"since": since, "until": end, "before": since - BEFORE_MAX})
        rows = cursor.rowcount
    mark.until = end
    mark.save(update_fields=["until"])
    log.info("summed up", level=level, until=end.isoformat(), rows=rows)
    return True


def done_until(level: str) -> datetime | None:
    """Return up to when a level is summed up, None where nothing was read yet."""
    return RollUp.objects.filter(level=level).values_list("until", flat=True).first()


def _first_sample() -> datetime | None:
    """Return when the oldest sample was; read once in the life of a marketplace."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(at) FROM provisioning_sample")
        found: datetime | None = cursor.fetchone()[0]
    return found
