"""Starting tasks: one instance for each attempt, rented like any other, as many at once as there is room for.

Jobs of one project for one offer are a lane: the highest priority first, then
the oldest. What waits for GPUs lets nothing behind it in its lane start; what is
held up by something of its own is passed over. While jobs of other
organizations wait for the same GPUs, a lane has no more than an equal share.

A set of tasks starts in one transaction under the lane's lock, each rental in a
savepoint: a crash at any moment leaves each task waiting or with its attempt.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet, Sum

from billing.errors import BillingError, InsufficientFunds
from billing.prepared import Prepared
from marketplace import access, numbers, rentals, spot
from marketplace.access import Actor
from marketplace.errors import BudgetExceeded, MarketError, ProjectSuspended
from marketplace.jobs import bounding, moves, orders, pricing, spec, timeline
from marketplace.jobs.cancelling import begin_to_end, give_back_spare
from marketplace.jobs.moves import TaskMove
from marketplace.models import Attempt, AttemptState, EndReason, Job, JobState, Task, TaskState
from provisioning import prospects
from provisioning.errors import NeverFits, NoCapacity, PolicyExcludes, ProvisioningError, QuotaExceeded
from provisioning.models import Instance, Node

log = structlog.get_logger("marketplace.jobs")

SET_MAX = 25
SETS_MAX = 8
LANE_MAX = 50
SHORT_MAX = 5
# So that a worker is not at one lane for long.
STARTED_MAX = SET_MAX * SETS_MAX
# Of a job that could start more at once: whoever started these may be gone.
SOON = timedelta(seconds=1)
# So long a job waits for somebody who may not rent any more; then it is cancelled, so that nothing stays set aside.
LEFT_MAX = timedelta(days=7)
Why = Job.Why
LACKING = (Why.CAPACITY, Why.SHARE)
# What jobs of a project are short of together: it comes free by the end of any of them.
SHORT = (Why.FUNDS, Why.QUOTA, Why.BUDGET)
# What a refusal means for a job; anything else is a refusal of its order.
WHYS: tuple[tuple[type[Exception], Why], ...] = (
    (PolicyExcludes, Why.REFUSED),
    (NeverFits, Why.REFUSED),
    (NoCapacity, Why.CAPACITY),
    (InsufficientFunds, Why.FUNDS),
    (QuotaExceeded, Why.QUOTA),
    (BudgetExceeded, Why.BUDGET),
)
# What its customer can change itself: such time is none of its seller's.
OWN = (PolicyExcludes, InsufficientFunds, QuotaExceeded, BudgetExceeded, ProjectSuspended)
# How long until a job is looked at again that something holds up; what ends or comes free looks sooner.
PAUSES: dict[Why, timedelta] = {
    Why.NONE: timedelta(seconds=30),
    Why.PARALLEL: timedelta(seconds=30),
    Why.CAPACITY: timedelta(seconds=3),
    Why.SHARE: timedelta(seconds=3),
    Why.PRICE: timedelta(seconds=15),
    Why.FUNDS: timedelta(seconds=15),
    Why.COST: timedelta(seconds=15),
    Why.QUOTA: timedelta(seconds=5),
    Why.BUDGET: timedelta(seconds=30),
    Why.BACK_OFF: timedelta(seconds=1),
    Why.REFUSED: timedelta(seconds=30),
}
_LOCKED = Prepared(
    lambda pk: (
        Job.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
        .select_related("project__organization", "offer__site", "user", "token__membership__organization")
        .filter(pk=pk, state=JobState.ACTIVE, pending__gt=0)
    ),
    int,
)
LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


@dataclass(frozen=True)
class Hindrance:
    """What keeps a job's next task from starting, as a word and as whoever refused it said it."""

    why: Why
    message: str = ""
    # Nothing that runs or waits will change it.
    is_over: bool = False
    # Its customer could change it.
    is_own: bool = False
    # Whoever submitted it may not rent any more.
    is_left: bool = False


def start_lane(*, offer_id: int, project_id: int, job_id: int, at: datetime) -> int:
    """Start what of a lane can start now; return how many tasks that were. Safe to run twice at once.

    `job_id` names the one that somebody works on. Others that something of
    their own holds up are not looked at before they are due, so that however
    many those are, they hide nobody behind them.
    """
    lane = Job.objects.filter(offer=offer_id, project=project_id, state=JobState.ACTIVE, pending__gt=0)
    started, looked, blocked = 0, set[int](), set[str]()
    while (left := LANE_MAX - len(looked)) and started < STARTED_MAX:
        rows = _to_look_at(lane, job_id, at).exclude(pk__in=looked).exclude(market__in=blocked)
        found = list(rows.order_by("-priority", "pk").values_list("pk", "market")[:left])
        for pk, market in found:
            if market in blocked or started >= STARTED_MAX:
                continue
            looked.add(pk)
            count, lacks = _start_one(pk, at=at)
            started += count
            if lacks:
                blocked.add(market)
                _let_wait(lane.filter(market=market), at=at)
        if len(found) < left:
            break
    return started


