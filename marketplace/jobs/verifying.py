"""What becomes of results under a contract: each is claimed once, and its claim decides what its task becomes.

A set of them takes the same few statements as one.
"""

from collections.abc import Sequence
from datetime import datetime

from django.db.models import Q

from marketplace.contracts import bounds, claims
from marketplace.jobs import moves
from marketplace.jobs.moves import Ending, TaskMove
from marketplace.models import Attempt, AttemptState, Claim, ClaimState, EndReason, Job, Task, TaskState

SET_MAX = 500
UNDECIDED = (ClaimState.CLAIMED, ClaimState.DISPUTED)
REFUSED = (ClaimState.FAILED, ClaimState.REJECTED, ClaimState.VOIDED)


def look(job: Job, *, at: datetime) -> int:
    """Claim the results of a locked job that are new, and move on tasks whose claims are decided; return how many."""
    decided = Q(claim=None) | ~Q(claim__state__in=UNDECIDED)
    rows = Task.objects.filter(decided, job=job, state=TaskState.VERIFYING).select_related("claim__version")
    tasks = list(rows.order_by("index")[:SET_MAX])
    for task in tasks:
        task.job = job
    new = [task for task in tasks if not hasattr(task, "claim")]
    standing = [(task, _standing(task, at=at)) for task in tasks if hasattr(task, "claim")]
    claims.open_all(job=job, tasks=new, at=at)
    _decide(job, [(task, claim) for task, claim in standing if claim.state not in UNDECIDED], at=at)
    return len(tasks)


def _standing(task: Task, *, at: datetime) -> Claim:
    """Return the claim of a task, opened again where a later attempt succeeded than the one that did not pass."""
    claim = task.claim
    if claim.state == ClaimState.FAILED and claim.evidence.get("attempt") != task.attempts:
        return claims.open(task=task, at=at)
    return claim


def _decide(job: Job, decided: Sequence[tuple[Task, Claim]], *, at: datetime) -> None:
    refused = [(task, claim) for task, claim in decided if claim.state in REFUSED]
    moved = [
        TaskMove(task.pk, TaskState.VERIFYING, TaskState.SUCCEEDED)
        for task, claim in decided
        if claim.state not in REFUSED
    ]
    if refused:
        _refuse(refused)
        out = bounds.tried_out(job, [task for task, _ in refused])
        moved += [_move_of(job, task, claim, out) for task, claim in refused]
    moves.tasks(job, moved, at=at)


def _move_of(job: Job, task: Task, claim: Claim, out: set[int]) -> TaskMove:
    again = claims.may_retry(claim) and job.state == Job.State.ACTIVE and task.pk not in out
    new = TaskState.PENDING if again else TaskState.FAILED
    return TaskMove(task.pk, TaskState.VERIFYING, new, reason=EndReason.NOT_VERIFIED, message=claim.message)


def _refuse(refused: Sequence[tuple[Task, Claim]]) -> None:
    """Let attempts whose results were not accepted count as no success, so that others may."""
    said = {task.pk: claim.message for task, claim in refused}
    rows = Attempt.objects.filter(task__in=list(said), state=AttemptState.SUCCEEDED)
    moves.attempts([
        Ending(
            row.pk, AttemptState.REFUSED, EndReason.NOT_VERIFIED, said[row.task_id], exit_code=row.exit_code,
            outputs_sha256=row.outputs_sha256, checkpoint_sha256=row.checkpoint_sha256, cost_micros=row.cost_micros,
            began_at=row.began_at, ended_at=row.ended_at, old=AttemptState.SUCCEEDED,
        )
        for row in rows
    ])  # fmt: skip
