"""What nodes report and what they are told: the level-triggered heart of the agent protocol.

A report carries the state of everything on a node; the answer carries
everything that should be there, as one document with a generation number.
Nothing is a command that could be lost. Reports that say nothing new are taken
in sets: a batch costs three statements, however many nodes it speaks for, and
each report with news some more of its own.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, Q, QuerySet

from provisioning import engine, inventory, networks, nodes, sessions, telemetry, upkeep
from provisioning.health import events, operations, wipes
from provisioning.models import Assignment, Heartbeat, LogChunk, Node
from provisioning.protocol import Event, Inventory, LogPiece, Report, Said
from provisioning.readings import readings

log = structlog.get_logger("provisioning.reports")

# Per replica and run; later output is dropped here (the agent keeps its own cap below this).
LOG_BYTES_MAX = 64 * 1024 * 1024
STOP_GRACE_S = 10
ENDING = timedelta(seconds=10)
MILLISECOND = timedelta(milliseconds=1)

# Who takes an entry of a node's journal, by its kind: the node, when it happened, what it says.
EventTaker = Callable[[Node, datetime, Mapping[str, Any]], None]
EVENT_TAKERS: dict[str, EventTaker] = {
    "health": events.take,
    "wipe": wipes.take,
    "operation": operations.take,
    "session": sessions.take,
}

# In the order of the nodes, so that two batches cannot deadlock.
HEARD = """
WITH locked AS (
    SELECT node_id, boot_id, last_seen FROM provisioning_heartbeat WHERE node_id = ANY (%(nodes)s::bigint[])
    ORDER BY node_id FOR NO KEY UPDATE
)
UPDATE provisioning_heartbeat heartbeat
SET boot_id = said.boot_id, agent_epoch = said.agent_epoch, seq = said.seq, last_seen = %(at)s,
    clock_skew_ms = said.clock_skew_ms, telemetry = coalesce(said.telemetry, heartbeat.telemetry),
    energy = coalesce(said.energy, heartbeat.energy)
FROM unnest(%(nodes)s::bigint[], %(boot_ids)s::text[], %(epochs)s::bigint[], %(seqs)s::bigint[], %(skews)s::bigint[],
    %(telemetry)s::jsonb[], %(energy)s::jsonb[])
    AS said (node_id, boot_id, agent_epoch, seq, clock_skew_ms, telemetry, energy) JOIN locked USING (node_id)
WHERE heartbeat.node_id = said.node_id
    AND (heartbeat.agent_epoch, heartbeat.seq) < (said.agent_epoch, said.seq)
RETURNING heartbeat.node_id, locked.boot_id, locked.last_seen
"""


def take_all(said: Sequence[Report], *, at: datetime) -> list[dict[str, Any]]:
    """Take the reports of many nodes and return an answer for each, in the same order.

    An error of ours with one node must not make the others of its batch look
    silent: it is that node's answer, nothing of its report counts, and it comes again.
    """
    known = {node.public_id: node for node in Node.objects.filter(public_id__in={report.node for report in said})}
    live = _live_by_node([node.pk for node in known.values()])
    calm: dict[int, Report] = {}
    for report in said:
        node = known.get(report.node)
        if node is not None and node.pk not in calm and _is_calm(report, node, live.get(node.pk, ())):
            calm[node.pk] = report
    heard = _hear(calm, at=at) if calm else {}
    answers = []
    for report in said:
        node = known.get(report.node)
        if node is not None and calm.get(node.pk) is report:
            is_heard = node.pk in heard
            answers.append(_answer(node, report, live.get(node.pk, ()), at=at) if is_heard else _stale(report))
        else:
            answers.append(_taken(report, at=at))
    return answers


def _live_by_node(node_ids: Sequence[int]) -> dict[int, list[Assignment]]:
    """Return what is not gone yet, by node."""
    found: dict[int, list[Assignment]] = {}
    rows = Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), node__in=node_ids)
    for row in rows.select_related("instance").order_by("pk"):
        found.setdefault(row.node_id, []).append(row)
    return found


def _is_calm(report: Report, node: Node, live: Sequence[Assignment]) -> bool:
    """Return whether a report only says that all is as we know it; taking it is then one row of a set."""
    if report.inventory or report.logs or report.events or report.volumes:
        return False
    if report.desired_seen != node.desired_generation or node.reachability != Node.Reachability.ONLINE:
        return False
    rows = {row.public_id: row for row in live}
    as_known = all(word.id not in rows or not _is_news(rows[word.id], word) for word in report.assignments)
    return as_known and _is_its_key(report, node)


def _is_its_key(report: Report, node: Node) -> bool:
    return bool(node.key_hash) and hmac.compare_digest(nodes.digest(report.key), node.key_hash)


def _hear(calm: Mapping[int, Report], *, at: datetime) -> dict[int, tuple[str, datetime]]:
    """Note that these nodes live and what they read; return how those were before whose report was not overtaken.

    For each its boot, and when it was last seen.
    """
    said = list(calm.values())
    with connection.cursor() as cursor:
        cursor.execute(
            HEARD,
            {
                "nodes": list(calm),
                "boot_ids": [report.boot_id for report in said],
                "epochs": [report.agent_epoch for report in said],
                "seqs": [report.seq for report in said],
                "skews": [_skew_ms(report, at) for report in said],
                # A report that brings nothing leaves the latest readings as they are.
                "telemetry": [_json(readings(report.telemetry)) for report in said],
                "energy": [_json(readings(report.energy)) for report in said],
                "at": at,
            },
        )
        heard = {node_id: (boot_id, last_seen) for node_id, boot_id, last_seen in cursor.fetchall()}
    telemetry.record([(node_id, calm[node_id]) for node_id in sorted(heard)], at=at)
    return heard


def _json(found: list[dict[str, Any]]) -> str | None:
    return msgspec.json.encode(found).decode() if found else None


def _skew_ms(report: Report, at: datetime) -> int | None:
    """Return how far ahead of ours the node's wall clock is; only people read it, nothing here goes by it."""
    return None if report.clock_ms is None else report.clock_ms - round(at.timestamp() * 1000)


