"""Ending jobs before their time: what waits ends at once, what runs is ended in sets, what succeeded stays."""

from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext

from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import settling
from marketplace.errors import IllegalState
from marketplace.jobs import moves, nudges, timeline
from marketplace.models import EndReason, Job, JobState, TaskState


@transaction.atomic
def cancel(*, actor: Actor, job: Job, at: datetime) -> Job:
    """Cancel a job. What runs is ended and charged until now; cancelling twice changes nothing."""
    locked = lock(job.pk)
    is_asked = locked.state == JobState.CANCELLED or (
        locked.state == JobState.ENDING and locked.reason == EndReason.CANCELLED
    )
    if is_asked:
        return locked
    if refusal := why_not_cancelled(locked):
        raise IllegalState(refusal)
    before = {"state": locked.state}
    begin_to_end(locked, EndReason.CANCELLED, timeline.CANCELLED(who=actor.name), at=at)
    give_back_spare(locked, at=at)
    audit.record_of(locked, "job.cancel", actor=actor, before=before)
    nudges.work_on([locked.pk])
    return locked


def why_not_cancelled(job: Job) -> str:
    """Return why a job cannot be cancelled now, empty where it can."""
    if job.state in {JobState.WAITING, JobState.ACTIVE}:
        return ""
    return gettext("It cannot be cancelled any more; it is: %(state)s.") % {"state": job.get_state_display()}


def begin_to_end(job: Job, reason: EndReason, message: str, *, at: datetime) -> None:
    """Let a locked job end: nothing of it starts any more. `give_back_spare` is for whoever calls, at the end."""
    job.move_to(JobState.ENDING, at=at, reason=reason, message=message, look_at=at, why="", hindrance="")
    new = TaskState.CANCELLED if reason == EndReason.CANCELLED else TaskState.FAILED
    moves.all_tasks(job, TaskState.PENDING, new, at=at, reason=reason, message=message)


def give_back_spare(job: Job, *, at: datetime) -> None:
    """Give back what was set aside for tasks of a locked job that ended without a claim; safe to repeat.

    It locks accounts: call it last, after claims and instances.
    """
    if job.contract:
        settling.release_spare(escrow_id=job.public_id, cause=job.public_id, at=at)


def lock(job_id: int) -> Job:
    """Lock a job and return it as it is now, with what its pages show."""
    rows = Job.objects.select_for_update(no_key=True, of=("self",))
    return rows.select_related("project__organization", "offer__site").get(pk=job_id)
