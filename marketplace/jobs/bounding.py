"""How many attempts may start: what a job may cost pays for them, or by the terms of its contract the platform does.

What runs counts with all the time that it may take, so that the bound holds however long that is.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import Coalesce

from marketplace.contracts import bounds, runs, sellers
from marketplace.contracts import terms as written
from marketplace.jobs import orders
from marketplace.jobs.pricing import Way
from marketplace.models import (
    OPEN_JOBS,
    Attempt,
    AttemptState,
    ContractVersion,
    EndReason,
    Job,
    Task,
    TaskState,
)

Why = Job.Why
HOUR_S = 3600


@dataclass(frozen=True)
class Room:
    """So many attempts may start, each with this much time; `why` and `message` speak against one more.

    It is over where nothing that runs or waits can make more room. A rest is for what was interrupted alone.
    """

    attempts: int
    time_limit_s: int | None
    why: Why = Why.COST
    message: str = ""
    is_over: bool = False
    is_rest: bool = False


def of(job: Job, way: Way, *, at: datetime) -> Room:
    """Return for how many attempts at a job there is room, if all that run take all their time."""
    if job.time_limit_s is None:
        return Room(job.pending, None)
    each = orders.attempt_micros(gpus=job.all_gpus, rate=way.rate_micros, time_limit_s=job.time_limit_s)
    if job.contract:
        return _by_terms(job, each, at=at)
    if not each or job.most_micros is None:
        return Room(job.pending, job.time_limit_s)
    left = job.most_micros - job.spent_micros - set_aside(Attempt.objects.filter(job=job))
    room = Room(left // each, job.time_limit_s)
    if room.attempts > 0 or job.running:
        return room
    return _with_what_is_left(job, way, left)


def set_aside(attempts: QuerySet[Attempt]) -> int:
    """Return what those of these attempts that run cost at most: each at its own bid, or the price when it began."""
    live = attempts.filter(state=AttemptState.RUNNING).exclude(instance__time_limit_s=None).order_by()
    rate = Coalesce("instance__bid__price_micros", "instance__price_version__micros_per_unit_hour")
    alike = live.annotate(rate=rate, all_gpus=F("job__gpus") * F("job__replicas"))
    rows = alike.values_list("rate", "all_gpus", "instance__time_limit_s").annotate(count=Count("pk"))
    return sum(
        count * orders.attempt_micros(gpus=gpus, rate=rate, time_limit_s=limit) for rate, gpus, limit, count in rows
    )


def _with_what_is_left(job: Job, way: Way, left: int) -> Room:
    """Let what was interrupted have the time that is still paid for, where that is less than all of it.

    It used up a part of its time: what goes on from there needs no more than the rest.
    """
    assert job.time_limit_s is not None
    over = Room(0, job.time_limit_s, is_over=True)
    if not Task.objects.filter(job=job, state=TaskState.PENDING, reason=EndReason.INTERRUPTED).exists():
        return over
    seconds = min(job.time_limit_s, max(0, left) * HOUR_S // (job.all_gpus * way.rate_micros) + 1)
    while seconds and orders.attempt_micros(gpus=job.all_gpus, rate=way.rate_micros, time_limit_s=seconds) > left:
        seconds -= 1
    return Room(1, seconds, is_rest=True) if seconds else over


def _by_terms(job: Job, each: int, *, at: datetime) -> Room:
    """Return for how many attempts there is room by the terms of its contract.

    Inside a reservation an attempt costs nothing by the list, and verifying its result costs what it always does.
    """
    room, with_verifier = Room(0, job.time_limit_s), each + job.verify_micros
    if not with_verifier:
        return replace(room, attempts=job.pending)
    version, organization = bounds.version_of(job), job.project.organization
    work = written.of(version.terms).work
    if work is None or each > work["attempt_micros"]:
        return replace(room, why=Why.PRICE, message=bounds.too_dear(version, each))
    sold = bounds.sold_with(version).values("public_id")
    mine = Attempt.objects.filter(job__project__organization=organization, job__contract__in=sold)
    left = bounds.unpaid_left(version, organization) - set_aside(mine.filter(instance__reservation=None))
    attempts = left // each if each else job.pending if left > 0 else 0
    room = replace(room, attempts=max(0, attempts), message=bounds.used_up(version))
    if not room.attempts:
        return replace(room, is_over=not bounds.is_under_way(version, organization))
    of_all = of_seller(version, at=at)
    if of_all is None or of_all // with_verifier >= room.attempts:
        return room
    room = replace(room, attempts=max(0, of_all // with_verifier), message=sellers.refusal(version, with_verifier))
    if room.attempts:
        return room
    return replace(room, is_over=sellers.never_fits(version, with_verifier) or not sellers.is_under_way(version))


def of_seller(version: ContractVersion, *, at: datetime) -> int | None:
    """Return what more attempts under all contracts of a version's seller may cost by the list; None: no bound.

    What runs counts with all its time, and with all that verifying its result may take until that has its verdict.
    Nobody else starts any until this transaction ends.
    """
    if not sellers.lock(version):
        return None
    seller, currency = version.contract.seller, written.of(version.terms).currency
    sold = sellers.sold_by(seller).values("public_id")
    jobs = Job.objects.filter(contract__in=sold, project__organization__currency=currency)
    mine = Attempt.objects.filter(job__in=jobs, instance__reservation=None)
    aside = set_aside(mine) + runs.set_aside(jobs.filter(state__in=OPEN_JOBS))
    return sellers.limit_micros(seller, currency) - sellers.unpaid_micros(seller, currency, at=at) - aside


def promised(version: ContractVersion) -> int:
    """Return what the next attempts, and verifying their results, cost of jobs under contracts of a version's seller of
    which nothing runs yet."""
    sold = sellers.sold_by(version.contract.seller).values("public_id")
    waiting = Job.objects.filter(contract__in=sold, state__in=OPEN_JOBS, running=0, pending__gt=0)
    mine = waiting.filter(project__organization__currency=written.of(version.terms).currency)
    return int(mine.aggregate(total=Sum(F("attempt_micros") + F("verify_micros"), default=0))["total"])
