"""What becomes of results under a contract: each is claimed once, and its claim decides what its task becomes."""

from datetime import datetime

from django.db.models import Q

from marketplace.contracts import claims
from marketplace.jobs import moves
from marketplace.jobs.moves import Ending, TaskMove
from marketplace.models import AttemptState, Claim, ClaimState, EndReason, Job, Task, TaskState

SET_MAX = 100
UNDECIDED = (ClaimState.CLAIMED, ClaimState.DISPUTED)
REFUSED = (ClaimState.FAILED, ClaimState.REJECTED, ClaimState.VOIDED)


def look(job: Job, *, at: datetime) -> int:
    """Claim the results of a locked job that are new, and move on tasks whose claims are decided; return how many."""
    decided = Q(claim=None) | ~Q(claim__state__in=UNDECIDED)
    tasks = Task.objects.filter(decided, job=job, state=TaskState.VERIFYING).select_related("claim__version")
    steps = 0
    for task in tasks.order_by("index")[:SET_MAX]:
        task.job = job
        claim = getattr(task, "claim", None)
        if claim is None or (claim.state == ClaimState.FAILED and claim.evidence.get("attempt") != task.attempts):
            claim = claims.open(task=task, at=at)
        if claim.state not in UNDECIDED:
            _decide(job, task, claim, at=at)
        steps += 1
    return steps


def _decide(job: Job, task: Task, claim: Claim, *, at: datetime) -> None:
    move = TaskMove(task.pk, TaskState.VERIFYING, TaskState.SUCCEEDED)
    if claim.state in REFUSED:
        again = claims.may_retry(claim) and job.state == Job.State.ACTIVE
        _refuse(task, claim, at=at)
        new = TaskState.PENDING if again else TaskState.FAILED
        move = TaskMove(task.pk, TaskState.VERIFYING, new, reason=EndReason.NOT_VERIFIED, message=claim.message)
    moves.tasks(job, [move], at=at)


def _refuse(task: Task, claim: Claim, *, at: datetime) -> None:
    """Let the attempt whose result was not accepted count as no success, so that another one may."""
    attempt = task.tries.filter(state=AttemptState.SUCCEEDED).first()
    if attempt is not None:
        moves.attempts([
            Ending(
                attempt.pk, AttemptState.REFUSED, EndReason.NOT_VERIFIED, claim.message, exit_code=attempt.exit_code,
                outputs_sha256=attempt.outputs_sha256, checkpoint_sha256=attempt.checkpoint_sha256,
                cost_micros=attempt.cost_micros, began_at=attempt.began_at, ended_at=attempt.ended_at,
                old=AttemptState.SUCCEEDED,
            )
        ])  # fmt: skip
