"""What nodes report and what they are told: the level-triggered heart of the agent protocol.

A report carries the state of everything on a node; the answer carries
everything that should be there, as one document with a generation number.
Nothing is a command that could be lost. That nodes live and what they read is
taken in sets: a batch costs three statements, however many nodes it speaks for.
News are taken one report at a time and a few seconds long; a report whose news
must wait is heard and answered all the same, and says them again.
"""

import hmac
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, Q

from billing.prepared import AnyNumberOf, Prepared
from provisioning import (
    advisories,
    calendar,
    counters,
    engine,
    interruptions,
    inventory,
    networks,
    node_files,
    nodes,
    sessions,
    statements,
    telemetry,
    upkeep,
)
from provisioning.health import events, operations, wipes
from provisioning.models import Assignment, Heartbeat, Instance, LogChunk, Node
from provisioning.protocol import Event, Inventory, LogPiece, Report, Said
from provisioning.readings import readings

log = structlog.get_logger("provisioning.reports")

# Per replica and run; later output is dropped here (the agent keeps its own cap below this).
LOG_BYTES_MAX = 64 * 1024 * 1024
STOP_GRACE_S = 10
ENDING = timedelta(seconds=10)
MILLISECOND = timedelta(milliseconds=1)
# How long a batch takes news; what is left comes again with the nodes' next reports.
NEWS_S = 5.0

