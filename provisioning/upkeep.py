"""What nodes say of the volumes that they keep, and what follows from it.

A report only writes down what was seen (`observe`), so that it never locks
money. State, health and meter are worked out by `settle`, one volume and one
transaction at a time, from a nudge or from the sweep.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

import structlog
from django.db import transaction
from django.db.models import Q

from billing import holds
from provisioning.errors import NoRoom, PolicyExcludes
from provisioning.models import Heartbeat, Node, Site, Volume, VolumeAttachment
from provisioning.volumes import SILENT, choose_node, is_being_copied, start_meter, stop_meter, tell

log = structlog.get_logger("provisioning.upkeep")

State, Health, Observed = Volume.State, Volume.Health, Volume.Observed


class Said(Protocol):
    """What a node says of one volume."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def used_bytes(self) -> int | None: ...
    @property
    def message(self) -> str: ...


def observe(*, node: Node, said: Sequence[Said], at: datetime) -> None:
    """Write down what a node says of the volumes that it keeps, and which of them are none of ours.

    A node's word counts for its own volumes alone. Nothing is decided here.
    """
    kept = {row.public_id: row for row in Volume.objects.filter(public_id__in=[word.id for word in said])}
    for word in said:
        row = kept.get(word.id)
        if row is None or row.node_id != node.pk or row.state == State.DELETED:
            continue
        changes: dict[str, Any] = {}
        if word.used_bytes is not None:
            changes = {"used_bytes": word.used_bytes, "measured_at": at}
        if word.state != row.observed:
            log.info("volume observed", volume=row.public_id, node=node.public_id, old=row.observed, new=word.state)
            changes["observed"] = word.state
        if row.state != State.DELETING and word.message != row.message:
            changes["message"] = word.message
        if changes:
            Volume.objects.filter(pk=row.pk, node=node).update(**changes)
        if "observed" in changes:
            nudge()
    strays = [word.id for word in said if word.id not in kept or kept[word.id].state == State.DELETED]
    Heartbeat.objects.filter(node=node).exclude(stray_volumes=strays).update(stray_volumes=strays)
    if strays:
        log.warning("a node keeps volumes that are not ours", node=node.public_id, volumes=strays)


def due(*, at: datetime, limit: int) -> list[int]:
    """Return the volumes whose state does not follow yet from what is known, by primary key."""
    silent, alive = Q(node__reachability__in=SILENT), Q(state__in=[State.AVAILABLE, State.ATTACHED])
    answers, broken = Q(node__reachability=Node.Reachability.ONLINE), Q(observed__in=[Observed.FAILED, Observed.GONE])
    moves = (
        Q(state=State.CREATING, observed__in=[Observed.PRESENT, Observed.FAILED])
        | Q(state=State.DELETING, desired=Volume.Desired.PRESENT, delete_after__lte=at)
        | Q(state=State.DELETING, observed=Observed.GONE)
        | (alive & ~Q(health=Health.UNREACHABLE) & silent)
        | (alive & ~Q(health=Health.MISSING) & answers & broken)
        | (alive & ~Q(health=Health.OK) & answers & Q(observed=Observed.PRESENT))
        | (~Q(state=State.DELETED) & silent & Q(kind=Site.VolumeKind.SHARED))
    )
    return list(Volume.objects.filter(moves).order_by("pk").values_list("pk", flat=True)[:limit])


def settle_due(*, at: datetime, limit: int) -> int:
    """Settle every volume that is due, each in a transaction of its own; return how many."""
    settled = 0
    for volume_id in due(at=at, limit=limit):
        try:
            settle(volume_id, at=at)
        except Exception:  # one volume that cannot be settled must not keep the others from it
            log.exception("volume was not settled", volume=volume_id)
            continue
        settled += 1
    return settled


@transaction.atomic
def settle(volume_id: int, *, at: datetime) -> None:
    """Let one volume's state, health and meter follow from what is known. Repeating it changes nothing."""
    rows = Volume.objects.filter(pk=volume_id).select_related("node__heartbeat", "price_version", "site")
    volume = rows.select_for_update(of=("self",), no_key=True).first()
    if volume is None or volume.state == State.DELETED:
        return
    if volume.kind == Site.VolumeKind.SHARED and volume.node.reachability in SILENT:
        _hand_over(volume)
    was = (volume.state, volume.desired, volume.health)
    if volume.state == State.CREATING:
        _settle_creation(volume, at)
    elif volume.state == State.DELETING:
        _settle_deletion(volume, at)
    if volume.state in {State.AVAILABLE, State.ATTACHED}:
        _settle_health(volume, at)
    if was != (volume.state, volume.desired, volume.health):
        log.info("volume moved", volume=volume.public_id, old=was, new=(volume.state, volume.desired, volume.health))