def _to_look_at(lane: QuerySet[Job], job_id: int, at: datetime) -> QuerySet[Job]:
    short = lane.filter(why__in=SHORT).order_by("-priority", "pk")[:SHORT_MAX]
    goes = Q(why__in=["", *LACKING]) | Q(look_at__lte=at)
    return lane.filter(goes | Q(pk=job_id) | Q(pk__in=short.values("pk")))


def _start_one(job_id: int, *, at: datetime) -> tuple[int, bool]:
    """Start what of one job can start now; return how many tasks that were, and whether it lacks GPUs for more."""
    started = 0
    for _ in range(SETS_MAX):
        job, count = _start_set(job_id, at=at)
        started += count
        if job is None or job.why or not count:
            return started, job is not None and job.why in LACKING
    return started, False


def _let_wait(behind: QuerySet[Job], *, at: datetime) -> None:
    """Nobody behind the first one that lacks GPUs starts before it, so nobody needs to look at them sooner."""
    behind.filter(look_at__lte=at).update(look_at=at + PAUSES[Why.CAPACITY])


@transaction.atomic
def _start_set(job_id: int, *, at: datetime) -> tuple[Job | None, int]:
    """Start a set of a job's tasks; return the job as it is now, None where somebody else has it, and how many."""
    job = next(iter(_LOCKED(job_id)), None)
    if job is None or not _lane_is_ours(job):
        return None, 0
    hindrance, started = _start_some(job, at=at)
    if hindrance.is_over and not job.running and not job.verifying:
        reason = EndReason.CANCELLED if hindrance.is_left else EndReason.COST
        begin_to_end(job, reason, hindrance.message or timeline.SPENT(), at=at)
        give_back_spare(job, at=at)
        return None, started
    pause = at + (SOON if hindrance.why == Why.NONE and job.pending else PAUSES[hindrance.why])
    job.why, job.hindrance = hindrance.why, hindrance.message
    changes: dict[str, datetime | None] = {"left_since": (job.left_since or at) if hindrance.is_left else None}
    if hindrance.is_own:
        changes["held_until"] = pause
    if job.look_at is None or job.look_at <= at or job.look_at > pause:
        changes["look_at"] = pause
    if started and job.started_at is None:
        changes["started_at"] = at
    Job.objects.filter(pk=job.pk).update(why=job.why, hindrance=job.hindrance, **changes)
    return job, started


def _lane_is_ours(job: Job) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [f"jobs of {job.project_id} for {job.offer_id}"])
        return bool(cursor.fetchone()[0])


def _start_some(job: Job, *, at: datetime) -> tuple[Hindrance, int]:
    way, refused = pricing.way_now(job, at=at)
    if way is None:
        return Hindrance(*refused, is_own=refused[0] == Why.PRICE), 0
    bound = bounding.of(job, way, at=at)
    room, hindrance = _room(job, way, bound, at)
    if room <= 0:
        return hindrance, 0
    due = Q(not_before=None) | Q(not_before__lte=at)
    waiting = Task.objects.filter(due, job=job, state=TaskState.PENDING).order_by("index")
    if bound.is_rest:
        waiting = waiting.filter(reason=EndReason.INTERRUPTED)
    found = list(waiting[: min(room, SET_MAX)])
    if not found:
        return Hindrance(Why.BACK_OFF), 0
    made, refusal = _rent_for(job, found, way, bound, at)
    Attempt.objects.bulk_create(made)
    moves.tasks(
        job, [TaskMove(one.task_id, TaskState.PENDING, TaskState.RUNNING, attempts=1) for one in made], at=at
    )  # fmt: skip
    if refusal is None and len(made) == room:
        refusal = hindrance if hindrance.why and job.pending else None
    return refusal or Hindrance(Why.NONE), len(made)


