"""The steps that walk an instance through life. Each may be killed before or after, and run again.

    place -> create -> prepare -> verify -> begin -> watch -> tear_down -> rest -> (place)

A stop or terminate request moves the instance and sends its workflow to
`tear_down`; whoever is at work on another step then loses its outcome.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection
from django.utils import timezone

from billing import usage
from billing.prepared import Prepared
from provisioning import calendar, decisions, interruptions, placement, quotas, texts, volumes
from provisioning.agent.disk import FILLED
from provisioning.drivers.protocol import Observation
from provisioning.drivers.registry import driver_for
from provisioning.engine import Deadline, Failed, Next, NotYet, Outcome, Plan, Step, Wait
from provisioning.errors import NoCapacity, StaleInstance, StaleInterruption
from provisioning.models import Assignment, Instance, Node, Phase, Reason
from provisioning.told import Told

QUEUE_LOOK_S = 5
QUEUE_MAX = timedelta(minutes=30)
# A node that answers; an image of many gigabytes over a slow line.
SHORT, LONG = timedelta(seconds=30), timedelta(minutes=30)
# Nodes that report wake the workflow; these looks are for reports that never come.
LOOK_S = 10
# Told of its end, an instance is looked at more often than its deadline alone would have it.
NOTICE_LOOK_S = 300

# What `watch` would act on, found in the rows of all that run at once: looks at each of them would keep a core busy.
ENDED = """
UPDATE provisioning_workflow SET due_at = %(at)s WHERE step = 'watch' AND due_at IS NULL AND instance_id IN (
    SELECT instance.id FROM provisioning_instance instance
    JOIN provisioning_workflow asleep
        ON asleep.instance_id = instance.id AND asleep.step = 'watch' AND asleep.due_at IS NULL
    JOIN provisioning_assignment part ON part.instance_id = instance.id AND part.fence = instance.run
    WHERE instance.phase = 'running'
    GROUP BY instance.id
    HAVING bool_and(part.observed = 'exited') OR bool_or(
        part.observed IN ('failed', 'gone') OR part.observed = 'exited' AND part.exit_code IS DISTINCT FROM 0
    )
    ORDER BY instance.id LIMIT %(limit)s
)
"""

State = Assignment.Observed
BROKEN = {State.FAILED, State.GONE}


def place(instance: Instance) -> Outcome:
    """Make sure that GPUs are held; a start without free GPUs waits in the queue, but not for ever.

    What bids waits until an auction admits it, however long that takes.
    """
    is_spot = instance.market == Instance.Market.SPOT
    if not is_spot and timezone.now() - instance.phase_since > QUEUE_MAX:
        minutes = QUEUE_MAX // timedelta(minutes=1)
        gpus = f"{instance.gpus} GPU{'' if instance.gpus == 1 else 's'}"
        return Failed(Reason.NO_CAPACITY, texts.NO_GPUS(gpus=gpus, minutes=minutes))
    if instance.project.is_suspended:
        return Failed(Reason.OPERATOR, texts.SUSPENDED())
    if is_spot and instance.admitted_at is None:
        return Wait(None)
    return Next("create", commit=claim_gpus)


def claim_gpus(instance: Instance) -> None:
    at = timezone.now()
    if instance.market == Instance.Market.SPOT:
        # Kept from being outbid at the same moment: a loser that holds nothing yet is simply not admitted any more.
        admitted = Instance.objects.select_for_update(no_key=True).filter(pk=instance.pk, admitted_at__isnull=False)
        if not admitted.exists():
            raise NotYet(seconds=QUEUE_LOOK_S)
    if not _assignments(instance):
        _check_room_for_spot(instance)
        try:
            home = volumes.home_of(volumes.of_instance(instance))
            # Who starts again or has paid ahead is no new order; who won an auction is.
            is_owed = instance.market != Instance.Market.SPOT
            placement.claim(instance=instance, at=at, home=home, is_owed=is_owed)
        except NoCapacity as refusal:
            raise NotYet(seconds=QUEUE_LOOK_S, afterwards=partial(decisions.keep, refusal)) from refusal
    instance.move_to(Phase.PLACING, at=at)


def _check_room_for_spot(instance: Instance) -> None:
    is_spot = instance.market == Instance.Market.SPOT
    if is_spot and not calendar.has_room_for_spot(offer_id=instance.offer_id, gpus=instance.gpus):
        raise NotYet(seconds=QUEUE_LOOK_S)


def create(instance: Instance) -> Outcome:
    """Ask each node to get ready."""
    for assignment in _assignments(instance):
        driver_for(assignment).create(assignment)
    return Next("prepare", commit=lambda instance: instance.move_to(Phase.PROVISIONING, at=timezone.now()))


def prepare(instance: Instance) -> Outcome:
    """Wait until every replica is ready to start: a gang starts together or not at all."""
    seen = _look(instance)
    if any(look.state in BROKEN | {State.EXITED} for look in seen):
        return _broken(instance, seen, Reason.NODE_FAILED, texts.NOT_PREPARED())
    if any(look.state != State.PREPARED for look in seen):
        return Wait(LOOK_S)
    return Next("verify", commit=lambda instance: instance.move_to(Phase.VERIFYING, at=timezone.now()))


def verify(instance: Instance) -> Outcome:
    """Check from our side that the customer gets what they pay for: these GPUs, healthy, on nodes that answer."""
    for assignment in _assignments(instance):
        holds_of = assignment.holds.filter(released_at=None, gpu__healthy=True, gpu__uuid__in=assignment.gpu_uuids)
        if holds_of.count() != instance.gpus_per_replica:
            message = texts.UNHEALTHY(node=assignment.node)
            return Failed(Reason.NODE_FAILED, message, node_id=assignment.node_id)
        if assignment.node.reachability != Node.Reachability.ONLINE:
            if assignment.node.driver == "slurm":
                return _wait_for_cluster(instance)
            message = texts.SILENT(node=assignment.node)
            return Failed(Reason.NODE_LOST, message, node_id=assignment.node_id)
    return Next("begin", commit=begin_running)


def _wait_for_cluster(instance: Instance) -> Outcome:
    """A cluster that does not answer says nothing of its nodes: whether one is lost, Slurm tells by the job's end."""
    seen = _look(instance)
    if any(look.state in BROKEN | {State.EXITED} for look in seen):
        return _broken(instance, seen, Reason.NODE_FAILED, texts.NOT_PREPARED())
    return Wait(LOOK_S)