def _taken(report: Report, *, at: datetime) -> dict[str, Any]:
    try:
        return take(report, at=at)
    except Exception:
        log.exception("report failed", node=report.node)
        return {"node": report.node, "status": "error", "poll_after_ms": settings.NODE_POLL_MS["busy"]}


@transaction.atomic
def take(report: Report, *, at: datetime) -> dict[str, Any]:
    """Write down what one node says and return what it is told.

    The first write locks the node's heartbeat, so that a report which was
    overtaken waits for the newer one and is then refused.
    """
    node = Node.objects.filter(public_id=report.node).first()
    if node is None or not _is_its_key(report, node):
        return {"node": report.node, "status": "unauthorized", "poll_after_ms": 30_000}
    heard = _hear({node.pk: report}, at=at)
    if not heard:
        return _stale(report)
    boot_id, last_seen = heard[node.pk]
    if boot_id != report.boot_id:
        ended = [word.id for word in report.assignments if word.state == "exited" and word.exit_code is not None]
        nodes.note_restart(node=node, last_seen=last_seen, ended=ended)
    if node.reachability != Node.Reachability.ONLINE:
        running = [word.id for word in report.assignments if word.state == "running"]
        nodes.come_back(node=node, at=at, running=running)
    if report.inventory is not None:
        _take_inventory(node, report.inventory, at)
    if report.volumes:
        upkeep.observe(node=node, said=report.volumes, at=at)
    live = list(_live(node)) if report.assignments or report.logs else []
    _take_states(live, report.assignments, at)
    take_logs(live, report.logs)
    events_seen = _take_events(node, report.events, at) if report.events else 0
    node.refresh_from_db(fields=["desired_generation"])
    answer = _answer(node, report, list(_live(node).select_related("instance")), at=at)
    return answer | {"events_seen": events_seen} if report.events else answer


def _stale(report: Report) -> dict[str, Any]:
    """Return the answer to an older report that was late on its way; the newer one has been answered already."""
    return {"node": report.node, "status": "stale", "poll_after_ms": settings.NODE_POLL_MS["moving"]}


def _live(node: Node) -> QuerySet[Assignment]:
    return Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), node=node).order_by("pk")


def _take_inventory(node: Node, said: Inventory, at: datetime) -> None:
    inventory.take(node=node, said=said, at=at)
    Heartbeat.objects.filter(node=node).update(
        inventory_generation=said.generation, access=msgspec.to_builtins(said.access)
    )


def _is_news(row: Assignment, word: Said) -> bool:
    """Return whether a node says something of an assignment that we do not know yet; other fences are nobody's."""
    if word.fence != row.fence:
        return False
    return word.state != row.observed or word.ports != row.ports or _progress(word) != row.progress


def _progress(word: Said) -> dict[str, Any] | None:
    return None if word.progress is None else msgspec.structs.asdict(word.progress)