def _settle_creation(volume: Volume, at: datetime) -> None:
    if volume.observed == Observed.PRESENT:
        volume.state, volume.ready_at = State.AVAILABLE, at
        volume.save(update_fields=["state", "ready_at"])
        tell(volume.node_id)
        start_meter(volume, at)
    elif volume.observed == Observed.FAILED:
        volume.state = State.FAILED
        volume.save(update_fields=["state"])
        tell(volume.node_id)
        holds.void_for(resource_id=volume.public_id, at=at)


def _settle_deletion(volume: Volume, at: datetime) -> None:
    if volume.desired == Volume.Desired.PRESENT:
        if volume.delete_after is None or volume.delete_after > at or is_being_copied(volume):
            return
        # From here on nothing can be taken back: the node removes what is in it.
        volume.desired = Volume.Desired.GONE
        volume.save(update_fields=["desired"])
        tell(volume.node_id)
    elif volume.observed == Observed.GONE:
        volume.state, volume.deleted_at = State.DELETED, at
        volume.save(update_fields=["state", "deleted_at"])
        tell(volume.node_id)


def _settle_health(volume: Volume, at: datetime) -> None:
    """Charge while the node answers for the volume; what it cannot reach costs nothing from its last sign of life."""
    health, seen_at = Health(volume.health), at
    if volume.node.reachability in SILENT:
        health, seen_at = Health.UNREACHABLE, volume.node.heartbeat.last_seen
    elif volume.node.reachability == Node.Reachability.ONLINE and volume.observed != Observed.PENDING:
        health = Health.OK if volume.observed == Observed.PRESENT else Health.MISSING
    if health == volume.health:
        return
    volume.health = health
    if health == Health.UNREACHABLE:
        # What it said before is old: it has to say again that the volume is there.
        volume.observed = Observed.PENDING
        tell(volume.node_id)
    volume.save(update_fields=["health", "observed"])
    if volume.is_charged:
        start_meter(volume, at)
    else:
        stop_meter(volume, min(at, seen_at))


def _hand_over(volume: Volume) -> None:
    """Let another node of the site keep a shared volume; where none answers it stays where it is."""
    try:
        node = choose_node(site=volume.site, project_id=volume.project_id)
    except (NoRoom, PolicyExcludes):
        return
    tell(volume.node_id)
    volume.node = node
    volume.save(update_fields=["node"])
    tell(node.pk)


def document(node: Node) -> list[dict[str, Any]]:
    """Return the complete list of the volumes that a node should keep or remove.

    `made`: it was there once, so a node that cannot find it must say so and
    not quietly make an empty one in its place.
    """
    kept = Volume.objects.filter(~Q(state__in=[State.DELETED, State.FAILED]), node=node).select_related("source")
    return [
        {
            "id": row.public_id,
            "size_bytes": row.size_bytes,
            "desired": row.desired,
            "source": row.source.public_id if row.source and not row.ready_at else "",
            "made": row.ready_at is not None,
        }
        for row in kept.order_by("pk")
    ]


def mounts(instance_ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
    """Return what each instance's assignments find where: `{id, path, name, read_only}` by instance."""
    found: dict[int, list[dict[str, Any]]] = {}
    live = VolumeAttachment.objects.filter(instance__in=list(instance_ids), detached_at=None).order_by("path")
    for instance_id, public_id, name, path, read_only in live.values_list(
        "instance_id", "volume__public_id", "volume__name", "path", "read_only"
    ):
        mount = {"id": public_id, "path": path, "name": name, "read_only": read_only}
        found.setdefault(instance_id, []).append(mount)
    return found


def nudge() -> None:
    """Let what follows from a report follow soon; if the message is lost, the sweep does it."""
    from provisioning.tasks import settle_volumes  # noqa: PLC0415  tasks import this room's verbs

    transaction.on_commit(lambda: settle_volumes.apply_async(retry=False), robust=True)
