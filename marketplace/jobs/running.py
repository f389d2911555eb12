"""Taking jobs further: judge what ended, start what can, end what is to end. A sweep looks; messages only hurry it.

Each step is one transaction under the job's lock, so a worker that is killed at
any moment leaves the job as it was before or after that step, and the next look
goes on from there.
"""

from datetime import datetime, timedelta
from time import monotonic

import structlog
from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from billing.prepared import Prepared
from marketplace.contracts import sweeping
from marketplace.jobs import dispatching, judging, nudges, pricing, timeline, verifying
from marketplace.jobs.cancelling import begin_to_end, give_back_spare
from marketplace.models import (
    OPEN_JOBS,
    Attempt,
    AttemptState,
    EndReason,
    Job,
    JobDependency,
    JobState,
)
from provisioning.models import Instance

log = structlog.get_logger("marketplace.jobs")

ROUNDS_MAX = 20
# Much less than a task of a worker may take.
WORK_S = 15
CLAIMS_LOOK = timedelta(seconds=2)
WAITING_LOOK = timedelta(seconds=30)
# What has its GPUs only later ends later.
READY_LOOK = timedelta(seconds=10)
LANES_MAX = 3
VERIFIERS_SET = 2
_LOCKED = Prepared(
    lambda pk: (
        Job.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
        .select_related("project__organization", "offer__site")
        .filter(pk=pk, state__in=OPEN_JOBS)
    ),
    int,
)


def due(*, at: datetime, limit: int) -> list[int]:
    """Return the jobs that a sweep should look at: those with an attempt that is over, then those that are due."""
    over = Attempt.objects.filter(judging.ended(), state=AttemptState.RUNNING)
    found = list(over.order_by().values_list("job_id", flat=True).distinct()[:limit])
    looks = Job.objects.filter(look_at__lte=at).order_by("look_at")
    return list(dict.fromkeys([*found, *looks.values_list("pk", flat=True)[:limit]]))[:limit]


def after(instance_id: int) -> list[int]:
    """Return the jobs to look at after an instance ended: its own, and the first of a few that lack GPUs like its.

    Its own only until it is judged, as one look judges all that have ended; others, and what of its own job still
    waits, once its GPUs are given back.
    """
    told = ("offer", "phase", "attempt__job", "attempt__state", "attempt__job__pending")
    instance = Instance.objects.filter(pk=instance_id).values_list(*told).first()
    if instance is None:
        return []
    offer_id, phase, job_id, state, pending = instance
    is_free = phase in nudges.FREE
    own = [job_id] if state == AttemptState.RUNNING or (pending and is_free) else []
    if not is_free:
        return own
    lacking = Job.objects.filter(offer=offer_id, state=JobState.ACTIVE, pending__gt=0)
    first = lacking.filter(why__in=dispatching.LACKING).order_by("look_at")
    return list(dict.fromkeys([*own, *first.values_list("pk", flat=True)[:LANES_MAX]]))


def work_on(job_id: int) -> None:
    """Take a job as far as it can go now, and its lane with it. Safe to run twice at once, and to be killed."""
    until = monotonic() + WORK_S
    for _ in range(ROUNDS_MAX):
        if monotonic() > until:
            return  # The sweep finds what is left within a second.
        at = timezone.now()
        job, steps = _step(job_id, at=at)
        if job is None:
            return
        # What is done waits for GPUs to be verified on, and would wait for ever behind what only begins.
        sweeping.start_verifiers(at=at, limit=VERIFIERS_SET)
        steps += dispatching.start_lane(
            offer_id=job.offer_id, project_id=job.project_id, job_id=job.pk, at=at
        )  # fmt: skip
        if not steps:
            return


