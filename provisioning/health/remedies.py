"""Repairs: take a broken part out of service, wait until nobody uses it, repair it, and let it back through the gate.

    waiting -> draining -> acting -> verifying -> returned
                   |          |  \\-> draining (the next attempt) | stuck (nobody knows how it ended)
                   \\-> condemned <-/ when its attempts are used up

Each move is made under the row's lock, by a sweep that looks again; an event
only opens a repair or makes it larger.
"""

from datetime import UTC, datetime, timedelta

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from provisioning import instances
from provisioning.errors import ProvisioningError
from provisioning.health import breaker, faults, gate, operations, parts
from provisioning.health.classification import Verdict
from provisioning.health.rules import LEMON, MANUAL, Action, Rule, Severity, current
from provisioning.models import Gpu, HealthEvent, Node, Operation, Remediation

log = structlog.get_logger("provisioning.health")

State = Remediation.State
Outcome = Operation.Outcome
# In these a graver event may still change what will be done.
NOT_BEGUN = {State.WAITING, State.DRAINING}


def demand(*, event: HealthEvent, verdict: Verdict, at: datetime) -> Remediation:
    """Open the repair that an event asks for, or let the one that is open take it up."""
    gpu = event.gpu if verdict.scope == "gpu" else None
    rule = LEMON if _is_lemon(event.node, at) else verdict.rule
    gpu = None if rule is LEMON else gpu
    live = _live(event.node).select_for_update()
    larger = live.filter(gpu=None).first()
    same = live.filter(gpu=gpu).first() if gpu is not None else larger
    if larger is not None and gpu is not None and larger.severity >= rule.severity:
        same = larger
    if same is None:
        return _open(event, gpu=gpu, rule=rule, at=at)
    if rule.severity > same.severity and same.state in NOT_BEGUN:
        _enlarge(same, rule, at=at)
    elif same.clears_at is not None and rule.clears_after_minutes is not None:
        Remediation.objects.filter(pk=same.pk).update(clears_at=at + timedelta(minutes=rule.clears_after_minutes))
    if same.state != State.WAITING:
        _tell(same, event, rule, at=at)
        if event.gpu is not None and rule.severity >= Severity.RESET_GPU:
            parts.quarantine(gpus=[event.gpu], reason=rule.text)
    return same


def _live(node: Node) -> QuerySet[Remediation]:
    return Remediation.objects.filter(node=node, closed_at=None)


def _is_lemon(node: Node, at: datetime) -> bool:
    table = current()
    since = at - timedelta(hours=table.lemon_window_hours)
    repaired = Remediation.objects.filter(node=node, opened_at__gt=since, severity__gte=Severity.RESET_GPU)
    return repaired.exclude(state=State.CANCELLED).count() >= table.lemon_remediations


def _open(event: HealthEvent, *, gpu: Gpu | None, rule: Rule, at: datetime) -> Remediation:
    remediation = Remediation(node=event.node, gpu=gpu, state=State.WAITING, state_since=at, opened_at=event.at)
    _apply_rule(remediation, rule, at=at)
    try:
        with transaction.atomic():
            remediation.save()
    except IntegrityError:  # another worker has just opened it
        return _live(event.node).get(gpu=gpu)
    log.warning(
        "repair opened", repair=remediation.public_id, node=event.node.public_id, rule=rule.id, action=rule.action
    )
    HealthEvent.objects.filter(pk=event.pk).update(remediation=remediation)
    if breaker.admit(node=event.node, at=at):
        begin(remediation, at=at)
    return remediation