def _take_states(live: Sequence[Assignment], said: Sequence[Said], at: datetime) -> None:
    """Write down what is new, and wake the workflows of those whose state changed."""
    rows = {row.public_id: row for row in live}
    news = [(rows[word.id], word) for word in said if word.id in rows and _is_news(rows[word.id], word)]
    moved = [(row, word) for row, word in news if word.state != row.observed]
    for instance_id in sorted({row.instance_id for row, _ in moved}):
        engine.wake(instance_id)
    if any(word.state == Assignment.Observed.GONE.value for _, word in moved):
        # What is gone leaves the node's document, so that the node may forget it.
        Node.objects.filter(pk=moved[0][0].node_id).update(desired_generation=F("desired_generation") + 1)
    for row, word in news:
        ended = word.exited_ago_ms is not None and row.exited_at is None
        Assignment.objects.filter(pk=row.pk).update(
            observed=word.state,
            message=word.message,
            exit_code=word.exit_code if word.exit_code is not None else row.exit_code,
            exited_at=at - timedelta(milliseconds=word.exited_ago_ms or 0) if ended else row.exited_at,
            progress=_progress(word),
            ports=word.ports,
        )
    for row, word in moved:
        if word.state == Assignment.Observed.WIPING.value:
            wipes.show_wiping(row)
        log.info("observed", assignment=row.public_id, old=row.observed, new=word.state)


def take_logs(live: Sequence[Assignment], logs: Sequence[LogPiece]) -> None:
    """Append output in order. A piece that does not follow what we have is refused by the cursor in the answer."""
    rows = {row.public_id: row for row in live}
    for piece in logs:
        row = rows.get(piece.assignment)
        if row is None or piece.offset != row.log_bytes or not piece.data:
            continue
        ours = Assignment.objects.filter(pk=row.pk, log_bytes=piece.offset)
        if not ours.update(log_bytes=F("log_bytes") + len(piece.data)):
            continue
        row.log_bytes += len(piece.data)
        if row.log_bytes <= LOG_BYTES_MAX:
            LogChunk.objects.create(assignment=row, offset=piece.offset, data=piece.data)


def _take_events(node: Node, events: Sequence[Event], at: datetime) -> int:
    """Take each entry of the node's journal once, in order; return the last that is taken.

    One that cannot be taken is left out with an error of ours in the log: the
    node would come with it again for ever, and look silent meanwhile. What only
    the database could not do this moment fails the whole report, which comes again.
    """
    heartbeat = Heartbeat.objects.only("events_seen").get(node=node)
    for event in sorted(events, key=lambda event: event.n):
        if event.n <= heartbeat.events_seen:
            continue
        heartbeat.events_seen = event.n
        take_event = EVENT_TAKERS.get(event.kind)
        if take_event is None:
            log.error("event of an unknown kind", node=node.public_id, kind=event.kind)
            continue
        try:
            with transaction.atomic():
                take_event(node, at - (event.ago_ms or 0) * MILLISECOND, event.body)
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            log.exception("event failed", node=node.public_id, n=event.n, kind=event.kind)
    heartbeat.save(update_fields=["events_seen"])
    return heartbeat.events_seen


def _answer(node: Node, report: Report, live: Sequence[Assignment], *, at: datetime) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "node": report.node,
        "status": "ok",
        "poll_after_ms": settings.NODE_POLL_MS[_pace(live, at)],
        "desired_generation": node.desired_generation,
        "log_cursors": {row.public_id: row.log_bytes for row in live},
    }
    if node.desired_generation != report.desired_seen:
        answer["desired"] = {
            "assignments": _assignments(live),
            "operations": operations.document(node),
            "volumes": upkeep.document(node),
        }
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


def _assignments(wanted: Sequence[Assignment]) -> list[dict[str, Any]]:
    gangs = [row.instance_id for row in wanted if row.instance.replicas > 1]
    peers = _peers(gangs) if gangs else {}
    mounts = upkeep.mounts(row.instance_id for row in wanted) if wanted else {}
    keys = sessions.keys_of(row.instance for row in wanted) if wanted else {}
    return [
        {
            "id": row.public_id,
            "fence": row.fence,
            "instance": row.instance.public_id,
            "name": row.instance.name,
            "desired": row.desired,
            "gpus": row.gpu_uuids,
            "image": row.instance.image,
            "command": row.instance.command,
            "env": row.instance.env,
            "ports": row.instance.ports,
            "lease_s": settings.ASSIGNMENT_LEASE_S[row.instance.lease],
            "ssh_keys": keys.get(row.instance.project_id, []),
            "volumes": mounts.get(row.instance_id, []),
            "network": networks.network_of(row.instance, replica=row.replica),
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
