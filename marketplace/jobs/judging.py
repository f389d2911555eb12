"""Judging attempts by how their instances ended, and what follows for their tasks.

What the customer could have helped counts against the task's retries: a command
that failed, outputs that are missing, a time limit that was passed, an instance
that a user ended. Faults of ours and GPUs that are taken back count nothing, and
what a fault of ours cost is given back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import (
    DateTimeField,
    DurationField,
    Exists,
    ExpressionWrapper,
    F,
    OuterRef,
    Q,
    QuerySet,
    Value,
)

from billing import credits
from marketplace import costs
from marketplace.contracts import bounds
from marketplace.jobs import moves, timeline
from marketplace.jobs.moves import Ending, TaskMove
from marketplace.models import Attempt, AttemptState, EndReason, Job, JobState, TaskState
from marketplace.sla import evidence
from provisioning import artifacts, instances
from provisioning.agent.disk import FILLED
from provisioning.models import INFRASTRUCTURE, Assignment, Instance, Phase, Reason

SET_MAX = 100
FAULTS_MAX = 10
NEVER_READY_MAX = 3
# All that a project may keep by default, 500 GiB, at 50 Mbit/s. A node that sends for longer is broken, or lies.
SENDING_MAX = timedelta(hours=24)
SECOND = Value(timedelta(seconds=1))
# After so many failures, or faults, of a task its next attempt waits so long.
BACK_OFF = tuple(timedelta(seconds=seconds) for seconds in (0, 2, 10, 30, 60))

ENDED_FOR_GOOD = {Phase.TERMINATING, Phase.TERMINATED}
OVER = {Phase.STOPPING, Phase.STOPPED, Phase.FAILED, Phase.INTERRUPTED} | ENDED_FOR_GOOD
# What an end by itself means; all that is not here took its GPUs back.
ENDS: dict[str, tuple[AttemptState, EndReason]] = {
    **dict.fromkeys([*INFRASTRUCTURE, Reason.OPERATOR], (AttemptState.FAULTED, EndReason.FAULT)),
    Reason.USER: (AttemptState.FAILED, EndReason.STOPPED),
    Reason.IDLE: (AttemptState.FAILED, EndReason.STOPPED),
    Reason.NO_FUNDS: (AttemptState.CANCELLED, EndReason.FUNDS),
    Reason.BUDGET: (AttemptState.CANCELLED, EndReason.FUNDS),
}
TAKEN_BACK = (AttemptState.CANCELLED, EndReason.INTERRUPTED)


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, why, and when, where that is not when its instance moved."""

    state: AttemptState
    reason: EndReason = EndReason.NONE
    message: str = ""
    at: datetime | None = None


Judged = list[tuple[Attempt, Verdict]]


def ended() -> Q:
    """What of an attempt's instance says that the attempt is over; its first run is the only one that counts."""
    return Q(instance__phase__in=OVER) | Q(instance__run__gt=1)


def sends() -> Exists:
    """Return whether an attempt's node sends what it left behind: its command has ended, so its limit counts no more.

    What is charged ends with the command, or with its limit.
    """
    return Exists(_parts().filter(progress__step__in=Assignment.SENDING))


def _parts() -> QuerySet[Assignment]:
    running = Assignment.objects.filter(observed=Assignment.Observed.RUNNING, replica=0)
    return running.filter(instance=OuterRef("instance"), fence=OuterRef("instance__run"))


def judge(job: Job, *, at: datetime) -> int:
    """Judge the attempts of a locked job that are over, up to a set of them; return how many those were."""
    long_ago = at - SENDING_MAX
    over = ended() | Q(Exists(_parts().filter(sending_since__lte=long_ago)), instance__ready_at__lte=long_ago)
    if job.time_limit_s is not None:
        limit = ExpressionWrapper(F("instance__time_limit_s") * SECOND, output_field=DurationField())
        began = ExpressionWrapper(Value(at) - limit, output_field=DateTimeField())
        over |= Q(~sends(), instance__ready_at__lte=began)
    found = _locked(_live(job).filter(over))
    told = _told_of([attempt.instance for attempt in found])
    stuck = _stuck([attempt.instance for attempt in found], at)
    verdicts = [
        (
            attempt,
            stuck.get(attempt.instance_id)
            or verdict_of(attempt.instance, job, told.get(attempt.instance_id, ""), at=at),
        )
        for attempt in found
    ]
    return _end(job, [(attempt, verdict) for attempt, verdict in verdicts if verdict is not None], at=at)


