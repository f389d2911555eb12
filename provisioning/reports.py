"""What nodes report and what they are told: the level-triggered heart of the agent protocol.

A report carries the state of everything on a node; the answer carries
everything that should be there, as one document with a generation number.
Nothing is a command that could be lost. An idle report costs three queries.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet

from provisioning import engine, nodes
from provisioning.models import Assignment, Heartbeat, LogChunk, Node

log = structlog.get_logger("provisioning.reports")

# Per replica and run; later output is dropped here (the agent keeps its own cap below this).
LOG_BYTES_MAX = 64 * 1024 * 1024
STOP_GRACE_S = 10
ENDING = timedelta(seconds=10)


@dataclass(frozen=True)
class Said:
    """What a node says of one assignment."""

    id: str
    fence: int
    state: str
    exit_code: int | None
    exited_ago_ms: int | None
    message: str


@dataclass(frozen=True)
class Report:
    """One node's report, already checked for shape by the gateway."""

    node: str
    key: str
    boot_id: str
    agent_epoch: int
    seq: int
    desired_seen: int
    inventory: tuple[int, Sequence[nodes.GpuFact]] | None = None
    assignments: Sequence[Said] = ()
    logs: Sequence[tuple[str, int, bytes]] = ()
    energy: Sequence[Mapping[str, Any]] = field(default_factory=list)
    telemetry: Sequence[Mapping[str, Any]] = field(default_factory=list)


@transaction.atomic
def take(report: Report, *, at: datetime) -> dict[str, Any]:
    """Write down what a node says and return what it is told (RESULT of the protocol).

    The first write locks the node's heartbeat, so that a report which was
    overtaken waits for the newer one and is then refused.
    """
    node = Node.objects.filter(public_id=report.node).first()
    if node is None or not node.key_hash or not hmac.compare_digest(nodes.digest(report.key), node.key_hash):
        return {"node": report.node, "status": "unauthorized", "poll_after_ms": 30_000}
    seen = Heartbeat.objects.filter(
        Q(agent_epoch__lt=report.agent_epoch) | Q(agent_epoch=report.agent_epoch, seq__lt=report.seq), node=node
    ).update(
        boot_id=report.boot_id,
        agent_epoch=report.agent_epoch,
        seq=report.seq,
        last_seen=at,
        **_readings(report),
    )
    if not seen:
        # An older report that was late on its way; the newer one has been answered already.
        return {"node": report.node, "status": "stale", "poll_after_ms": settings.NODE_POLL_MS["moving"]}
    if node.reachability != Node.Reachability.ONLINE:
        nodes.come_back(node=node, at=at)
    if report.inventory is not None:
        _take_inventory(node, *report.inventory)
    live = list(_live(node)) if report.assignments or report.logs else []
    _take_states(live, report.assignments, at)
    _take_logs(live, report.logs)
    return _answer(node, report, at)


def _readings(report: Report) -> dict[str, list[Mapping[str, Any]]]:
    """Return what was read anew; a report that brings nothing leaves the latest readings as they are."""
    told = {"energy": report.energy, "telemetry": report.telemetry}
    return {name: list(readings) for name, readings in told.items() if readings}


def _live(node: Node) -> QuerySet[Assignment]:
    return Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), node=node).order_by("pk")


def _take_inventory(node: Node, generation: int, gpus: Sequence[nodes.GpuFact]) -> None:
    nodes.take_inventory(node=node, gpus=gpus)
    Heartbeat.objects.filter(node=node).update(inventory_generation=generation)