def _room(job: Job, way: pricing.Way, bound: bounding.Room, at: datetime) -> tuple[int, Hindrance]:
    """Return how many tasks may start now, and what speaks against one more than that."""
    if refusal := _who_may_not(job, at):
        is_over = job.left_since is not None and at >= job.left_since + LEFT_MAX
        return 0, Hindrance(Why.REFUSED, refusal, is_over=is_over, is_own=True, is_left=True)
    limits = [(bound.attempts, Hindrance(bound.why, bound.message, is_over=bound.is_over))]
    if job.parallel is not None:
        limits.append((job.parallel - job.running, Hindrance(Why.PARALLEL, is_own=True)))
    if way.bid_micros is not None:
        limits.append((pricing.gpus_of(job, at=at) // job.all_gpus - job.running, Hindrance(Why.CAPACITY)))
    elif job.market != Job.Market.RESERVED:
        limits += [(_free(job), Hindrance(Why.CAPACITY)), (_share(job, at), Hindrance(Why.SHARE))]
    return min(limits, key=lambda limit: limit[0])


def _who_may_not(job: Job, at: datetime) -> str:
    token = job.token
    gone = token is not None and (token.revoked_at is not None or token.expires_at <= at)
    may = access.may(Actor(user=job.user, token=token), job.project.organization, "job.change")
    return "" if not gone and job.user.is_active and may else timeline.MAY_NOT()


def _free(job: Job) -> int:
    """Return how many tasks the offer's nodes could take now, by what placement lets their project have."""
    room = prospects.room(project_id=job.project_id, offer_id=job.offer_id, gpus=job.gpus)
    return room.apart if job.replicas == 1 else room.together // job.replicas


def _share(job: Job, at: datetime) -> int:
    """Return how many tasks more the lane's organization may have while others wait for the same GPUs."""
    organization = job.project.organization_id
    waiting = Job.objects.filter(offer=job.offer_id, state=JobState.ACTIVE, pending__gt=0, why__in=["", *LACKING])
    others = waiting.exclude(project__organization=organization).values("project__organization").distinct().count()
    if not others:
        return job.pending
    mine = Job.objects.filter(offer=job.offer_id, project__organization=organization, running__gt=0)
    has: int = mine.aggregate(gpus=Sum(F("running") * F("gpus") * F("replicas"), default=0))["gpus"]
    if not has:
        return 1  # However large it is.
    return max(0, pricing.gpus_of(job, at=at) // (others + 1) - has) // job.all_gpus


def _rent_for(
    job: Job, found: Sequence[Task], way: pricing.Way, bound: bounding.Room, at: datetime
) -> tuple[list[Attempt], Hindrance | None]:
    """Rent for each of these tasks until one is refused; return the attempts, and the refusal."""
    made: list[Attempt] = []
    last, avoided = _earlier(job, found)
    actor = Actor(user=job.user, token=job.token)
    try:
        asked = spec.of(job.spec, deadline=job.deadline)
        order = orders.of_spec(
            asked, project=job.project, offer=job.offer, paid_by=job.public_id if job.contract else ""
        )
        order = replace(order, work=replace(order.work, time_limit_s=bound.time_limit_s))
        for task in found:
            own = orders.of_task(order, job, task, last=last.get(task.pk), avoid=avoided.get(task.pk, ()))
            with transaction.atomic():
                instance = _rent(actor, job, own, way, at)
            made.append(Attempt(
                task=task, job=job, number=task.attempts + 1, instance=instance, created_at=at,
                held_until=_held_until(job, task, last.get(task.pk), at),
            ))  # fmt: skip
    except (BillingError, MarketError, ProvisioningError) as refusal:
        why = next((why for kind, why in WHYS if isinstance(refusal, kind)), Why.REFUSED)
        log.info("task not started", job=job.public_id, why=why)
        return made, Hindrance(why, numbers.said(refusal), is_own=isinstance(refusal, OWN))
    return made, None


def _held_until(job: Job, task: Task, last: Attempt | None, at: datetime) -> datetime | None:
    """Return until when its customer held a task back itself; None: never.

    Of a retry that is later by what they held it back since its last attempt, and not by what that attempt took.
    """
    before = last.held_until if last is not None else None
    if job.held_until is None or job.held_until <= task.state_since:
        return before
    return (before or job.created_at) + (min(at, job.held_until) - task.state_since)


def _rent(actor: Actor, job: Job, order: rentals.Order, way: pricing.Way, at: datetime) -> Instance:
    if way.bid_micros is None:
        return rentals.rent(actor=actor, project=job.project, order=order, at=at)
    return spot.bid(
        actor=actor, project=job.project, order=order, max_price_micros=way.bid_micros, at=at
    ).instance  # fmt: skip


def _earlier(job: Job, found: Sequence[Task]) -> tuple[dict[int, Attempt], dict[int, set[str]]]:
    """Return of tasks that were tried before the last attempt, and the nodes that failed them."""
    again = [task for task in found if task.attempts]
    if not again:
        return {}, {}
    tries = Attempt.objects.filter(task__in=again)
    last = {attempt.task_id: attempt for attempt in tries.filter(number=F("task__attempts"))}
    avoided: dict[int, set[str]] = defaultdict(set)
    faulted = tries.filter(state=AttemptState.FAULTED).order_by("-number")
    for task_id, node in faulted.values_list("task", "instance__assignments__node__public_id"):
        if node is not None and len(avoided[task_id]) < orders.NODES_AVOIDED_MAX:
            avoided[task_id].add(node)
    there = Node.objects.filter(
        offer=job.offer_id, state=Node.State.AVAILABLE, reachability=Node.Reachability.ONLINE
    ).count()  # fmt: skip
    # Where hardly any other node is left, a bad one is better than none.
    return last, {task_id: nodes for task_id, nodes in avoided.items() if len(nodes) < there}