def end_all(job: Job, *, at: datetime) -> int:
    """End the attempts of a locked job that is ending, up to a set of them; return how many those were."""
    found = _locked(_live(job))
    told = _told_of([attempt.instance for attempt in found])
    return _end(job, [(one, _stopped(one, job, told.get(one.instance_id, ""), at)) for one in found], at=at)


def end_unplaced(job: Job, message: str, *, at: datetime) -> int:
    """End the attempts of a locked job that bid and have no GPUs yet, so that their tasks are tried otherwise."""
    waits = _live(job).filter(
        instance__phase=Phase.QUEUED, instance__market=Instance.Market.SPOT, instance__admitted_at=None
    )
    return _end(job, [(attempt, Verdict(*TAKEN_BACK, message)) for attempt in _locked(waits)], at=at)


def _told_of(found: Iterable[Instance]) -> dict[int, str]:
    """Return what nodes told of instances that should have left something behind: why it is not there. One query."""
    wanted = [instance.pk for instance in found if instance.outputs and instance.exit_code == 0]
    if not wanted:
        return {}
    rows = Assignment.objects.filter(instance__in=wanted, replica=0, fence=1).exclude(message="")
    return dict(rows.values_list("instance", "message"))


def _stuck(found: Iterable[Instance], at: datetime) -> dict[int, Verdict]:
    """Return how those went whose node has sent for too long what they left. One query, where any goes on."""
    wanted = [instance.pk for instance in found if instance.phase not in OVER and instance.run == 1]
    if not wanted:
        return {}
    rows = Assignment.objects.filter(
        instance__in=wanted, replica=0, fence=1, observed=Assignment.Observed.RUNNING,
        sending_since__lte=at - SENDING_MAX,
    )  # fmt: skip
    message = timeline.NEVER_SENT(hours=SENDING_MAX // timedelta(hours=1))
    since = dict(rows.values_list("instance", "sending_since"))
    # Its command had ended by then, and what is charged with it.
    return {pk: Verdict(AttemptState.FAULTED, EndReason.FAULT, message, at=begun) for pk, begun in since.items()}


def verdict_of(instance: Instance, job: Job, told: str = "", *, at: datetime) -> Verdict | None:
    """Return how an attempt went by its instance alone; None while it goes on. `told` is what its node said of it."""
    if instance.run > 1:
        return Verdict(*TAKEN_BACK, instance.message)
    if instance.phase not in OVER:
        return _late(instance, job, at)
    if instance.reason == Reason.EXITED:
        return _exited(instance, told)
    return Verdict(*ENDS.get(instance.reason, TAKEN_BACK), instance.message)


def _exited(instance: Instance, told: str) -> Verdict:
    if full := FILLED.search(instance.message):
        message = timeline.DISK_FILLED(used=full[1], most=full[2])
        return Verdict(AttemptState.FAILED, EndReason.EXIT_CODE, message)
    if instance.exit_code != 0:
        return Verdict(AttemptState.FAILED, EndReason.EXIT_CODE, instance.message)
    lacking = artifacts.lacking(
        project_id=instance.project_id, sha256=instance.outputs_sha256, patterns=instance.outputs
    )
    if lacking:
        why = told or timeline.NO_OUTPUT(names=", ".join(lacking))
        return Verdict(AttemptState.FAILED, EndReason.OUTPUTS, why)
    return Verdict(AttemptState.SUCCEEDED)


def _late(instance: Instance, job: Job, at: datetime) -> Verdict | None:
    if job.time_limit_s is None or instance.time_limit_s is None or instance.ready_at is None:
        return None
    until = instance.ready_at + timedelta(seconds=instance.time_limit_s)
    if at < until:
        return None
    # What is charged ends with the limit, however late we look.
    if instance.time_limit_s < job.time_limit_s:
        message = timeline.REST_PAID(seconds=instance.time_limit_s)
        return Verdict(AttemptState.CANCELLED, EndReason.COST, message, at=until)
    message = timeline.TIME_LIMIT(seconds=job.time_limit_s)
    return Verdict(AttemptState.FAILED, EndReason.TIME_LIMIT, message, at=until)


def _stopped(attempt: Attempt, job: Job, told: str, at: datetime) -> Verdict:
    """Return how an attempt of an ending job went: as it did by itself, where it had succeeded already."""
    by_itself = verdict_of(attempt.instance, job, told, at=at)
    if by_itself is not None and by_itself.state == AttemptState.SUCCEEDED:
        return by_itself
    return Verdict(AttemptState.CANCELLED, EndReason(job.reason), job.message)


def _live(job: Job) -> QuerySet[Attempt]:
    live = Attempt.objects.filter(job=job, state=AttemptState.RUNNING).order_by("pk")
    return live.select_related("task", "instance__price_version")


def _locked(found: QuerySet[Attempt]) -> list[Attempt]:
    """Return a set of attempts with their instances as they are now, locked: what was read before is old."""
    chosen = list(found[:SET_MAX])
    now = {row.pk: row for row in instances.lock([attempt.instance_id for attempt in chosen])} if chosen else {}
    for attempt in chosen:
        row = now[attempt.instance_id]
        row.price_version = attempt.instance.price_version
        attempt.instance = row
    return chosen


def _end(job: Job, judged: Judged, *, at: datetime) -> int:
    """End attempts whose instances are locked, their instances for good, and move their tasks on."""
    if not judged:
        return 0
    for attempt, verdict in judged:
        instance = attempt.instance
        if instance.phase not in ENDED_FOR_GOOD:
            # Its result is known; nobody is to start it again.
            by_itself = Reason.TIMED_OUT if verdict.state == AttemptState.FAULTED else Reason.USER
            instances.terminate(
                instance=instance, at=verdict.at or at, reason=Reason(instance.reason or by_itself),
                message=instance.message or verdict.message,
            )  # fmt: skip
    taken = {pk: cost.so_far_micros for pk, cost in costs.of([one.instance for one, _ in judged], at=at).items()}
    lost = [attempt.instance for attempt, verdict in judged if verdict.state == AttemptState.FAULTED]
    returned = evidence.given_back(lost) if lost else {}
    for instance in lost:
        _give_back(job, instance, taken[instance.pk] - returned[instance.pk], at=at)
    spent = taken | dict.fromkeys((instance.pk for instance in lost), 0)
    moves.attempts([_ending(attempt, verdict, spent[attempt.instance_id]) for attempt, verdict in judged])
    out = bounds.tried_out(job, [attempt.task for attempt, _ in judged])
    moves.tasks(job, [_next(job, attempt, verdict, out, at) for attempt, verdict in judged], at=at)
    if total := sum(spent.values()):
        Job.objects.filter(pk=job.pk).update(spent_micros=F("spent_micros") + total)
        job.spent_micros += total
    return len(judged)


def _give_back(job: Job, instance: Instance, micros: int, *, at: datetime) -> None:
    """Give back what an attempt cost that a fault of ours ended, less what of that came back: it costs nothing."""
    if micros > 0:
        credits.compensate(
            organization=job.project.organization, amount_micros=micros, key=evidence.attempt_key(instance),
            reason=f"A fault of ours ended {instance.name}"[:200], at=at,
        )  # fmt: skip


def _ending(attempt: Attempt, verdict: Verdict, cost_micros: int) -> Ending:
    instance = attempt.instance
    return Ending(
        attempt_id=attempt.pk,
        new=verdict.state,
        reason=verdict.reason,
        message=verdict.message,
        exit_code=instance.exit_code,
        outputs_sha256=instance.outputs_sha256 if verdict.state == AttemptState.SUCCEEDED else "",
        checkpoint_sha256=instance.checkpoint_sha256,
        cost_micros=cost_micros,
        began_at=instance.ready_at,
        ended_at=max(verdict.at or instance.phase_since, attempt.created_at),
    )


def _next(job: Job, attempt: Attempt, verdict: Verdict, out: set[int], at: datetime) -> TaskMove:
    """Return what becomes of a task after an attempt: it succeeded, is tried again, or has failed."""
    task = attempt.task
    move = TaskMove(
        task_id=task.pk, old=TaskState.RUNNING, new=TaskState.PENDING, reason=verdict.reason, message=verdict.message
    )
    if verdict.state == AttemptState.SUCCEEDED:
        return replace(move, new=TaskState.VERIFYING if job.contract else TaskState.SUCCEEDED)
    if job.state == JobState.ENDING:
        is_cancelled = job.reason == EndReason.CANCELLED
        return replace(move, new=TaskState.CANCELLED if is_cancelled else TaskState.FAILED, reason=job.reason)
    if verdict.state == AttemptState.FAILED:
        times, is_last = task.failures + 1, task.failures >= job.retries or task.pk in out
        move = replace(move, failures=1)
    elif verdict.state == AttemptState.FAULTED:
        times = task.faults + 1
        is_last = times >= (NEVER_READY_MAX if attempt.instance.ready_at is None else FAULTS_MAX)
        move = replace(move, faults=1)
    else:
        # Its contract says how often it may be tried at no price, whatever ended it but a fault of ours.
        return replace(move, new=TaskState.FAILED) if task.pk in out else move
    return replace(move, new=TaskState.FAILED) if is_last else replace(move, not_before=at + _pause(times))


def _pause(times: int) -> timedelta:
    return BACK_OFF[min(times - 1, len(BACK_OFF) - 1)]