@transaction.atomic
def _step(job_id: int, *, at: datetime) -> tuple[Job | None, int]:
    """Take one step of a job; None where somebody else is at it, or it is over."""
    job = next(iter(_LOCKED(job_id)), None)
    if job is None:
        return None, 0
    steps, before = 0, _without_result(job)
    if job.state == JobState.WAITING:
        steps += _look_at_needs(job, at)
    if job.state != JobState.ENDING and job.deadline is not None and at >= job.deadline:
        begin_to_end(job, EndReason.DEADLINE, timeline.DEADLINE(), at=at)
    # Claims before instances and accounts: whoever pays for a claim locks them in that order.
    if job.verifying:
        steps += verifying.look(job, at=at)
    steps += judging.judge(job, at=at)
    if job.state == JobState.ENDING:
        steps += judging.end_all(job, at=at)
    elif job.market == Job.Market.CHEAPEST and job.running and pricing.is_urgent(job, at=at):
        steps += judging.end_unplaced(job, timeline.NO_CHEAP_HOUR(), at=at)
    if not (job.pending or job.running or job.verifying):
        _finish(job, at=at)
    else:
        _look_later(job, at=at)
    if _without_result(job) > before or not job.is_open:
        give_back_spare(job, at=at)
    return job, steps


def _without_result(job: Job) -> int:
    return job.failed + job.cancelled


def _look_at_needs(job: Job, at: datetime) -> int:
    """Let a job begin whose needs have succeeded, or fail with one that did not."""
    states = dict(JobDependency.objects.filter(job=job).values_list("needs__public_id", "needs__state"))
    lost = [name for name, state in states.items() if state in {JobState.FAILED, JobState.CANCELLED}]
    if lost:
        begin_to_end(job, EndReason.DEPENDENCY, timeline.NEED_LOST(job=lost[0]), at=at)
        return 1
    if all(state == JobState.SUCCEEDED for state in states.values()):
        job.move_to(JobState.ACTIVE, at=at, held_until=at)
        return 1
    return 0


def _finish(job: Job, *, at: datetime) -> None:
    """End a job whose tasks are all over, and have those looked at that need it."""
    if job.succeeded == job.size:
        job.move_to(JobState.SUCCEEDED, at=at)
    elif job.state == JobState.ENDING and job.reason == EndReason.CANCELLED:
        job.move_to(JobState.CANCELLED, at=at, reason=job.reason, message=job.message)
    elif job.state == JobState.ENDING:
        job.move_to(JobState.FAILED, at=at, reason=job.reason, message=job.message)
    else:
        message = timeline.TASKS_FAILED(failed=job.failed, size=job.size)
        job.move_to(JobState.FAILED, at=at, reason=EndReason.TASKS, message=message)
    waiting = Job.objects.filter(needs__needs=job, state=JobState.WAITING)
    after = list(waiting.values_list("pk", flat=True))
    if after:
        Job.objects.filter(pk__in=after).update(look_at=at)
        nudges.work_on(after)


def _look_later(job: Job, *, at: datetime) -> None:
    """Say when a job is looked at next if nothing of it ends before."""
    looks = [at + WAITING_LOOK]
    if job.state == JobState.ACTIVE and job.pending:
        looks.append(at + dispatching.PAUSES[Job.Why(job.why)] if job.why else at)
    if job.deadline is not None and job.state != JobState.ENDING:
        looks.append(job.deadline)
    if job.verifying:
        looks.append(at + CLAIMS_LOOK)
    if job.time_limit_s is not None and job.running:
        live = Attempt.objects.filter(
            ~judging.sends(), job=job, state=AttemptState.RUNNING, instance__ready_at__isnull=False
        )
        soonest = live.aggregate(first=Min("instance__ready_at"), limit=Min("instance__time_limit_s"))
        first, limit = soonest["first"], timedelta(seconds=soonest["limit"] or job.time_limit_s)
        looks += [at + min(limit, READY_LOOK), *([] if first is None else [first + limit])]
    job.look_at = max(min(looks), at + timedelta(milliseconds=200))
    Job.objects.filter(pk=job.pk).update(look_at=job.look_at)
