"""Nodes: announcing one, letting it in, cordoning, draining, and noticing when it falls silent."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from billing import usage
from provisioning import calendar, engine, instances, inventory, leases, placement, texts
from provisioning.errors import InventoryMismatch, JoinTokenUsed, NodeUnknown, ProvisioningError
from provisioning.health import breaker
from provisioning.holds import hold as hold  # noqa: PLC0414  said as nodes.hold by whoever finds a reason
from provisioning.holds import let_go as let_go  # noqa: PLC0414
from provisioning.models import (
    CHARGED_PHASES,
    STARTING,
    Assignment,
    Heartbeat,
    Instance,
    JoinToken,
    Node,
    Phase,
)
from provisioning.protocol import GpuFact, Inventory
from provisioning.steps import open_meter

log = structlog.get_logger("provisioning.nodes")

JOIN_TOKEN_LIFE = timedelta(hours=24)
SUSPECT_AFTER = timedelta(seconds=25)
UNREACHABLE_AFTER = timedelta(seconds=40)
LOST_STATES = {Assignment.Observed.FAILED, Assignment.Observed.GONE}


def digest(secret: str) -> str:
    """Return the form in which a node's secret rests: SHA-256, since the secret itself is 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def issue_join_token(*, node: Node, at: datetime) -> str:
    """Return a new one-time token for this node, to be shown once. Earlier unused ones stop working."""
    secret = f"gmj_{secrets.token_urlsafe(32)}"
    node.join_tokens.filter(used_at=None).delete()
    JoinToken.objects.create(node=node, secret_hash=digest(secret), created_at=at, expires_at=at + JOIN_TOKEN_LIFE)
    return secret


@transaction.atomic
def join(
    *, secret: str, key_hash: str, boot_id: str, facts: Mapping[str, Any], gpus: Sequence[GpuFact], at: datetime
) -> Node:
    """Let an announced node in and write down its GPUs. Repeating it with the same key changes nothing.

    Raises NodeUnknown, JoinTokenUsed (another key came with this token) or
    InventoryMismatch (not the GPUs that were announced).
    """
    token = JoinToken.objects.select_for_update().filter(secret_hash=digest(secret)).first()
    if token is None or (token.used_at is None and token.expires_at <= at):
        raise NodeUnknown("The join token is unknown or has expired; ask a capacity manager for a new one.")
    if token.used_at is not None:
        if hmac.compare_digest(token.key_hash, key_hash):
            return token.node
        raise JoinTokenUsed("Another key has joined with this token; ask for a new one.")
    node = placement.lock([token.node_id])[0]
    if node.state == Node.State.RETIRED:
        raise NodeUnknown(f"{node.name} is retired.")
    if facts["runtime"] != node.offer.runtime:
        raise InventoryMismatch(
            f"{node.offer} is sold on {node.offer.runtime} nodes; this one runs {facts['runtime']}."
        )
    _check_inventory(node, gpus)
    JoinToken.objects.filter(pk=token.pk).update(used_at=at, key_hash=key_hash)
    node.key_hash = key_hash
    if node.state == Node.State.NEW:
        node.state = Node.State.AVAILABLE
    if node.reachability == Node.Reachability.UNKNOWN:
        # One that fell silent comes back with its first report, which opens the meters of what still runs there.
        node.reachability = Node.Reachability.ONLINE
    node.joined_at = at
    node.save(update_fields=["key_hash", "state", "reachability", "joined_at"])
    # A machine that restarted before it joined anew: its first report is to show the new boot beside the old one.
    earlier = Heartbeat.objects.filter(node=node).exclude(boot_id__in=["", boot_id]).values("boot_id", "last_seen")
    kept = earlier.first() or {"boot_id": boot_id, "last_seen": at}
    Heartbeat.objects.update_or_create(
        node=node, defaults={"agent_epoch": 0, "seq": 0, "events_seen": 0, **kept, **facts}
    )
    inventory.take(node=node, said=Inventory(generation=0, gpus=list(gpus)), at=at)
    log.info("node joined", node=node.public_id, name=node.name, gpus=len(gpus))
    return node


