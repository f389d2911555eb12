"""The agent's conversation: joins once, then says what is and hears what should be, for ever."""

import base64
import hashlib
import logging
import random
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.control import Backoff, ControlPlane, Refused, Trouble
from provisioning.agent.journal import Journal
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.output import read_chunk
from provisioning.agent.protocol import Joined, ProtocolError, Result
from provisioning.agent.runtime import Observed, Runtime
from provisioning.agent.state import Home, Lease
from provisioning.agent.volumes import Volumes

log = logging.getLogger("gpumarket.agent")

EVENTS_MAX = 200  # In one sync; the rest comes with the next.
CHUNK_BYTES_MAX = 256 << 10
CHUNKS_MAX = 4  # 1 MiB of log in one sync.
GAP_S = 0.1
SLOW_S = 30.0
MESSAGE_MAX = 1000
POLL_MS_MIN, POLL_MS_MAX = 100, 60_000

STALE = (
    "the control plane has heard a later report of this node; does another agent use a copy of this home, "
    "or is this home an old copy?"
)
TROUBLES = {"stale": STALE, "error": "the control plane failed at this node's report, through no fault of the node"}
UNAUTHORIZED = (
    "the control plane does not accept this node's key; has the node been removed? "
    "To join as a new node, use an empty --home and a new join token"
)


@dataclass(frozen=True)
class Introduction:
    """How a node presents itself when it joins."""

    token: str | None
    hostname: str
    agent_version: str
    runtime: str = "process"