def begin_running(instance: Instance) -> None:
    """The customer has their GPUs from here on, so the meter opens in this very transaction."""
    at = timezone.now()
    instance.move_to(
        Phase.RUNNING,
        at=at,
        ready_at=at,
        observed_generation=instance.generation,
    )
    open_meter(instance, at=at)


def open_meter(instance: Instance, *, at: datetime) -> None:
    """Count this instance's GPUs from `at` on; opening an open meter changes nothing."""
    usage.start(
        organization=instance.project.organization,
        resource_id=instance.public_id,
        resource_name=instance.name,
        labels=_labels(instance),
        quantity=instance.gpus,
        price_version=interruptions.price_of(instance),
        # Hours inside a reservation are paid for already, whoever pays for the others.
        covered_by=instance.reservation.public_id if instance.reservation is not None else instance.paid_by,
        at=instance.charged_until(at),
    )


def _labels(instance: Instance) -> dict[str, object]:
    """Return what its usage is told apart by: `token` is the one that started this run, where it was one; `supplier`
    and `nodes` (with how many GPUs of each) tell whose GPUs they are."""
    offer = instance.offer
    labels: dict[str, object] = {"project": instance.project.public_id, "offer": offer.public_id}
    labels |= {"market": instance.market, "supplier": offer.supplier.public_id, "nodes": _nodes(instance)}
    return labels | ({"token": instance.ordered_with.public_id} if instance.ordered_with else {})


def _nodes(instance: Instance) -> dict[str, int]:
    """Return how many GPUs this run has on each node."""
    gpus = Counter[str]()
    for assignment in _assignments(instance):
        gpus[assignment.node.public_id] += instance.gpus_per_replica
    return dict(gpus)


def begin(instance: Instance) -> Outcome:
    """Let the command start on every replica at once, and wait until each node says that it did."""
    for assignment in _assignments(instance):
        driver_for(assignment).start(assignment)
    seen = _look(instance)
    if any(look.state in BROKEN for look in seen):
        return _broken(instance, seen, Reason.NODE_FAILED, "The node could not start the command.")
    if any(look.state not in {State.RUNNING, State.EXITED} for look in seen):
        return Wait(LOOK_S)
    return Next("watch", commit=note_started)