def _check_inventory(node: Node, gpus: Sequence[GpuFact]) -> None:
    models = {gpu.model for gpu in gpus}
    if len(gpus) != node.gpu_count or models != {node.gpu_model}:
        found = f"{len(gpus)} × {', '.join(sorted(models)) or 'none'}"
        raise InventoryMismatch(f"{node.name} was announced with {node.gpu_count} × {node.gpu_model}, it has {found}.")
    inventory.refuse_gpus_of_others(node, [gpu.uuid for gpu in gpus])


@transaction.atomic
def cordon(*, node: Node, reason: str, at: datetime) -> None:
    """Place nothing new there, and sell nothing of it ahead; what runs goes on. The last lock of a transaction."""
    _set_state(node, Node.State.CORDONED, reason, allowed=(Node.State.AVAILABLE, Node.State.DRAINING))
    calendar.count(at=at, offer_id=node.offer_id)


@transaction.atomic
def uncordon(*, node: Node) -> None:
    """Let placement use it again."""
    _set_state(node, Node.State.AVAILABLE, "", allowed=(Node.State.CORDONED, Node.State.DRAINING))


@transaction.atomic
def drain(*, node: Node, reason: str, at: datetime) -> None:
    """Place nothing new there, as `cordon` does; whoever drains stops what runs, each in a transaction of its own."""
    _set_state(node, Node.State.DRAINING, reason, allowed=(Node.State.AVAILABLE, Node.State.CORDONED))
    calendar.count(at=at, offer_id=node.offer_id)


def _set_state(node: Node, state: Node.State, reason: str, *, allowed: Sequence[str]) -> None:
    changed = Node.objects.filter(Q(state__in=allowed) | Q(state=state), pk=node.pk).update(
        state=state, state_reason=reason
    )
    if not changed:
        raise ProvisioningError(f"{node.name} is {node.get_state_display()} and cannot become {state.label}.")
    node.state, node.state_reason = state, reason


def living_on(node: Node) -> QuerySet[Instance]:
    """Return the instances that have something on this node, or soon will."""
    live = Assignment.objects.filter(node=node).exclude(observed=Assignment.Observed.GONE)
    return Instance.objects.filter(pk__in=live.values("instance"), phase__in=[*STARTING, *CHARGED_PHASES])


def notice_silence(*, at: datetime, limit: int) -> int:
    """Mark nodes that stopped calling: suspect, unreachable (meters close at the last sign of life), lost.

    What ran on an unreachable node is given up when its own lease has ended it
    there for sure. Where so many fall silent that it must be us, nobody is given up.
    Reads every heartbeat once; there is no index on `last_seen` on purpose.
    """
    is_us = is_our_fault(list(_newly_silent(at)), at)
    changed = 0
    for node_id in list(_to_mark(at, is_us=is_us).order_by("node_id").values_list("node_id", flat=True)[:limit]):
        try:
            changed += _mark(node_id, at, is_us=is_us)
        except Exception:
            log.exception("silence not noted", node=node_id)  # It must not hold up the others.
    return changed


def is_our_fault(node_ids: Sequence[int], at: datetime) -> bool:
    """Count nodes that have just fallen silent; return whether they are so many that the cause must lie with us."""
    return breaker.note_silence(node_ids=node_ids, at=at)


def _newly_silent(at: datetime) -> QuerySet[Heartbeat, int]:
    marked = [Node.Reachability.UNREACHABLE, Node.Reachability.LOST]
    silent = Heartbeat.objects.filter(last_seen__lt=at - UNREACHABLE_AFTER).exclude(node__reachability__in=marked)
    return silent.exclude(node__state=Node.State.RETIRED).order_by("node_id").values_list("node_id", flat=True)