class SyncLoop:
    """Runs in a thread of its own. `news`, when set, makes it speak at once instead of at the next poll."""

    def __init__(
        self,
        *,
        control: ControlPlane,
        home: Home,
        journal: Journal,
        volumes: Volumes,
        lease: Lease,
        runtime: Runtime,
        monitor: GpuMonitor,
        epoch: int,
        news: threading.Event,
        access: dict[str, Any] | None = None,
        encrypts: bool = False,
        signing_key: str = "",
    ) -> None:
        self._control = control
        self._home = home
        self._journal = journal
        self._volumes = volumes
        self._lease = lease
        self._runtime = runtime
        self._monitor = monitor
        self._epoch = epoch
        self._seq = 0
        self._inventory_known = 0
        self._is_introduced = False
        self._backoff = Backoff()
        self._news = news
        # Part of each inventory: whether it can join clusters with encryption, whose signatures are ours, and where
        # the SSH gateway is.
        self._means = {"encrypts": encrypts, "signing_key": signing_key}
        self._means |= {} if access is None else {"access": access}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the loop after the exchange in flight."""
        self._stopping.set()
        self._news.set()

    def join(self, introduction: Introduction) -> Joined | None:
        """Return who we are, joining if need be; None if told to stop meanwhile. Raises Refused."""
        facts = {
            "key_sha256": hashlib.sha256(self._home.key().encode()).hexdigest(),
            "hostname": introduction.hostname,
            "boot_id": boot_id(),
            "agent_version": introduction.agent_version,
            "runtime": introduction.runtime,
        }
        while not self._stopping.is_set():
            joined = self._home.identity()
            if joined is not None:
                return joined
            try:
                inventory = self._monitor.inventory().as_json() | self._means
                joined = self._control.join(token=introduction.token or "", facts=facts | {"inventory": inventory})
            except Trouble as trouble:
                self._stopping.wait(self._after(trouble, doing="join"))
            else:
                self._home.remember_identity(joined)
                self._backoff.reset()
                log.info("joined", extra={"node": joined.node, "node_name": joined.name})
        return None

    def run(self, identity: Joined) -> None:
        """Exchange reports for documents until told to stop. No answer of the server ends it."""
        while not self._stopping.is_set():
            self._news.clear()
            try:
                pause_s, is_well = self._exchange(identity)
            except Exception:
                log.exception("a sync failed; trying again")
                pause_s, is_well = self._backoff.next_s(), False
            if not is_well:
                self._stopping.wait(pause_s)
            elif self._news.wait(pause_s):
                self._stopping.wait(GAP_S)

    def _after(self, trouble: Trouble, *, doing: str) -> float:
        pause_s = max(self._backoff.next_s(), trouble.retry_after_s)
        log.warning("no %s this time", doing, extra={"reason": str(trouble), "again_in_s": round(pause_s, 1)})
        return pause_s

    def _exchange(self, identity: Joined) -> tuple[float, bool]:
        """Sync once; return the seconds until the next time and whether news may shorten them."""
        asked_at = boottime()
        orphans = self._runtime.orphans
        observed = self._runtime.observed
        report, shipping = self._report(identity, observed=observed, orphans=orphans)
        try:
            result = self._control.sync(report)
        except Trouble as trouble:
            return self._after(trouble, doing="sync"), False
        except Refused as refusal:
            return self._refused(str(refusal)), False
        if result.status in TROUBLES:
            return self._after(Trouble(TROUBLES[result.status], retry_after_s=poll_s(result)), doing="sync"), False
        if result.status != "ok":
            return self._refused(result.status), False
        self._backoff.reset()
        self._is_introduced = True
        if "inventory" in report:
            self._inventory_known = report["inventory"]["generation"]
        self._lease.hear(asked_at=asked_at)
        self._runtime.forget_orphans(orphans)
        self._runtime.note_heard(observed)
        self._volumes.note_heard(report["volumes"], generation=report["desired_seen"])
        told = report["events"]
        is_journal_moving = not told or result.events_seen >= told[0]["n"]
        # Urgent only as far as it is taken: a server that has no time for it is asked at its own pace.
        is_journal_waiting = self._journal.note_seen(result.events_seen) and is_journal_moving
        is_log_waiting = self._note_cursors(result, observed=observed, shipping=shipping)
        self._adopt(result)
        if is_log_waiting or is_journal_waiting:
            return GAP_S, True
        return poll_s(result) * random.uniform(0.9, 1.1), True  # noqa: S311  spreads load, guards nothing

    def _refused(self, said: str) -> float:
        meaning = UNAUTHORIZED if said == "unauthorized" else f"the control plane refuses this node: {said}"
        pause_s = SLOW_S * random.uniform(0.8, 1.2)  # noqa: S311  spreads load, guards nothing
        log.error(meaning, extra={"again_in_s": round(pause_s, 1)})
        return pause_s

    def _report(
        self, identity: Joined, *, observed: tuple[Observed, ...], orphans: frozenset[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the protocol's REPORT, and the offset after the log in it by assignment."""
        self._seq += 1
        energy, telemetry = self._monitor.take_meters(busy=self._runtime.busy_gpus())
        logs, shipping = self._logs(observed) if self._is_introduced else ([], {})
        report = {
            "node": identity.node,
            "key": self._home.key(),
            "boot_id": boot_id(),
            "agent_epoch": self._epoch,
            "seq": self._seq,
            "desired_seen": self._home.document().generation,
            "assignments": [assignment_report(one) for one in observed],
            "clock_ms": round(time.time() * 1000),
            "orphans": sorted(orphans),
            "volumes": self._volumes.report(),
            "events": self._journal.waiting(EVENTS_MAX),
            "logs": logs,
            "energy": energy,
            "telemetry": telemetry,
        }
        inventory = self._monitor.inventory()
        if inventory.generation != self._inventory_known:
            report["inventory"] = inventory.as_json() | self._means
        return report, shipping

    def _logs(self, observed: tuple[Observed, ...]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        logs: list[dict[str, Any]] = []
        shipping: dict[str, int] = {}
        talkers = [one for one in observed if one.output is not None]
        first = self._seq % len(talkers) if talkers else 0  # Each in turn comes first: none starves the others.
        for one in talkers[first:] + talkers[:first]:
            offset = self._runtime.shipped.get(one.id, 0)
            while len(logs) < CHUNKS_MAX and (data := chunk(one, offset)):
                logs.append({"assignment": one.id, "offset": offset, "data": base64.b64encode(data).decode()})
                offset += len(data)
            shipping[one.id] = offset
        return logs, shipping

    def _note_cursors(self, result: Result, *, observed: tuple[Observed, ...], shipping: dict[str, int]) -> bool:
        """Take over which log the server wants next; return whether there is such log already."""
        before = self._runtime.shipped
        talkers = [one for one in observed if one.output is not None]
        shipped = {
            one.id: result.log_cursors.get(one.id, shipping.get(one.id, before.get(one.id, 0))) for one in talkers
        }
        if shipped != before:
            self._runtime.shipped = shipped
            self._runtime.poke()
        # Only what a moving cursor leaves is urgent: a server that takes nothing is asked at its own pace.
        is_moving = not shipping or any(shipped[name] > before.get(name, 0) for name in shipped)
        return is_moving and any(has_much(one, shipped[one.id]) for one in talkers)

    def _adopt(self, result: Result) -> None:
        if result.desired is None:
            return
        try:
            is_new = self._home.adopt_document(generation=result.desired_generation, desired=result.desired)
        except ProtocolError as error:
            log.error("the document is not of the protocol; keeping the old one", extra={"reason": str(error)})
            return
        if is_new:
            log.info("new document", extra={"generation": result.desired_generation})
            self._runtime.poke()


def poll_s(result: Result) -> float:
    """Return after how many seconds the server wants to hear from us again, within reason."""
    return min(max(result.poll_after_ms, POLL_MS_MIN), POLL_MS_MAX) / 1000


def chunk(one: Observed, offset: int) -> bytes:
    """Return the next piece of an assignment's log."""
    assert one.output is not None
    is_final = one.state in {"exited", "failed"}
    return read_chunk(one.output, offset=offset, limit_bytes=CHUNK_BYTES_MAX, is_final=is_final)


def has_much(one: Observed, offset: int) -> bool:
    """Return whether so much log waits, or the last of it, that the next poll is too late."""
    assert one.output is not None
    try:
        waiting = one.output.stat().st_size - offset
    except FileNotFoundError:
        return False
    return waiting > 0 and (waiting >= CHUNK_BYTES_MAX or one.state in {"exited", "failed"})


def assignment_report(one: Observed) -> dict[str, Any]:
    """Return the protocol's view of one assignment."""
    ago_ms = None if one.exited_at is None else max(0, round((boottime() - one.exited_at) * 1000))
    return {
        "id": one.id,
        "fence": one.fence,
        "state": one.state,
        "gpus": list(one.gpus),
        "exit_code": one.exit_code,
        "exited_ago_ms": ago_ms,
        "message": one.message[:MESSAGE_MAX],
        "progress": asdict(one.progress) if one.progress else None,
        "ports": {str(inside): outside for inside, outside in one.ports.items()},
        "outputs": one.outputs,
        "checkpoint": one.checkpoint,
    }