# Who takes an entry of a node's journal, by its kind: the node, when it happened, what it says.
EventTaker = Callable[[Node, datetime, Mapping[str, Any]], None]
EVENT_TAKERS: dict[str, EventTaker] = {
    "health": events.take,
    "wipe": wipes.take,
    "operation": operations.take,
    "session": sessions.take,
    "counters": counters.take,
    "statement": statements.take,
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
    AND (heartbeat.boot_id = said.boot_id OR %(any_boot)s)
RETURNING heartbeat.node_id, locked.boot_id, locked.last_seen, heartbeat.events_seen
"""

# What is not gone yet on some nodes.
_LIVE = Prepared(
    lambda nodes: (
        Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), AnyNumberOf(F("node"), nodes))
        .select_related("instance")
        .order_by("pk")
    ),
    str,
)


def take_all(said: Sequence[Report], *, at: datetime) -> list[dict[str, Any]]:
    """Take the reports of many nodes and return an answer for each, in the same order.

    All are heard before any news are taken, so that no node looks silent while
    others tell much. An error of ours with one node must not touch the others of
    its batch: it is that node's answer, none of its news count, and they come again.
    """
    known = {node.public_id: node for node in Node.objects.filter(public_id__in={report.node for report in said})}
    live = _live_by_node([node.pk for node in known.values()])
    first: dict[int, int] = {}
    for place, report in enumerate(said):
        node = known.get(report.node)
        if node is not None and node.pk not in first and _is_ordinary(report, node):
            first[node.pk] = place
    heard = _hear({node_id: said[place] for node_id, place in first.items()}, at=at) if first else {}
    answers: dict[int, dict[str, Any]] = {}
    news: list[int] = []
    for node_id, place in first.items():
        report, node = said[place], known[said[place].node]
        if node_id not in heard:
            continue
        if _is_calm(report, live.get(node_id, ())):
            answers[place] = _answer(node, report, live.get(node_id, ()), at=at)
        else:
            news.append(place)
    answers |= _take_news_of_many({place: (known[said[place].node], said[place]) for place in news}, live, at=at)
    return [answers[place] if place in answers else _taken(report, at=at) for place, report in enumerate(said)]


def _take_news_of_many(
    news: Mapping[int, tuple[Node, Report]], live: Mapping[int, Sequence[Assignment]], *, at: datetime
) -> dict[int, dict[str, Any]]:
    """Take the news of reports that were heard, as long as there is time; all are answered."""
    answers = {}
    until = time.monotonic() + NEWS_S
    # Those of whom nothing is taken this time must not be the same ones the next time.
    for place in random.sample(list(news), len(news)):
        node, report = news[place]
        if time.monotonic() < until or not _can_wait(report):
            answers[place] = _tried(partial(take_news, node, report, at=at), report)
        else:
            waits = _answer(node, report, live.get(node.pk, ()), at=at)
            answers[place] = waits | {"poll_after_ms": settings.NODE_POLL_MS["busy"]}
    return answers


def _can_wait(report: Report) -> bool:
    """Return whether a node says again, after an answer, what the answer does not acknowledge."""
    return not (report.inventory or report.volumes)


def _live_by_node(node_ids: Sequence[int]) -> dict[int, list[Assignment]]:
    """Return what is not gone yet, by node."""
    found: dict[int, list[Assignment]] = {}
    for row in _LIVE(list(node_ids)):
        found.setdefault(row.node_id, []).append(row)
    return found


def _is_ordinary(report: Report, node: Node) -> bool:
    """Return whether to hear it is all that must be done in one go: the node comes back from nowhere."""
    return node.reachability == Node.Reachability.ONLINE and _is_its_key(report, node)


def _is_calm(report: Report, live: Sequence[Assignment]) -> bool:
    """Return whether a report only says that all is as we know it; the node may have to hear of changes."""
    if report.inventory or report.logs or report.events or report.volumes:
        return False
    rows = {row.public_id: row for row in live}
    return all(word.id not in rows or not _is_news(rows[word.id], word) for word in report.assignments)


def _is_its_key(report: Report, node: Node) -> bool:
    return bool(node.key_hash) and hmac.compare_digest(nodes.digest(report.key), node.key_hash)


class Heard(NamedTuple):
    """How a node stood before its report was heard."""

    boot_id: str
    last_seen: datetime
    events_seen: int


def _hear(reports: Mapping[int, Report], *, at: datetime, any_boot: bool = False) -> dict[int, Heard]:
    """Note that these nodes live and what they read; return those whose report was not overtaken.

    A machine that has started anew is not among them, unless `any_boot`: what that means
    must be written down in the same transaction.
    """
    said = list(reports.values())
    with connection.cursor() as cursor:
        cursor.execute(
            HEARD,
            {
                "nodes": list(reports),
                "boot_ids": [report.boot_id for report in said],
                "epochs": [report.agent_epoch for report in said],
                "seqs": [report.seq for report in said],
                "skews": [_skew_ms(report, at) for report in said],
                # A report that brings nothing leaves the latest readings as they are.
                "telemetry": [_json(readings(report.telemetry)) for report in said],
                "energy": [_json(readings(report.energy)) for report in said],
                "at": at,
                "any_boot": any_boot,
            },
        )
        heard = {node_id: Heard(*before) for node_id, *before in cursor.fetchall()}
    telemetry.record([(node_id, reports[node_id]) for node_id in sorted(heard)], at=at)
    return heard


def _json(found: list[dict[str, Any]]) -> str | None:
    return msgspec.json.encode(found).decode() if found else None


def _skew_ms(report: Report, at: datetime) -> int | None:
    """Return how far ahead of ours the node's wall clock is; only people read it, nothing here goes by it."""
    return None if report.clock_ms is None else report.clock_ms - round(at.timestamp() * 1000)


def _taken(report: Report, *, at: datetime) -> dict[str, Any]:
    return _tried(partial(take, report, at=at), report)


def _tried(taking: Callable[[], dict[str, Any]], report: Report) -> dict[str, Any]:
    try:
        return taking()
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
    heard = _hear({node.pk: report}, at=at, any_boot=True)
    if not heard:
        return _stale(report)
    before = heard[node.pk]
    if before.boot_id != report.boot_id:
        ended = [word.id for word in report.assignments if word.state == "exited" and word.exit_code is not None]
        nodes.note_restart(node=node, last_seen=before.last_seen, ended=ended)
    if node.reachability != Node.Reachability.ONLINE:
        running = [word.id for word in report.assignments if word.state == "running"]
        nodes.come_back(node=node, at=at, running=running)
    return _take_news(node, report, events_seen=before.events_seen, at=at)


@transaction.atomic
def take_news(node: Node, report: Report, *, at: datetime) -> dict[str, Any]:
    """Take what is new in a report that was heard already, and return what the node is told.

    Between the two a newer report may have come: it says all this again, and has the last word.
    """
    latest = Heartbeat.objects.select_for_update(no_key=True).filter(
        node=node, agent_epoch=report.agent_epoch, seq=report.seq
    )
    events_seen = latest.values_list("events_seen", flat=True).first()
    if events_seen is None:
        return _stale(report)
    return _take_news(node, report, events_seen=events_seen, at=at)


def _take_news(node: Node, report: Report, *, events_seen: int, at: datetime) -> dict[str, Any]:
    has_broken = report.inventory is not None and _take_inventory(node, report.inventory, at)
    if report.volumes:
        upkeep.observe(node=node, said=report.volumes, at=at)
    live = _live(node) if report.assignments or report.logs else None
    _take_states(live or (), report.assignments, at)
    take_logs(live or (), report.logs)
    seen = {"events_seen": _take_events(node, report.events, events_seen, at)} if report.events else {}
    node.refresh_from_db(fields=["desired_generation"])
    if live is None or node.desired_generation != report.desired_seen:
        live = _live(node)  # As it is now that the generation is known, or the document could be older than it.
    if has_broken:
        calendar.count(at=at, offer_id=node.offer_id)
    return _answer(node, report, live, at=at) | seen


def _stale(report: Report) -> dict[str, Any]:
    """Return the answer to an older report that was late on its way; the newer one has been answered already."""
    return {"node": report.node, "status": "stale", "poll_after_ms": settings.NODE_POLL_MS["moving"]}


def _live(node: Node) -> list[Assignment]:
    return _LIVE([node.pk])


def _take_inventory(node: Node, said: Inventory, at: datetime) -> bool:
    """Write down what a node has; return whether GPUs of it broke."""
    has_broken = inventory.take(node=node, said=said, at=at)
    statements.learn_key(node=node, public=said.signing_key, at=at)
    Heartbeat.objects.filter(node=node).update(
        inventory_generation=said.generation, access=msgspec.to_builtins(said.access), encrypts=said.encrypts
    )
    return has_broken


def _is_news(row: Assignment, word: Said) -> bool:
    """Return whether a node says something of an assignment that we do not know yet; other fences are nobody's."""
    if word.fence != row.fence:
        return False
    if row.observed == Assignment.Observed.FAILED and word.state not in {"wiping", "gone"}:
        return False  # It may have been told so by us; there is no way back.
    return (
        node_files.is_news(row, word)
        or word.state != row.observed
        or word.ports != row.ports
        or _progress(word) != row.progress
    )


def _progress(word: Said) -> dict[str, Any] | None:
    return None if word.progress is None else msgspec.structs.asdict(word.progress)


def _take_states(live: Sequence[Assignment], said: Sequence[Said], at: datetime) -> None:
    """Write down what is new, and wake the workflows of those whose state changed."""
    rows = {row.public_id: row for row in live}
    told = [(rows[word.id], word) for word in said if word.id in rows and _is_news(rows[word.id], word)]
    news = [(row, node_files.checked(row, word, at=at)) for row, word in told]
    moved = [(row, word, row.observed) for row, word in news if word.state != row.observed]
    for instance_id in sorted({row.instance_id for row, _, _ in moved}):
        engine.wake(instance_id)
    for row, word in news:
        node_files.note(row, word, at=at)
    if any(word.state == Assignment.Observed.GONE.value for _, word, _ in moved):
        # What is gone leaves the node's document, so that the node may forget it.
        Node.objects.filter(pk=moved[0][0].node_id).update(desired_generation=F("desired_generation") + 1)
    for row, word in news:
        _note(row, word, at)
    for row, word, before in moved:
        if word.state == Assignment.Observed.WIPING.value:
            wipes.show_wiping(row)
        log.info("observed", assignment=row.public_id, old=before, new=word.state)


def _note(row: Assignment, word: Said, at: datetime) -> None:
    changes: dict[str, Any] = {
        "observed": Assignment.Observed(word.state), "message": word.message, "progress": _progress(word),
        "ports": word.ports,
    }  # fmt: skip
    if word.exit_code is not None:
        changes["exit_code"] = word.exit_code
    is_running, step = word.state == Assignment.Observed.RUNNING.value, word.progress.step if word.progress else ""
    if is_running and step in Assignment.SENDING and row.sending_since is None:
        changes["sending_since"] = at
    if word.exited_ago_ms is not None and row.exited_at is None:
        changes["exited_at"] = at - timedelta(milliseconds=word.exited_ago_ms)
    Assignment.objects.filter(pk=row.pk).update(**changes)
    for name, value in changes.items():
        setattr(row, name, value)


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


def _take_events(node: Node, events: Sequence[Event], seen: int, at: datetime) -> int:
    """Take each entry of the node's journal after `seen` once, in order; return the last that is taken.

    One that cannot be taken is left out with an error of ours in the log: the
    node would come with it again for ever, and look silent meanwhile. What only
    the database could not do this moment fails the whole report, which comes again.
    """
    for event in sorted(events, key=lambda event: event.n):
        if event.n <= seen:
            continue
        seen = event.n
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
    Heartbeat.objects.filter(node=node).update(events_seen=seen)
    return seen


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
            "assignments": _assignments(live, at),
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


def _assignments(wanted: Sequence[Assignment], at: datetime) -> list[dict[str, Any]]:
    gangs = [row.instance_id for row in wanted if row.instance.replicas > 1]
    peers, encrypted = _peers(gangs) if gangs else ({}, set())
    mounts = upkeep.mounts(row.instance_id for row in wanted) if wanted else {}
    keys = sessions.keys_of(row.instance for row in wanted) if wanted else {}
    notices = interruptions.documents((row.instance for row in wanted), at=at)
    risks = advisories.documents(row.instance for row in wanted)
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
            "ssh_keys": keys.get(row.instance.project_id, []) if _has_door(row.instance) else [],
            "volumes": mounts.get(row.instance_id, []),
            "network": networks.network_of(
                row.instance, replica=row.replica, encrypted=(row.instance_id, row.fence) in encrypted
            ),
            "replica": row.replica,
            "replicas": row.instance.replicas,
            "peers": peers.get((row.instance_id, row.fence), []),
            "stop_grace_s": STOP_GRACE_S,
            "notice": notices.get(row.instance_id),
            "risk": risks.get(row.instance_id),
            "work": _work(row.instance),
        }
        for row in wanted
    ]