def note_started(instance: Instance) -> None:
    """Its health is known from here on; what fails before has never run and costs nothing."""
    unknown = Instance.objects.filter(pk=instance.pk, health=Instance.Health.UNKNOWN)
    unknown.update(health=Instance.Health.HEALTHY)


def watch(instance: Instance) -> Outcome:
    """Wait until the command has ended everywhere, or one replica ended badly: a gang ends together.

    What just runs costs no turns: reports wake it, and `wake_what_ended` finds whom they did not. An instance that was
    told of its interruption is watched until one grace before the deadline.
    """
    seen = _look(instance)
    if any(look.state in BROKEN for look in seen):
        return _broken(instance, seen, Reason.NODE_LOST, texts.LOST())
    notice = interruptions.open_of(instance) if instance.phase == Phase.NOTIFIED else None
    ended = [look for look in seen if look.state == State.EXITED]
    # A node that could not reach us holds to the deadline by itself, and says so.
    if notice is not None and any(notice.public_id in look.message for look in ended):
        return Next("tear_down", commit=drain)
    bad = [look for look in ended if look.exit_code != 0]
    if bad or len(ended) == len(seen):
        exit_code = bad[0].exit_code if bad else 0
        at = max(look.exited_at or instance.phase_since for look in ended)
        full = next(filter(None, (FILLED.search(look.message) for look in bad)), None)
        why = full[0] if full else ""
        return Next("tear_down", commit=partial(stop_after_exit, exit_code=exit_code, why=why, at=at))
    if notice is None:
        return Wait(None)
    left_s = (interruptions.ends_at(notice) - timezone.now()).total_seconds()
    return Next("tear_down", commit=drain) if left_s <= 0 else Wait(min(NOTICE_LOOK_S, left_s))


def wake_what_ended(*, limit: int) -> int:
    """Wake what is watched and has ended though nobody woke it; return how many are awake now. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(ENDED, {"at": timezone.now(), "limit": limit})
        return int(cursor.rowcount)


def drain(instance: Instance) -> None:
    """From here on its nodes are asked to end it; it is charged until they did, or until the deadline."""
    try:
        interruptions.drain(instance, at=timezone.now())
    except (StaleInterruption, StaleInstance) as overtaken:
        raise NotYet(seconds=0) from overtaken  # Called off at the last moment: look again at what is true now.


def stop_after_exit(instance: Instance, *, exit_code: int | None, why: str = "", at: datetime) -> None:
    """Stop an instance whose command ended; what is charged ends when the command did. `why`: its node ended it."""
    at = max(at, instance.phase_since)
    instance.move_to(
        Phase.STOPPING,
        at=at,
        reason=Reason.EXITED,
        message=texts.EXITED_BY_NODE(code=exit_code, why=why) if why else texts.EXITED(code=exit_code),
        desired=Instance.Desired.STOPPED,
        exit_code=exit_code,
    )
    usage.stop(resource_id=instance.public_id, at=instance.charged_until(at))


def tear_down(instance: Instance) -> Outcome:
    """Ask each node to remove the instance until each has confirmed that nothing is left."""
    # Every replica is asked before any answer is looked at.
    gone = [driver_for(assignment).destroy(assignment) for assignment in _assignments(instance)]
    if not all(gone):
        return Wait(LOOK_S)
    return Next("rest", commit=finish)


ENDINGS = {
    Phase.STOPPING: Phase.STOPPED,
    Phase.DRAINING: Phase.INTERRUPTED,
    Phase.TERMINATING: Phase.TERMINATED,
}


def finish(instance: Instance) -> None:
    """Give GPUs and quota back: the nodes confirmed that nothing is left."""
    at = timezone.now()
    if (ending := ENDINGS.get(Phase(instance.phase))) is not None:
        ended: dict[str, Any] = {"ended_at": at} if ending == Phase.TERMINATED else {}
        instance.move_to(ending, at=at, reason=instance.reason, message=instance.message, **ended)
        if ending == Phase.TERMINATED:
            volumes.let_go(instance=instance, at=at)
    if instance.quota_held:
        # The instance before its quota, as everybody locks them: of what failed, nothing here has locked it yet.
        Instance.objects.filter(pk=instance.pk).update(quota_held=0)
        quotas.give_back(holder=instance.public_id)
    if ending == Phase.INTERRUPTED:
        interruptions.complete(instance, at=at)
    placement.release(instance=instance, at=at)
    if instance.quota_held and instance.market == Instance.Market.ON_DEMAND:
        calendar.close(offer_id=instance.offer_id, gpus=instance.quota_held)


def rest(instance: Instance) -> Outcome:
    """Nothing to do until somebody starts or terminates it."""
    return Wait(None)


def fail(instance: Instance, failure: Failed) -> None:
    """Write down why; the GPUs stay held until the nodes confirm. What never ran is never charged."""
    at = timezone.now()
    ran = instance.health != Instance.Health.UNKNOWN
    instance.move_to(
        Phase.FAILED,
        at=at,
        reason=failure.reason,
        message=failure.message,
        retryable=failure.retryable,
        health=Instance.Health.UNKNOWN,
        failed_on_id=failure.node_id,
    )
    ended_at = instance.charged_until(min(failure.at or at, at)) if ran else instance.ready_at or at
    usage.stop(resource_id=instance.public_id, at=ended_at)


def _broken(instance: Instance, seen: list[Observation], reason: Reason, otherwise: str) -> Failed:
    """Return the failure of the first replica that is broken; what is gone unasked was lost by its node."""
    for assignment, look in zip(_assignments(instance), seen, strict=True):
        if look.state in BROKEN | {State.EXITED}:
            reason = Reason.NODE_LOST if look.state == State.GONE else reason
            return Failed(reason, look.message or otherwise, at=look.exited_at, node_id=assignment.node_id)
    raise AssertionError("no replica is broken")


_OF_RUN = Prepared(
    lambda instance, run: (
        Assignment.objects.filter(instance=instance, fence=run).select_related("node").order_by("replica")
    ),
    int,
    int,
)


def _assignments(instance: Instance) -> list[Assignment]:
    """Return this run's assignments; those of earlier runs are confirmed gone."""
    return _OF_RUN(instance.pk, instance.run)