def _take_states(live: Sequence[Assignment], said: Sequence[Said], at: datetime) -> None:
    """Write down changed states and wake their workflows."""
    rows = {row.public_id: row for row in live}
    changed = [
        (rows[word.id], word)
        for word in said
        if word.id in rows and word.fence == rows[word.id].fence and word.state != rows[word.id].observed
    ]
    if not changed:
        return
    for instance_id in sorted({row.instance_id for row, _ in changed}):
        engine.wake(instance_id)
    if any(word.state == Assignment.Observed.GONE for _, word in changed):
        # What is gone leaves the node's document, so that the node may forget it.
        Node.objects.filter(pk=changed[0][0].node_id).update(desired_generation=F("desired_generation") + 1)
    for row, word in changed:
        ended = word.exited_ago_ms is not None and row.exited_at is None
        Assignment.objects.filter(pk=row.pk).update(
            observed=word.state,
            message=word.message,
            exit_code=word.exit_code if word.exit_code is not None else row.exit_code,
            exited_at=at - timedelta(milliseconds=word.exited_ago_ms or 0) if ended else row.exited_at,
        )
        log.info("observed", assignment=row.public_id, old=row.observed, new=word.state)


def _take_logs(live: Sequence[Assignment], logs: Sequence[tuple[str, int, bytes]]) -> None:
    """Append output in order. A piece that does not follow what we have is refused by the cursor in the answer."""
    rows = {row.public_id: row for row in live}
    for assignment, offset, data in logs:
        row = rows.get(assignment)
        if row is None or offset != row.log_bytes or not data:
            continue
        ours = Assignment.objects.filter(pk=row.pk, log_bytes=offset)
        if not ours.update(log_bytes=F("log_bytes") + len(data)):
            continue
        row.log_bytes += len(data)
        if row.log_bytes <= LOG_BYTES_MAX:
            LogChunk.objects.create(assignment=row, offset=offset, data=data)


def _answer(node: Node, report: Report, at: datetime) -> dict[str, Any]:
    generation = Node.objects.values_list("desired_generation", flat=True).get(pk=node.pk)
    wanted = (
        list(_live(node).select_related("instance")) if generation != report.desired_seen or report.assignments else []
    )
    answer: dict[str, Any] = {
        "node": report.node,
        "status": "ok",
        "poll_after_ms": settings.NODE_POLL_MS[_pace(wanted, at)],
        "desired_generation": generation,
        "log_cursors": {row.public_id: row.log_bytes for row in wanted},
        "lease_ms": nodes.ASSIGNMENT_LEASE // timedelta(milliseconds=1),
    }
    if generation != report.desired_seen:
        answer["desired"] = _document(wanted)
    return answer


def _pace(wanted: Sequence[Assignment], at: datetime) -> str:
    """Return how soon the node should call again: soon while a start or an end is under way there."""
    if any(not _is_settled(row, at) for row in wanted):
        return "moving"
    return "busy" if wanted else "idle"


def _is_settled(row: Assignment, at: datetime) -> bool:
    """Return whether it just runs, or ended long ago and waits for the rest of its gang."""
    if row.desired != Assignment.Desired.RUNNING:
        return False
    if row.observed == Assignment.Observed.EXITED and row.exited_at is not None:
        return at - row.exited_at > ENDING
    return row.observed == Assignment.Observed.RUNNING


def _document(wanted: Sequence[Assignment]) -> list[dict[str, Any]]:
    gangs = [row.instance_id for row in wanted if row.instance.replicas > 1]
    peers = _peers(gangs) if gangs else {}
    return [
        {
            "id": row.public_id,
            "fence": row.fence,
            "instance": row.instance.public_id,
            "desired": row.desired,
            "gpus": row.gpu_uuids,
            "command": row.instance.command,
            "env": row.instance.env,
            "replica": row.replica,
            "replicas": row.instance.replicas,
            "peers": peers.get((row.instance_id, row.fence), []),
            "stop_grace_s": STOP_GRACE_S,
        }
        for row in wanted
    ]


def _peers(instance_ids: Sequence[int]) -> dict[tuple[int, int], list[str]]:
    """Return the host names of each gang, by replica."""
    hosts: dict[tuple[int, int], list[str]] = {}
    rows = Assignment.objects.filter(instance__in=instance_ids).order_by("instance", "fence", "replica")
    for instance_id, fence, hostname in rows.values_list("instance_id", "fence", "node__heartbeat__hostname"):
        hosts.setdefault((instance_id, fence), []).append(hostname or "")
    return hosts
