"""Taking GPUs back with notice: one ladder under one id, whoever wants them.

    advised -> planned -> notified -> draining -> interrupted      called off: cancelled; ended otherwise: ended

Whether it was advised before (`advisories`) makes no difference to anything but its id.
A plan is only a row, so that thousands can be made in one statement; a sweep
announces each in a transaction of its own. From the notice on, the instance's
own workflow counts down (`steps.watch`), asks for the end one grace before the
deadline, and the node holds to the deadline by its own clock even if it cannot
reach us. Only what its nodes confirmed as gone gives its GPUs to others.
"""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.db.models import F, QuerySet, Sum

from billing import credits, rating, usage
from billing.models import PriceVersion, UsageSpan
from billing.public_ids import new_public_id
from provisioning import engine, instances, placement, texts
from provisioning.errors import ProvisioningError, StaleInterruption
from provisioning.models import (
    CHARGED_PHASES,
    INFRASTRUCTURE,
    INTERRUPTION_MOVES,
    OPEN_STATES,
    STARTING,
    TOLD_PHASES,
    Assignment,
    Instance,
    InstanceEvent,
    Interruption,
    Node,
    Phase,
    Reason,
)

log = structlog.get_logger("provisioning.interruptions")

State = Interruption.State
# Ends of a run that its customer did not ask for.
OURS = {*INFRASTRUCTURE, Reason.OPERATOR}


def plan(
    *,
    instance_ids: Collection[int],
    reason: Interruption.Reason,
    min_notice_s: int,
    free_before_s: int = 0,
    price_version: PriceVersion | None = None,
    since: datetime,
) -> None:
    """Plan to take these instances' GPUs back. One that is planned for stays as it is; an advisory becomes the plan.

    What holds no GPUs is left out. `price_version` is what they pay from `since` on.
    """
    words: dict[str, Any] = {
        "reason": reason, "min_notice_s": min_notice_s, "free_before_s": free_before_s,
        "price_version": price_version, "since": since,
    }  # fmt: skip
    _promote(instance_ids, words)
    holding = Instance.objects.filter(pk__in=instance_ids, phase__in=[*STARTING - {Phase.QUEUED}, Phase.RUNNING])
    rows = [
        Interruption(
            public_id=new_public_id("int"),
            instance_id=instance_id,
            run=run,
            **words,
        )
        for instance_id, run in holding.order_by("pk").values_list("pk", "run")
    ]
    # Those that are open already stay; the constraint says which.
    Interruption.objects.bulk_create(rows, ignore_conflicts=True)
    # What was advised while the rows were written kept them out.
    _promote(instance_ids, words)


def _promote(instance_ids: Collection[int], words: dict[str, Any]) -> None:
    """Make plans of the advisories of these instances; those of earlier runs are over."""
    advised = Interruption.objects.filter(instance__in=instance_ids, state=State.ADVISED)
    since = words["since"]
    advised.exclude(run=F("instance__run")).update(state=State.CANCELLED, ended_at=since, settled_at=since)
    advised.filter(instance__phase=Phase.RUNNING).update(state=State.PLANNED, message="", **words)


def announce_due(*, at: datetime, limit: int) -> int:
    """Announce what is planned, oldest first; return how many were looked at."""
    due = list(Interruption.objects.filter(state=State.PLANNED).order_by("pk").values_list("pk", flat=True)[:limit])
    for interruption_id in due:
        try:
            announce(interruption_id, at=at)
        except ProvisioningError:
            log.warning("not announced yet", interruption=interruption_id, exc_info=True)
    return len(due)


@transaction.atomic
def announce(interruption_id: int, *, at: datetime) -> None:
    """Give the notice that binds us, or end at once what has not begun to run: nothing is charged for that."""
    found = Interruption.objects.get(pk=interruption_id)
    (instance,) = instances.lock([found.instance_id])
    found.refresh_from_db()
    if found.state != State.PLANNED:
        return
    phase = Phase(instance.phase)
    if instance.run != found.run or phase not in {*STARTING, Phase.RUNNING}:
        _move(found, State.ENDED, ended_at=at, settled_at=at)
    elif phase == Phase.RUNNING:
        _give_notice(found, instance, at=at)
    else:
        _cut_before_start(found, instance, at=at)


def _give_notice(found: Interruption, instance: Instance, *, at: datetime) -> None:
    at = max(at, instance.phase_since)
    deadline_at = at + timedelta(seconds=found.min_notice_s)
    why = texts.WHY[Interruption.Reason(found.reason)]()
    message = texts.TOLD_TO_GO(why=why, at=f"{deadline_at:%Y-%m-%d %H:%M:%S}")
    engine.wake(instance.pk)
    instance.move_to(Phase.NOTIFIED, at=at, reason=found.reason, message=message)
    _move(found, State.NOTIFIED, notice_at=at, deadline_at=deadline_at, run_began_at=instance.ready_at, message=message)
    if found.price_version is not None:
        usage.reprice(
            resource_id=instance.public_id, price_version=found.price_version, at=instance.charged_until(found.since)
        )
    tell_nodes([instance.pk])


