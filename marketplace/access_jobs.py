"""The part of `access` for jobs, their tasks and what was tried."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.db.models import F, IntegerField, Q, QuerySet
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast

from marketplace import access_receipts
from marketplace.access import Actor, _check, _memberships_for, _projects, memberships
from marketplace.errors import NotFound
from marketplace.models import Attempt, Claim, Job, JobEvent, Membership, Receipt, Task, Verdict


@dataclass(frozen=True)
class Claimed:
    """What became of a task's result under a contract: its claim, what verifiers said of it, and its receipts."""

    claim: Claim
    verdicts: list[Verdict] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)


def jobs(actor: Actor) -> QuerySet[Job]:
    """Return the jobs that this actor may see, with what their pages show."""
    return _jobs(actor, _memberships_for(actor, "job.view"))


def _jobs(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Job]:
    found = Job.objects.select_related("project__organization", "offer__site")
    return found.filter(project__in=_projects(actor, through).values("pk"))


def job_for(actor: Actor, job_id: str, *, verb: str) -> Job:
    """Return a job by its id."""
    job = _jobs(actor, memberships(actor)).filter(public_id=job_id).first()
    if job is None:
        raise NotFound
    _check(actor, job.project.organization_id, verb)
    return job


def tasks(job: Job) -> QuerySet[Task]:
    """Return a job's tasks; the caller came through `job_for`."""
    return Task.objects.filter(job=job)


def task_of(job: Job, index: int) -> Task:
    """Return one task of a job; the caller came through `job_for`."""
    task = tasks(job).filter(index=index).first() if index < job.size else None
    if task is None:
        raise NotFound("task")
    task.job = job
    return task


def attempts(task: Task) -> QuerySet[Attempt]:
    """Return what was tried of a task; the caller came through `job_for`."""
    return Attempt.objects.filter(task=task).select_related("instance")


def attempt_of(task: Task, number: int | None) -> Attempt:
    """Return one attempt at a task, the last one without a number; the caller came through `job_for`."""
    wanted = task.attempts if number is None else number
    attempt = attempts(task).filter(number=wanted).first()
    if attempt is None:
        raise NotFound("attempt")
    return attempt


def last_attempts(found: list[Task]) -> dict[int, Attempt]:
    """Return the last attempt at each of these tasks, by the task's key. One query."""
    rows = Attempt.objects.filter(task__in=found, number=F("task__attempts")).select_related("instance")
    return {row.task_id: row for row in rows}


def claimed(job: Job, found: Sequence[Task]) -> dict[int, Claimed]:
    """Return what became of the results of these tasks, by the task's key; the caller came through `job_for`.

    Three queries under a contract, however many tasks; none without.
    """
    if not job.contract:
        return {}
    made = {claim.pk: Claimed(claim) for claim in Claim.objects.filter(task__in=found)}
    for verdict in Verdict.objects.filter(claim__in=list(made)).order_by("pk"):
        made[verdict.claim_id].verdicts.append(verdict)
    by_id = {one.claim.public_id: one for one in made.values()}
    for receipt in access_receipts.of_claims(one.claim for one in made.values()):
        by_id[receipt.subject_id].receipts.append(receipt)
    return {one.claim.task_id: one for one in made.values() if one.claim.task_id is not None}


def results(job: Job) -> QuerySet[Attempt]:
    """Return the attempts of a job that succeeded, with what they left behind; the caller came through `job_for`.

    Those are among them whose results were refused, and have to be paid for all the same: a dispute was decided so.
    """
    claimed = Cast(KeyTextTransform("attempt", "task__claim__evidence"), IntegerField())
    upheld = Q(state=Attempt.State.REFUSED, claimed=F("number"))
    upheld &= Q(task__claim__paid_micros__gt=F("task__claim__reversed_micros"))
    rows = Attempt.objects.filter(job=job).annotate(claimed=claimed)
    return rows.filter(upheld | Q(state=Attempt.State.SUCCEEDED)).select_related("task")


def job_events(job: Job) -> QuerySet[JobEvent]:
    """Return what happened to a job, not to its tasks; the caller came through `job_for`."""
    return JobEvent.objects.filter(job=job, task=None)