def _apply_rule(remediation: Remediation, rule: Rule, *, at: datetime) -> None:
    """Set what a rule asks for. Attempts of earlier repairs of the same part count while they are in its window."""
    ladder = list(rule.ladder)
    since = at - timedelta(hours=rule.window_hours)
    part = Q(gpu=remediation.gpu) if remediation.gpu is not None else Q(node=remediation.node)
    earlier = Operation.objects.filter(part, kind__in=set(ladder), reserved_at__gt=since, remediation__rule=rule.id)
    earlier = earlier.exclude(remediation=remediation.pk) if remediation.pk else earlier
    used = earlier.values("remediation", "attempt").distinct().count()
    remediation.rule, remediation.table_version = rule.id, current().version
    remediation.action, remediation.severity = rule.action, rule.severity
    remediation.reason = rule.text
    remediation.ladder = ladder
    remediation.attempts_max = len(ladder)
    remediation.attempts = min(used, len(ladder))
    remediation.drain_until = {
        "immediate": at,
        "after_timeout": at + timedelta(minutes=rule.drain_minutes),
        "after_completion": None,
    }[rule.drain if rule.action != Action.DEGRADE else "after_completion"]
    clears = rule.clears_after_minutes
    remediation.clears_at = None if clears is None else at + timedelta(minutes=clears)
    remediation.is_for_person = rule.action == Action.DEGRADE and not ladder and clears is None


def _enlarge(remediation: Remediation, rule: Rule, *, at: datetime) -> None:
    _apply_rule(remediation, rule, at=at)
    remediation.save()
    log.warning("repair enlarged", repair=remediation.public_id, rule=rule.id, action=rule.action)


def begin(remediation: Remediation, *, at: datetime) -> None:
    """Take the part out of service and tell those who use it. Only what the breaker has admitted comes here."""
    event = remediation.events.select_related("gpu").order_by("at").first()
    rule = current().named(remediation.rule)
    remediation.state, remediation.state_since = State.DRAINING, at
    remediation.save(update_fields=["state", "state_since"])
    if remediation.gpu is None:
        smaller = _live(remediation.node).exclude(pk=remediation.pk)
        smaller.update(state=State.CANCELLED, closed_at=at, state_since=at)
    if event is not None:
        _tell(remediation, event, rule, at=at)
    if remediation.gpu is not None:
        parts.quarantine(gpus=[remediation.gpu], reason=remediation.reason)
    else:
        if event is not None and event.gpu is not None:
            parts.quarantine(gpus=[event.gpu], reason=remediation.reason)
        parts.hold(node=remediation.node, reason=remediation.reason, at=at)


def _tell(remediation: Remediation, event: HealthEvent, rule: Rule, *, at: datetime) -> None:
    """End the run of whoever used the broken GPU, and tell the others on the node what comes."""
    hit = faults.using(gpu=event.gpu) if event.gpu is not None else []
    if rule.severity >= Severity.RESET_GPU and not rule.spares:
        happened = f"{rule.text} on node {event.node.name}, at {event.at.astimezone(UTC):%H:%M:%S} UTC ({event.code})."
        for instance in instances.lock(one.pk for one in hit):
            faults.fail(instance=instance, happened=happened, fault_at=event.at, at=at)
        hit = []
    until = remediation.drain_until
    ends = f" It may go on until {until.astimezone(UTC):%H:%M} UTC." if until is not None and until > at else ""
    others = faults.using(node=event.node) if remediation.gpu is None else []
    own = {one.pk for one in hit}
    for instance in {one.pk: one for one in (*hit, *others)}.values():
        whose = "" if event.gpu is None or instance.pk in own else "Another GPU of its node: "
        note = f"{whose}{rule.text} ({event.code}); nothing new is placed there.{ends}"
        faults.note(instance=instance, message=note, at=at)


@transaction.atomic
def advance(remediation_id: int, *, at: datetime) -> bool:
    """Take a repair one step further if it can be; False where it waits or another worker has it."""
    rows = Remediation.objects.select_for_update(skip_locked=True, of=("self",)).select_related("node", "gpu")
    remediation = rows.filter(pk=remediation_id, closed_at=None).first()
    if remediation is None:
        return False
    if remediation.gpu is not None and remediation.gpu.removed_at is not None:
        _close_replaced(remediation, at, "Its GPU was taken out of the node.")
        return True
    before = remediation.state, remediation.attempts
    steps = {
        State.WAITING: _wait,
        State.DRAINING: _drain,
        State.ACTING: _act,
        State.STUCK: _look_again,
        State.VERIFYING: _verify,
    }
    if (step := steps.get(State(remediation.state))) is not None:
        step(remediation, at)
    remediation.refresh_from_db(fields=["state", "attempts"])
    return (remediation.state, remediation.attempts) != before