def _to_mark(at: datetime, *, is_us: bool) -> QuerySet[Heartbeat]:
    """Return the heartbeats of nodes that are marked as more reachable than they are, or hold what is over."""
    reach = Node.Reachability
    silent = Q(last_seen__lt=at - SUSPECT_AFTER, node__reachability__in=[reach.UNKNOWN, reach.ONLINE])
    silent |= Q(last_seen__lt=at - UNREACHABLE_AFTER, node__reachability=reach.SUSPECT)
    if not is_us:
        # A Slurm job has no lease that would end it: its node is never taken as lost by its silence alone.
        is_over = Exists(_live(OuterRef("node_id")).filter(leases.over(at)))
        silent |= Q(
            ~Q(node__driver="slurm"), last_seen__lt=at - leases.lost_after(), node__reachability=reach.UNREACHABLE
        )
        silent |= Q(is_over, node__reachability=reach.UNREACHABLE)
    return Heartbeat.objects.filter(silent)


@transaction.atomic
def _mark(node_id: int, at: datetime, *, is_us: bool) -> int:
    # The heartbeat again, under its lock: the node may be reporting this moment.
    silent = _to_mark(at, is_us=is_us).select_for_update(of=("self",)).select_related("node")
    heartbeat = silent.filter(node=node_id).first()
    if heartbeat is None:
        return 0
    node, silence = heartbeat.node, at - heartbeat.last_seen
    if silence > leases.lost_after() and not is_us and node.driver != "slurm":
        reachability = Node.Reachability.LOST
    elif silence > UNREACHABLE_AFTER:
        reachability = Node.Reachability.UNREACHABLE
    else:
        reachability = Node.Reachability.SUSPECT
    log.warning("node silent", node=node.public_id, reachability=reachability, seconds=silence.total_seconds())
    if reachability != Node.Reachability.SUSPECT:
        _close_meters(node, at=heartbeat.last_seen)
        if not is_us:
            for kind in settings.ASSIGNMENT_LEASE_S:
                given_up = _live(node.pk).filter(leases.over(at), instance__lease=kind)
                _give_up(node, given_up, message=_silence_message(node, kind, heartbeat.last_seen))
    Node.objects.filter(pk=node.pk).update(reachability=reachability)
    if reachability == Node.Reachability.LOST:
        calendar.count(at=at, offer_id=node.offer_id)
    return 1


def _live(node: Any) -> QuerySet[Assignment]:
    return Assignment.objects.filter(node=node).exclude(observed=Assignment.Observed.GONE)


def _close_meters(node: Node, *, at: datetime) -> None:
    """Charge for what runs there until `at`, the last that the node proved, and no longer.

    All that is there is locked first, since what follows may wake any of it.
    """
    there = instances.lock(_live(node.pk).values_list("instance_id", flat=True))
    for instance in [one for one in there if Phase(one.phase) in CHARGED_PHASES]:
        Instance.objects.filter(pk=instance.pk).update(health=Instance.Health.UNREACHABLE)
        usage.stop(resource_id=instance.public_id, at=instance.charged_until(at))


def _silence_message(node: Node, kind: str, last_seen: datetime) -> str:
    seconds = round(leases.lease(kind).total_seconds())
    return texts.UNHEARD(node=node.name, since=f"{last_seen:%Y-%m-%d %H:%M:%S}", seconds=seconds)


def _give_up(node: Node, assignments: QuerySet[Assignment], *, message: str) -> None:
    """Take these as gone, which is certain. Their workflows fail or finish; late reports of them count for nothing."""
    found = list(assignments.values_list("pk", "instance_id"))
    if not found:
        return
    for instance_id in sorted({instance_id for _, instance_id in found}):
        engine.wake(instance_id)
    # They leave the node's document, so that a node which comes back ends and removes what it may still have.
    Node.objects.filter(pk=node.pk).update(desired_generation=F("desired_generation") + 1)
    Assignment.objects.filter(pk__in=[pk for pk, _ in found]).update(observed=Assignment.Observed.GONE, message=message)
    log.warning("given up", node=node.public_id, assignments=len(found), reason=message)