def _cut_before_start(found: Interruption, instance: Instance, *, at: datetime) -> None:
    _move(found, State.ENDED, ended_at=at, settled_at=at)
    if instance.phase == Phase.QUEUED:
        Instance.objects.filter(pk=instance.pk).update(admitted_at=None)
        return
    message = texts.CUT_BEFORE(why=texts.WHY[Interruption.Reason(found.reason)]())
    engine.wake(instance.pk, step="tear_down")
    instance.move_to(Phase.INTERRUPTED, at=max(at, instance.phase_since), reason=found.reason, message=message)


@transaction.atomic
def call_off(*, interruption: Interruption, at: datetime, message: str) -> None:
    """Let the instance go on at its own price. Raises StaleInterruption where that is too late, or done already."""
    (instance,) = instances.lock([interruption.instance_id])
    was_told = interruption.state == State.NOTIFIED
    _move(interruption, State.CANCELLED, ended_at=at, settled_at=at, message=message)
    if not was_told:
        return
    engine.wake(instance.pk)
    instance.move_to(Phase.RUNNING, at=max(at, instance.phase_since), message=message)
    usage.reprice(resource_id=instance.public_id, price_version=instance.price_version, at=instance.charged_until(at))
    tell_nodes([instance.pk])


def open_of(instance: Instance) -> Interruption | None:
    """Return the interruption that is planned or under way for an instance."""
    return Interruption.objects.filter(instance=instance, state__in=OPEN_STATES).first()


def open_for(instances_there: Iterable[Instance]) -> dict[int, Interruption]:
    """Return the interruptions that are planned or under way, by their instance. One query."""
    there = [instance.pk for instance in instances_there]
    return {row.instance_id: row for row in Interruption.objects.filter(instance__in=there, state__in=OPEN_STATES)}


def ladder_for(instances_there: Iterable[Instance]) -> dict[int, Interruption]:
    """Return what is open and what is advised, by their instance: one of both at most. One query."""
    there = [instance.pk for instance in instances_there]
    rows = Interruption.objects.filter(instance__in=there, state__in=[State.ADVISED, *OPEN_STATES])
    return {row.instance_id: row for row in rows}


def of(instance: Instance) -> QuerySet[Interruption]:
    """Return every interruption of an instance, open or over."""
    return Interruption.objects.filter(instance=instance)


def price_of(instance: Instance) -> PriceVersion:
    """Return what an instance pays now: its own price, or that of its notice."""
    told = instance.interruptions.filter(state__in=(State.NOTIFIED, State.DRAINING)).select_related("price_version")
    found = told.first()
    return found.price_version if found is not None and found.price_version is not None else instance.price_version


def ends_at(interruption: Interruption) -> datetime:
    """Return when the end is asked for: one grace before the deadline."""
    assert interruption.deadline_at is not None
    return interruption.deadline_at - interruption.grace


def drain(instance: Instance, *, at: datetime) -> None:
    """Ask for the end: the command gets SIGTERM now, and SIGKILL one grace later."""
    found = open_of(instance)
    if found is None or found.state != State.NOTIFIED:
        raise StaleInterruption(f"{instance.public_id} is not to be interrupted any more")
    _move(found, State.DRAINING, drained_at=at)
    instance.move_to(
        Phase.DRAINING,
        at=max(at, instance.phase_since),
        reason=instance.reason,
        message=instance.message,
        generation=instance.generation + 1,
    )


def complete(instance: Instance, *, at: datetime) -> None:
    """Close the meter at the earlier of the deadline and the command's own end: its nodes have let go of it."""
    found = instance.interruptions.get(state=State.DRAINING)
    assert found.deadline_at is not None
    exits = Assignment.objects.filter(instance=instance, fence=found.run).values_list("exited_at", flat=True)
    ended_at = max((seen for seen in exits if seen is not None), default=at)
    usage.stop(resource_id=instance.public_id, at=instance.charged_until(min(ended_at, found.deadline_at, at)))
    _move(found, State.INTERRUPTED, ended_at=at)


def settle_due(*, at: datetime, limit: int) -> int:
    """Work out what is given back for interruptions that are over, and give it; return for how many."""
    over = Interruption.objects.filter(state__in=(State.INTERRUPTED, State.ENDED), settled_at=None)
    due = list(over.order_by("pk").values_list("pk", flat=True)[:limit])
    for interruption_id in due:
        _settle(interruption_id, at=at)
    return len(due)