def _has_door(instance: Instance) -> bool:
    """What has no network has no door either: nobody may reach in who could not be reached."""
    return instance.has_network and not instance.is_off_limits


def _work(instance: Instance) -> dict[str, Any]:
    return {
        "inputs": instance.inputs,
        "outputs": instance.outputs,
        "checkpoint": instance.checkpoint,
        "checkpoint_sha256": instance.checkpoint_sha256,
        "has_network": instance.has_network,
        "counters": instance.counters,
        "disk_bytes": instance.disk_bytes,
    }


def _peers(instance_ids: Sequence[int]) -> tuple[dict[tuple[int, int], list[str]], set[tuple[int, int]]]:
    """Return the host names of each gang, by replica, and the gangs of which every host can encrypt."""
    hosts: dict[tuple[int, int], list[str]] = {}
    plain: set[tuple[int, int]] = set()
    rows = Assignment.objects.filter(instance__in=instance_ids).order_by("instance", "fence", "replica")
    facts = rows.values_list("instance_id", "fence", "node__heartbeat__hostname", "node__heartbeat__encrypts")
    for instance_id, fence, hostname, encrypts in facts:
        hosts.setdefault((instance_id, fence), []).append(hostname or "")
        if not encrypts:
            plain.add((instance_id, fence))
    return hosts, set(hosts) - plain
