"""How far jobs are: how fast tasks end, how long the rest takes, what was spent. Three queries for any number."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from marketplace.models import OPEN_JOBS, Job

WINDOW = timedelta(minutes=10)
MILLISECOND = timedelta(milliseconds=1)

# Usage is charged every few seconds: what runs has cost so much until its last charge.
LIVE = """
SELECT attempt.job_id, sum(span.charged_micros) FROM marketplace_attempt attempt
JOIN provisioning_instance instance ON instance.id = attempt.instance_id
JOIN billing_usagespan span ON span.resource_id = instance.public_id
WHERE attempt.state = 'running' AND attempt.job_id = ANY (%s) GROUP BY attempt.job_id
"""
RECENT = """
SELECT job_id, count(*) FROM marketplace_task
WHERE job_id = ANY (%s) AND state IN ('succeeded', 'failed') AND state_since > %s GROUP BY job_id
"""

# What is paid by its results costs what these did, whatever its hours cost; and some of that goes back.
RESULTS = """
SELECT job.id, escrow.posted_micros, coalesce(
    (SELECT sum(amount_micros) FROM billing_outcome WHERE organization_id = escrow.organization_id
        AND resource_id = job.public_id AND kind = 'reversed'), 0
) FROM marketplace_job job JOIN billing_escrow escrow ON escrow.resource_id = job.public_id WHERE job.id = ANY (%s)
"""


@dataclass(frozen=True)
class Progress:
    """Of one job: tasks an hour (of late), the seconds that the rest takes at that pace, and micros spent so far.

    Pace and rest are None where nothing ended of late. Under a contract `spent_micros` is what was paid for results,
    less `given_back_micros`, which went back.
    """

    done: int
    left: int
    per_hour: int | None
    left_s: int | None
    spent_micros: int
    given_back_micros: int = 0

    @property
    def percent(self) -> int:
        """How much of it is done, rounded down, so that 100 means all."""
        return self.done * 100 // (self.done + self.left)


def of(jobs: Sequence[Job], *, at: datetime) -> dict[int, Progress]:
    """Return how far each of these jobs is, by its key."""
    alive = [job.pk for job in jobs if job.state in OPEN_JOBS]
    live, recent = ({}, {}) if not alive else (_pairs(LIVE, [alive]), _pairs(RECENT, [alive, at - WINDOW]))
    by_result = [job.pk for job in jobs if job.contract]
    paid = _paid(by_result) if by_result else {}
    return {
        job.pk: _of(job, paid.get(job.pk, (job.spent_micros + live.get(job.pk, 0), 0)), recent.get(job.pk, 0), at)
        for job in jobs
    }


def _of(job: Job, spent: tuple[int, int], recent: int, at: datetime) -> Progress:
    left = job.pending + job.running + job.verifying
    per_hour = left_s = None
    if recent and job.started_at is not None and left:
        window = max(MILLISECOND, min(WINDOW, at - job.started_at)) // MILLISECOND
        per_hour = recent * 3_600_000 // window
        left_s = left * window // (recent * 1000)
    return Progress(
        done=job.size - left, left=left, per_hour=per_hour, left_s=left_s, spent_micros=spent[0],
        given_back_micros=spent[1],
    )  # fmt: skip


def _paid(jobs: list[int]) -> dict[int, tuple[int, int]]:
    """Return what the results of jobs cost in the end and what of them went back, by the job."""
    with connection.cursor() as cursor:
        cursor.execute(RESULTS, [jobs])
        return {pk: (posted - int(back), int(back)) for pk, posted, back in cursor.fetchall()}


def _pairs(statement: str, values: Sequence[Any]) -> dict[int, int]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return {row[0]: int(row[1]) for row in cursor.fetchall()}
