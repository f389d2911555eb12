"""Counters of workloads: kept as their nodes read them, and asked for by how much they grew.

A node is not believed blindly, and a workload not at all. A reading that came
twice or late changes nothing; one below the last means that the program began
anew; one that grew faster than its order says it can counts nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import structlog
from django.db import connection
from django.db.models import Max, QuerySet

from provisioning.models import Assignment, CounterSample, Instance, Node
from provisioning.protocol import BIGGEST

log = structlog.get_logger("provisioning.counters")

KEPT = timedelta(days=100)
MILLISECOND = timedelta(milliseconds=1)
SAMPLES_MAX = 1024

# Each interval counts in proportion to how much of it lies before a moment, rounded down, so what is between two
# moments is the difference, and hours that follow each other add up to what is between the first and the last.
INCREASE = """
SELECT coalesce(sum(until_then - since_then), 0)::bigint FROM (
    SELECT CASE WHEN at <= %(until)s THEN increase ELSE floor(
            increase * extract(epoch FROM %(until)s::timestamptz - since) / extract(epoch FROM at - since)
        ) END AS until_then,
        CASE WHEN since >= %(since)s THEN 0 ELSE floor(
            increase * extract(epoch FROM %(since)s::timestamptz - since) / extract(epoch FROM at - since)
        ) END AS since_then
    FROM provisioning_countersample
    WHERE instance_id = %(instance)s AND name = %(name)s AND at > %(since)s AND since < %(until)s
) counted
"""


def increase(instance: Instance, name: str, *, since: datetime, until: datetime) -> int:
    """Return by how much a counter of an instance grew between two moments, over all its replicas and runs.

    Between two readings it is taken to have grown evenly. Ask for a time that `seen_until` has passed, or for one in
    which nothing ran any more: what was not read yet counts nothing.
    """
    asked: dict[str, Any] = {"instance": instance.pk, "name": name, "since": since, "until": until}
    with connection.cursor() as cursor:
        cursor.execute(INCREASE, asked)
        return int(cursor.fetchone()[0])


@dataclass(frozen=True)
class Counted:
    """What one replica's counter showed in a run: its first and last reading, how many there were, and what counts."""

    assignment: str
    first: int
    first_at: datetime
    last: int
    last_at: datetime
    readings: int
    units: int


def counted(instance: Instance, name: str, *, since: datetime, most_per_s: int) -> list[Counted]:
    """Return what a counter of an instance counted from its begin at `since` on, in each of its runs; no end is asked.

    A program that begins counts from 0, so the first reading counts too. What
    grew faster than `most_per_s` counts nothing; 0 sets no bound.
    """
    rows = CounterSample.objects.filter(instance=instance, name=name).select_related("assignment")
    ordered = rows.order_by("assignment", "at")
    groups = groupby(ordered, key=lambda row: row.assignment.public_id)
    return [_counted(assignment, list(found), since, most_per_s) for assignment, found in groups]


def _counted(assignment: str, found: list[CounterSample], since: datetime, most_per_s: int) -> Counted:
    first, last = found[0], found[-1]
    steps: Iterable[tuple[int, timedelta]] = [
        (first.value, first.at - since), *((row.increase, row.at - row.since) for row in found[1:])
    ]  # fmt: skip
    units = sum(grown for grown, took in steps if not is_jump(grown, took, most_per_s))
    return Counted(assignment, first.value, first.at, last.value, last.at, len(found), units)


def is_jump(grown: int, took: timedelta, most_per_s: int) -> bool:
    """Return whether a counter grew faster than it may; a second more is let pass, for readings that came unevenly."""
    return bool(most_per_s) and grown * 1000 > most_per_s * (max(took, timedelta(0)) // MILLISECOND + 1000)


def seen_until(instance: Instance, name: str) -> datetime | None:
    """Return the moment of a counter's latest reading, None where it was never read."""
    latest: datetime | None = CounterSample.objects.filter(instance=instance, name=name).aggregate(at=Max("at"))["at"]
    return latest


def samples(instance: Instance, name: str, *, since: datetime, until: datetime) -> QuerySet[CounterSample]:
    """Return the readings of a counter in a time, the oldest first: a curve of how it grew."""
    return CounterSample.objects.filter(instance=instance, name=name, at__gt=since, since__lt=until).order_by(
        "at", "pk"
    )


def take(node: Node, at: datetime, body: Mapping[str, Any]) -> None:
    """Keep what a node read from workloads (`counters` in its journal), each reading once."""
    told = body.get("samples")
    found = told[:SAMPLES_MAX] if isinstance(told, list) else []
    by_id = {str(one.get("assignment")): one for one in found if isinstance(one, dict)}
    rows = Assignment.objects.filter(node=node, public_id__in=by_id).select_related("instance")
    for row in rows.order_by("pk"):
        one = by_id[row.public_id]
        values = one.get("values")
        if one.get("fence") != row.fence or not row.instance.counters or not isinstance(values, dict):
            log.warning("counters of nobody", node=node.public_id, assignment=row.public_id)
            continue
        for name in row.instance.counters["names"]:
            value = values.get(name)
            if type(value) is int and 0 <= value <= BIGGEST:
                _keep(row, name, value, at)


def _keep(row: Assignment, name: str, value: int, at: datetime) -> None:
    # A node's report is taken under a lock of its own, so nobody else reads or writes this series now.
    last = CounterSample.objects.filter(assignment=row, name=name).order_by("-at").first()
    if last is not None and at <= last.at:
        return  # Told twice, or late.
    grown, note = _grown(row.instance, last, value, at)
    if note in {CounterSample.Note.RESET, CounterSample.Note.JUMP}:
        log.warning("counter", note=note, instance=row.instance.public_id, name=name, value=value)
    CounterSample.objects.create(
        instance=row.instance, assignment=row, name=name, since=last.at if last else at, at=at, value=value,
        increase=grown, note=note,
    )  # fmt: skip


def _grown(instance: Instance, last: CounterSample | None, value: int, at: datetime) -> tuple[int, CounterSample.Note]:
    """Return by how much a counter grew since its last reading, and what is to be said of that."""
    if last is None:
        return 0, CounterSample.Note.FIRST
    is_reset = value < last.value
    grown = value if is_reset else value - last.value
    most_per_s = int((instance.counters or {}).get("most_per_s", 0))
    if is_jump(grown, at - last.at, most_per_s):
        return 0, CounterSample.Note.JUMP
    return grown, CounterSample.Note.RESET if is_reset else CounterSample.Note.NONE


def forget(*, at: datetime, limit: int) -> int:
    """Remove readings that are too old; return how many."""
    oldest = CounterSample.objects.filter(at__lt=at - KEPT).order_by("at").values("pk")[:limit]
    return CounterSample.objects.filter(pk__in=list(oldest.values_list("pk", flat=True))).delete()[0]