@transaction.atomic
def confirm_off(*, node: Node, at: datetime) -> int:
    """Take all that a silent node ran as gone, on a person's word that it is off; return how many assignments."""
    heartbeat = Heartbeat.objects.select_for_update(of=("self",)).select_related("node").filter(node=node).first()
    if heartbeat is None or heartbeat.node.reachability not in {Node.Reachability.UNREACHABLE, Node.Reachability.LOST}:
        raise ProvisioningError(f"{node.name} is not unreachable; what it runs is its own to report.")
    _close_meters(node, at=heartbeat.last_seen)
    there = _live(node.pk)
    count = there.count()
    _give_up(node, there, message=texts.OFF(node=node.name))
    Node.objects.filter(pk=node.pk).update(reachability=Node.Reachability.LOST)
    calendar.count(at=at, offer_id=node.offer_id)
    return count


def note_restart(*, node: Node, last_seen: datetime, ended: Collection[str] = ()) -> None:
    """Take as gone what ran before a node restarted, which is proof enough; not what `ended` by itself before.

    What was asked for and the node has not answered for yet is still to come, and stays.
    """
    _close_meters(node, at=last_seen)
    lost = _live(node.pk).exclude(observed=Assignment.Observed.PENDING).exclude(public_id__in=list(ended))
    _give_up(node, lost, message=texts.RESTARTED(node=node.name))


def come_back(*, node: Node, at: datetime, running: Collection[str]) -> None:
    """Note that a silent node calls again; meters of what it says to be `running` open from now on."""
    Node.objects.filter(pk=node.pk).update(reachability=Node.Reachability.ONLINE)
    node.reachability = Node.Reachability.ONLINE
    ended = _live(node.pk).filter(observed=Assignment.Observed.RUNNING).exclude(public_id__in=list(running))
    for instance_id in _paused(living_on(node).exclude(pk__in=ended.values("instance"))):
        _resume(instance_id, at)


def resume_meters(*, at: datetime, limit: int) -> int:
    """Open the meters of instances whose nodes all answer again; finds what two nodes missed that came back at once."""
    return sum(_resume(instance_id, at) for instance_id in _paused(Instance.objects.all())[:limit])


def _paused(instances_there: QuerySet[Instance]) -> QuerySet[Instance, int]:
    paused = instances_there.filter(phase__in=(Phase.RUNNING, Phase.NOTIFIED), health=Instance.Health.UNREACHABLE)
    return paused.order_by("pk").values_list("pk", flat=True)


@transaction.atomic
def _resume(instance_id: int, at: datetime) -> bool:
    # The row's lock keeps `_mark` of another node of the gang, and a stop, before or after this; never between.
    goes_on = (Phase.RUNNING, Phase.NOTIFIED)
    paused = Instance.objects.filter(pk=instance_id, phase__in=goes_on, health=Instance.Health.UNREACHABLE)
    related = paused.select_related("project__organization", "offer", "price_version")
    instance = related.select_for_update(of=("self",)).first()
    if instance is None or _nodes_of(instance).exclude(reachability=Node.Reachability.ONLINE).exists():
        return False
    states = set(Assignment.objects.filter(instance=instance, fence=instance.run).values_list("observed", flat=True))
    if Assignment.Observed.RUNNING not in states or states & LOST_STATES:
        return False
    Instance.objects.filter(pk=instance.pk).update(health=Instance.Health.HEALTHY)
    open_meter(instance, at=at)
    return True


def _nodes_of(instance: Instance) -> QuerySet[Node]:
    return Node.objects.filter(assignments__instance=instance, assignments__fence=instance.run)