@transaction.atomic
def _settle(interruption_id: int, *, at: datetime) -> None:
    locked = Interruption.objects.select_for_update(of=("self",), no_key=True)
    related = locked.select_related("instance__project__organization", "price_version")
    found = related.filter(pk=interruption_id, settled_at=None).first()
    if found is None:
        return
    micros, why = _owed(found)
    if micros:
        credits.compensate(
            organization=found.instance.project.organization,
            amount_micros=micros,
            key=f"interruption:{found.public_id}",
            reason=f"{why} ({found.instance.name})"[:200],
            at=at,
        )
    Interruption.objects.filter(pk=found.pk).update(
        settled_at=at, credited_micros=micros, message=f"{found.message} {why}".strip()[:200]
    )
    log.info("settled", interruption=found.public_id, credited_micros=micros)


def _owed(found: Interruption) -> tuple[int, str]:
    """Return what is to be given back, and why: the whole run if it was young, the whole notice if that was cut."""
    if found.notice_at is None or found.run_began_at is None:
        return 0, ""
    began_at = rating.whole_millisecond(found.run_began_at)
    spans = UsageSpan.objects.filter(resource_id=found.instance.public_id, started_at__gte=began_at)
    charged_micros = spans.filter(started_at__lte=found.ended_at).aggregate(total=Sum("charged_micros"))["total"] or 0
    was_young = found.notice_at - found.run_began_at < timedelta(seconds=found.free_before_s)
    was_taken = found.state == State.INTERRUPTED or _ended_by_us(found)
    if was_taken and was_young and found.reason != Interruption.Reason.SIMULATED:
        return charged_micros, "Interrupted before its first interval was over: the run is free."
    if _was_cut_short(found) and found.price_version is not None:
        notice_ms = found.min_notice_s * 1000 * found.instance.gpus
        per_hour = found.price_version.micros_per_unit_hour
        notice_micros = rating.amount_micros(micros_per_unit_hour=per_hour, unit_milliseconds=notice_ms)
        return notice_micros, f"The notice of {found.min_notice_s} s was cut short: it is given back."
    return 0, ""


def _was_cut_short(found: Interruption) -> bool:
    assert found.deadline_at is not None
    if found.state == State.INTERRUPTED:
        return found.drained_at is not None and found.drained_at < found.deadline_at - found.grace
    return _ended_by_us(found) and found.ended_at is not None and found.ended_at < found.deadline_at


def _ended_by_us(found: Interruption) -> bool:
    """Return whether the run ended during its notice for a reason that its customer could not help."""
    ends = InstanceEvent.objects.filter(instance=found.instance_id, run=found.run, old_phase__in=TOLD_PHASES)
    return ends.exclude(new_phase__in=CHARGED_PHASES).filter(reason__in=OURS).exists()


def documents(instances_there: Iterable[Instance], *, at: datetime) -> dict[int, dict[str, Any]]:
    """Return what nodes are told of the notices of these instances. One query, none where nobody has one."""
    told = [instance.pk for instance in instances_there if instance.phase in TOLD_PHASES]
    if not told:
        return {}
    rows = Interruption.objects.filter(instance__in=told, state__in=(State.NOTIFIED, State.DRAINING))
    return {row.instance_id: _document(row, at) for row in rows}


def _document(row: Interruption, at: datetime) -> dict[str, Any]:
    assert row.notice_at is not None
    assert row.deadline_at is not None
    return {
        "id": row.public_id,
        "reason": row.reason,
        "notice_at": row.notice_at.isoformat(),
        "deadline_at": row.deadline_at.isoformat(),
        "min_notice_s": row.min_notice_s,
        # Clocks differ, so the node counts down by its own from when it hears of it.
        "left_ms": max(0, (row.deadline_at - at) // rating.MILLISECOND),
        "grace_ms": row.grace // rating.MILLISECOND,
    }


def tell_nodes(instance_ids: Collection[int]) -> None:
    """Let the nodes of what runs there fetch what they are told of it."""
    if not instance_ids:
        return
    there = Assignment.objects.filter(instance__in=instance_ids, fence=F("instance__run"))
    node_ids = sorted(set(there.values_list("node_id", flat=True)))
    placement.lock(node_ids)
    Node.objects.filter(pk__in=node_ids).update(desired_generation=F("desired_generation") + 1)


def _move(interruption: Interruption, state: Interruption.State, **changes: Any) -> None:
    """Change its state if the map allows it and nobody was faster; raises StaleInterruption."""
    old = State(interruption.state)
    mine = Interruption.objects.filter(pk=interruption.pk, state=old)
    if state not in INTERRUPTION_MOVES[old] or not mine.update(state=state, **changes):
        raise StaleInterruption(f"{interruption.public_id} is {old} and cannot become {state} any more")
    for name, value in {"state": state, **changes}.items():
        setattr(interruption, name, value)
    log.info("moved", interruption=interruption.public_id, old=old, new=state)