def _look(instance: Instance) -> list[Observation]:
    return [driver_for(assignment).observe(assignment) for assignment in _assignments(instance)]


def create_deadline(_instance: Instance) -> Deadline:
    """Longer than a lease of the engine: a killed worker must not cost its instance the start."""
    return _within(timedelta(minutes=5), texts.NOT_ASKED)


def prepare_deadline(instance: Instance) -> Deadline:
    """Images are pulled meanwhile, inputs fetched, and a Slurm job may wait for a cluster that does not answer."""
    if instance.offer.runtime == "process" and not (instance.inputs or instance.checkpoint_sha256):
        return _within(timedelta(seconds=40), texts.NOT_READY)
    return _within(LONG, texts.NOT_READY)


def verify_deadline(instance: Instance) -> Deadline:
    """A Slurm cluster may not answer for a while; a node of ours is looked at at once."""
    return _within(LONG if instance.offer.runtime == "slurm" else SHORT, texts.NOT_CHECKED)


def begin_deadline(instance: Instance) -> Deadline:
    """A Slurm job is told to start by a cluster that may not answer for a while; a node of ours is told at once."""
    return _within(LONG if instance.offer.runtime == "slurm" else SHORT, texts.NOT_BEGUN)


def _within(limit: timedelta, text: Told) -> Deadline:
    """The time is told by the signs of its units, which are the same in every language."""
    seconds = limit // timedelta(seconds=1)
    return Deadline(limit, text(time=f"{seconds} s" if seconds % 60 else f"{seconds // 60} min"))


STEPS: dict[str, Step] = {
    step.__name__: step for step in (place, create, prepare, verify, begin, watch, tear_down, rest)
}
DEADLINES: dict[str, Deadline | Callable[[Instance], Deadline]] = {
    "create": create_deadline,
    "prepare": prepare_deadline,
    "verify": verify_deadline,
    "begin": begin_deadline,
}
PLAN = Plan(steps=STEPS, deadlines=DEADLINES, on_failure="tear_down", fail=fail)