def _wait(remediation: Remediation, at: datetime) -> None:
    if breaker.admit(node=remediation.node, at=at):
        begin(remediation, at=at)


def _drain(remediation: Remediation, at: datetime) -> None:
    """Wait for those who may finish, end the others, and then use the next attempt."""
    used_by = faults.using(gpu=remediation.gpu, node=None if remediation.gpu else remediation.node)
    if used_by and remediation.drain_until is not None and at >= remediation.drain_until:
        if not breaker.admit(node=remediation.node, at=at):
            return
        happened = f"Node {remediation.node.name} is taken out of service for repair: {remediation.reason}."
        for instance in instances.lock(one.pk for one in used_by):
            faults.fail(instance=instance, happened=happened, fault_at=at, at=at)
    if remediation.is_for_person or _is_held(remediation):
        return
    if remediation.action == Action.REPLACE:
        _move(remediation, State.CONDEMNED, at)
    elif remediation.clears_at is not None:
        if at >= remediation.clears_at:
            knock(remediation, at=at)
    elif breaker.admit(node=remediation.node, at=at) and not operations.reserve(
        remediation=remediation, gpus=list(parts.of(remediation)), at=at
    ):
        _move(remediation, State.CONDEMNED, at, "Its attempts are used up.")


def _is_held(remediation: Remediation) -> bool:
    """Return whether anything of anybody is still there; nodes confirm when it is not."""
    here = Gpu.objects.filter(node=remediation.node, removed_at=None)
    gpus = here.filter(holds__released_at=None, holds__isnull=False)
    return (gpus.filter(pk=remediation.gpu_id) if remediation.gpu_id else gpus).exists()


def _act(remediation: Remediation, at: datetime) -> None:
    ends = set(
        remediation.operations.filter(attempt=remediation.attempts, kind__in=remediation.ladder).values_list(
            "outcome", flat=True
        )
    )
    if Outcome.UNKNOWN in ends:
        _move(remediation, State.STUCK, at, "Nobody knows how the operation ended.")
    elif Outcome.PENDING in ends:
        return
    elif ends <= {Outcome.SUCCEEDED}:
        knock(remediation, at=at)
    else:
        _move(remediation, State.DRAINING, at)


def _look_again(remediation: Remediation, at: datetime) -> None:
    """Go on once it was observed how the operation ended."""
    if not remediation.operations.filter(outcome=Outcome.UNKNOWN).exists():
        _move(remediation, State.ACTING, at)


def knock(remediation: Remediation, *, at: datetime) -> None:
    """Come to the gate: everything is wiped and checked before it goes back to placement."""
    _move(remediation, State.VERIFYING, at)
    gate.begin(remediation, at=at)


def _verify(remediation: Remediation, at: datetime) -> None:
    passed = gate.look(remediation, at=at)
    if passed is None:
        return
    if passed.is_open:
        _return(remediation, at)
    elif passed.is_unknown:
        _move(remediation, State.STUCK, at, passed.why)
    else:
        parts.quarantine(gpus=parts.of(remediation) if remediation.gpu else [], reason=passed.why)
        is_spent = remediation.attempts >= remediation.attempts_max
        _move(remediation, State.CONDEMNED if is_spent else State.DRAINING, at, passed.why)


