"""Keeping the folders of jobs: what nothing uses for a month is removed, and a job may need its folders for longer."""

from collections.abc import Sequence
from datetime import datetime
from itertools import chain

from django.db.models import Exists, OuterRef, Q

from marketplace.models import OPEN_JOBS, Attempt, Claim, Job
from provisioning import artifacts

# Together in one statement, with all of their files.
FOLDERS_MAX = 50


def due(*, at: datetime) -> Sequence[int]:
    """Return the jobs that need their folders: those not over, and those whose results may still be contested."""
    claimed = Claim.objects.filter(Q(closed_at=None) | Q(clawback_until__gte=at), task__job=OuterRef("pk"))
    needing = Job.objects.filter(Q(state__in=OPEN_JOBS) | Exists(claimed))
    return list(needing.order_by("pk").values_list("pk", flat=True))


def keep(job_id: int, *, at: datetime) -> None:
    """Note that all folders of a job are still needed: its inputs, and what its attempts left behind."""
    job = Job.objects.get(pk=job_id)
    left = Attempt.objects.filter(job=job).values_list("outputs_sha256", "checkpoint_sha256")
    folders = sorted({job.spec.get("inputs", ""), *chain.from_iterable(left.iterator())} - {""})
    for begin in range(0, len(folders), FOLDERS_MAX):
        artifacts.touch(project_id=job.project_id, folders=folders[begin : begin + FOLDERS_MAX], at=at)
