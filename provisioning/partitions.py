"""Tables cut by time. Partitions are made ahead, and dropped whole when they are too old: nothing is ever deleted row
by row. What keeps a table's rows is its newest partition alone, so its indexes stay small.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction

log = structlog.get_logger("provisioning.partitions")

AHEAD = timedelta(days=3)
DROPPED_MAX = 10
# A lock that is waited for holds up whoever comes after; the next sweep tries again.
LOCK_WAIT = "2s"


@dataclass(frozen=True)
class Table:
    """A partitioned table: cut by day or by month, and kept for a while (settings.TELEMETRY_KEEP)."""

    name: str
    by_month: bool = False

    @property
    def keep(self) -> timedelta:
        """For how long its rows are kept at least."""
        kept: timedelta = settings.TELEMETRY_KEEP[self.name]
        return kept

    def begin(self, at: datetime) -> datetime:
        """Return when the partition of this moment begins."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return day.replace(day=1) if self.by_month else day

    def end(self, begin: datetime) -> datetime:
        """Return when the partition that begins then ends."""
        return self.begin(begin + timedelta(days=32)) if self.by_month else begin + timedelta(days=1)

    def partition(self, begin: datetime) -> str:
        """Return the name of the partition that begins then."""
        return f"{self.name}_{begin:%Y%m%d}"


SAMPLE = Table("provisioning_sample")
MINUTE = Table("provisioning_minute")
HOUR = Table("provisioning_hour", by_month=True)
TABLES = (SAMPLE, MINUTE, HOUR)


def prepare(table: Table, *, since: datetime, until: datetime) -> int:
    """Make the partitions for this time; return how many were not there."""
    there = {begin for begin, _ in _partitions(table)}
    begin, made = table.begin(since), 0
    while begin <= until:
        if begin not in there:
            _make(table, begin)
            made += 1
        begin = table.end(begin)
    return made


def sweep(*, at: datetime) -> int:
    """Make partitions ahead and drop those that are too old, some at a time; return how many were dropped."""
    dropped = 0
    for table in TABLES:
        prepare(table, since=at - timedelta(days=1), until=at + AHEAD)
        for begin, name in _partitions(table):
            if table.end(begin) <= at - table.keep and dropped < DROPPED_MAX:
                dropped += _drop(table, name)
    return dropped


def _partitions(table: Table) -> list[tuple[datetime, str]]:
    """Return when each partition begins and its name, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1", [table.name]
        )
        names = [name for (name,) in cursor.fetchall()]
    return [(datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC), name) for name in names]


@transaction.atomic
def _make(table: Table, begin: datetime) -> None:
    name = table.partition(begin)
    with connection.cursor() as cursor:
        # Two processes may find it missing at once.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [name])
        cursor.execute("SELECT to_regclass(%s)", [name])
        if cursor.fetchone()[0] is not None:
            return
        # Made aside and then attached: unlike PARTITION OF, that does not lock out those who write meanwhile.
        cursor.execute(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL)")
        cursor.execute(
            f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)",
            [begin, table.end(begin)],
        )
    log.info("partition made", name=name)


def _drop(table: Table, name: str) -> bool:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
            cursor.execute(f"ALTER TABLE {table.name} DETACH PARTITION {name}")
            cursor.execute(f"DROP TABLE {name}")
    except OperationalError as error:
        log.warning("partition not dropped; the next sweep tries again", name=name, error=str(error))
        return False
    log.info("partition dropped", name=name)
    return True