def _return(remediation: Remediation, at: datetime) -> None:
    _move(remediation, State.RETURNED, at, closed=True)
    broken = _live(remediation.node).exclude(gpu=None).values("gpu")
    parts.give_back(
        gpus=[gpu for gpu in parts.of(remediation) if gpu.pk not in set(broken.values_list("gpu", flat=True))]
    )
    if remediation.gpu is None:
        parts.let_go(node=remediation.node, at=at)


def _move(remediation: Remediation, state: State, at: datetime, message: str = "", *, closed: bool = False) -> None:
    old, remediation.state, remediation.state_since, remediation.message = remediation.state, state, at, message
    remediation.closed_at = at if closed else None
    remediation.save(update_fields=["state", "state_since", "message", "closed_at"])
    log.warning("repair moved", repair=remediation.public_id, old=old, new=state, reason=message)


def due(*, limit: int) -> list[int]:
    """Return the repairs that may have something to do."""
    moving = Remediation.objects.filter(closed_at=None).exclude(state=State.CONDEMNED)
    # What an open breaker holds back must not keep the others from their turn, however much it is.
    moving = moving.exclude(state=State.WAITING, node__offer__in=breaker.open_offers())
    if breaker.is_open():
        moving = moving.exclude(state=State.WAITING)
    return list(moving.order_by("pk").values_list("pk", flat=True)[:limit])


@transaction.atomic
def take_out(*, gpu: Gpu, reason: str, at: datetime) -> Remediation:
    """Quarantine a GPU because a person says so; what runs on it may finish, and only a person lets it back."""
    _refuse_removed(gpu)
    if _live(gpu.node).filter(Q(gpu=gpu) | Q(gpu=None)).exists():
        raise ProvisioningError(f"GPU {gpu.index} of {gpu.node} is being repaired already.")
    remediation = Remediation(node=gpu.node, gpu=gpu, state=State.DRAINING, state_since=at, opened_at=at)
    _apply_rule(remediation, MANUAL, at=at)
    remediation.reason = reason[:200]
    remediation.save()
    parts.quarantine(gpus=[gpu], reason=reason)
    return remediation


@transaction.atomic
def release(*, remediation: Remediation, at: datetime) -> None:
    """Lead a part to the gate because a person says so; whether it opens is for the gate to say."""
    locked = Remediation.objects.select_for_update().filter(pk=remediation.pk, closed_at=None).first()
    if locked is None or locked.state not in {State.WAITING, State.DRAINING, State.STUCK, State.CONDEMNED}:
        raise ProvisioningError("It is on its way already.")
    if locked.gpu is not None:
        _refuse_removed(locked.gpu)
    if _is_held(locked):
        raise ProvisioningError("Something still runs there.")
    knock(locked, at=at)


@transaction.atomic
def release_gpu(*, gpu: Gpu, at: datetime) -> Remediation:
    """Lead a quarantined GPU to the gate, also one that nobody repairs: its wipe failed, say."""
    _refuse_removed(gpu)
    repair = _live(gpu.node).filter(Q(gpu=gpu) | Q(gpu=None)).order_by("gpu").first()
    if repair is None:
        repair = take_out(gpu=gpu, reason=gpu.state_reason or MANUAL.text, at=at)
    release(remediation=repair, at=at)
    return repair


@transaction.atomic
def replaced(*, remediation: Remediation, at: datetime) -> None:
    """Note that a person replaced what was broken. A GPU's row stays out for good, since the new one has another
    UUID; a node whose parts were replaced goes to the gate."""
    if remediation.gpu is None:
        release(remediation=remediation, at=at)
        return
    _close_replaced(remediation, at)


def _close_replaced(remediation: Remediation, at: datetime, message: str = "") -> None:
    pending = remediation.operations.filter(outcome=Outcome.PENDING)
    pending.update(outcome=Outcome.CANCELLED, finished_at=at)
    _move(remediation, State.REPLACED, at, message, closed=True)


def _refuse_removed(gpu: Gpu) -> None:
    if gpu.removed_at is not None:
        raise ProvisioningError(f"The GPU {gpu.uuid} was taken out of {gpu.node}.")
