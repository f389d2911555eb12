"""Compares what this node should run with what it runs, and takes one step. It never relies on having seen an event."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provisioning.agent import notices
from provisioning.agent.carrier import Carrier
from provisioning.agent.clock import boottime
from provisioning.agent.disk import has_filled
from provisioning.agent.gpus import Gpu
from provisioning.agent.lease import LEASE_GRACE_S_MAX, LEASE_RAN_OUT, is_lost
from provisioning.agent.monitor import Inventory
from provisioning.agent.protocol import Assignment, Notice
from provisioning.agent.readings import Readings
from provisioning.agent.shares import Shares
from provisioning.agent.state import Home, Lease
from provisioning.agent.store import Store
from provisioning.agent.volumes import Volumes
from provisioning.agent.wiping import Wiper
from provisioning.agent.witness import Seen, Witness
from provisioning.agent.workloads import KILLED, Kind, Look, Origin, Progress, Workload

log = logging.getLogger("gpumarket.agent")

DISK_FULL = "the disk of the node is full"
NO_VOLUMES = "this node keeps no volumes"
NO_STORE = "this node carries no files"
AGENT_ENDS = "the node agent was told to end its workloads"


@dataclass(frozen=True)
class Observed:
    """What is reported of one assignment, and where its log is."""

    id: str
    fence: int
    state: str  # preparing | prepared | running | exited | failed | wiping | gone
    gpus: tuple[str, ...]
    exit_code: int | None = None
    exited_at: float | None = None
    message: str = ""
    output: Path | None = None
    progress: Progress | None = None
    ports: Mapping[int, int] = field(default_factory=dict)
    outputs: str | None = None  # The manifests that the store has, of what it left and of its last checkpoint.
    checkpoint: str | None = None


class Runtime:
    """The workloads of this node. `step` belongs to one thread; `observed` and `orphans` may be read by any."""

    TICK_S = 0.05
    REST_S = 1.0
    LOG_WAIT_S = 5.0

    def __init__(
        self,
        *,
        home: Home,
        lease: Lease,
        kind: Kind,
        inventory: Callable[[], Inventory],
        changed: Callable[[], None],
        wiper: Wiper,
        volumes: Volumes | None = None,
        witness: Witness | None = None,
        readings: Readings | None = None,
        store: Store | None = None,
    ) -> None:
        self._volumes = volumes
        self._witness = witness
        self._readings = readings
        self._store = store
        self._carriers: dict[str, Carrier] = {}
        self._shares = Shares()
        self._home = home
        self._kind = kind
        self._lease = lease
        self._inventory = inventory
        self._changed = changed
        self._wiper = wiper
        self._workloads: dict[str, Workload] = kind.find()
        self._refused: dict[tuple[str, int], str] = {}
        self._ended_at: dict[str, float] = {}
        self._poke = threading.Event()
        self._ending_all: float | None = None
        self.shipped: dict[str, int] = {}  # Bytes of log that the server has, by assignment; the sync loop sets it.
        self.observed: tuple[Observed, ...] = ()
        self._heard: dict[str, str | None] = {}
        self.orphans: frozenset[str] = frozenset()
        self.has_ended_all = False  # As `end_all` was asked to.
        self._orphans_heard: frozenset[str] = frozenset()

    def run(self, stopping: threading.Event) -> None:
        """Step until told to stop: often while there is work, seldom while there is none."""
        while not stopping.is_set():
            self._poke.wait(self.TICK_S if self._workloads or self._wiper.pending() else self.REST_S)
            self._poke.clear()
            try:
                self.step()
            except Exception:
                log.exception("a step failed; trying again")
                stopping.wait(1.0)

    def poke(self) -> None:
        """Step now: there is a new document."""
        self._poke.set()

    def end_all(self, *, grace_s: float) -> None:
        """From now on start nothing and end what runs. Its end stays on record, to be reported."""
        self._ending_all = grace_s
        self.poke()

    def busy_gpus(self) -> frozenset[str]:
        """Return the GPUs on which something runs."""
        return frozenset(gpu for one in self.observed if one.state == "running" for gpu in one.gpus)

    def held_gpus(self) -> frozenset[str]:
        """Return the GPUs of every workload that is here, running or not."""
        return frozenset(gpu for one in tuple(self._workloads.values()) for gpu in one.origin.gpus)

    def find(self, instance: str) -> Workload | None:
        """Return the running workload of the instance with this id or name; its first replica here, if several."""
        observed = {one.id for one in self.observed if one.state == "running"}
        running = [one for name, one in tuple(self._workloads.items()) if name in observed]
        named = (one for one in running if instance and instance in {one.origin.instance, one.origin.name})
        return min(named, key=lambda one: one.origin.id, default=None)

    def running(self, name: str, fence: int) -> Workload | None:
        """Return the workload of this assignment if it runs, in this run and no other."""
        workload = self._workloads.get(name)
        is_running = any(one.id == name and one.fence == fence and one.state == "running" for one in self.observed)
        return workload if is_running and workload is not None and workload.origin.fence == fence else None

    def note_heard(self, observed: Sequence[Observed]) -> None:
        """Note which checkpoints the server has heard of; the sync loop says so."""
        self._heard = {one.id: one.checkpoint for one in observed}

    def forget_orphans(self, reported: frozenset[str]) -> None:
        """Note that the server knows of these orphans; those that are removed need no more mention."""
        self._orphans_heard = reported

    def step(self) -> None:
        """Look at every workload and every assignment once, and move each by one step."""
        document = self._home.document()
        wanted = {one.id for one in document.assignments}
        self._refused = {key: why for key, why in self._refused.items() if key[0] in wanted}
        if document.generation:
            self._remove_orphans(wanted)
        self.orphans -= self._orphans_heard - self._workloads.keys()
        self.has_ended_all = self._end_what_may_not_run()
        observed = tuple(self._step_safely(one) for one in document.assignments)
        before = {one.id: one for one in self.observed}
        moved = [one for one in observed if one.id not in before or before[one.id].state != one.state]
        self._bear_witness(moved)
        self.observed = observed
        for one in moved:
            old = before[one.id].state if one.id in before else None
            extra = {"assignment": one.id, "fence": one.fence, "from": old, "to": one.state}
            log.info("moved", extra=extra | {"exit_code": one.exit_code, "reason": one.message})
        if moved:
            self._changed()

    def _bear_witness(self, moved: Sequence[Observed]) -> None:
        """State what was seen, before it is reported: the statement must not come after its folder went."""
        if self._witness is None:
            return
        for one in moved:
            wanted, workload = self._home.document().find(one.id), self._workloads.get(one.id)
            if wanted is None or workload is None or not (wanted.fence == one.fence == workload.origin.fence):
                continue
            seen = Seen(one.state, one.exit_code, one.exited_at, one.message, workload.image_digest(), one.outputs)
            self._witness.see(wanted, seen, folder=workload.metadata.parent)

    def _read_last(self, wanted: Assignment, workload: Workload, look: Look) -> None:
        """Read what has ended for the last time: before how it ended is stated, and before its folder goes."""
        if self._readings is not None and look.has_ended:
            self._readings.take_last(wanted, workload.folder)

    def _remove_orphans(self, wanted: set[str]) -> None:
        for name in self._wiper.pending():
            if name not in wanted and name not in self._workloads:
                self._wiper.step(name)
        for name, workload in tuple(self._workloads.items()):
            if name in wanted:
                continue
            if name not in self.orphans:
                self.orphans |= {name}
                log.warning("removing a workload that nobody wants here", extra={"assignment": name})
                self._changed()
            if workload.end(grace_s=workload.origin.stop_grace_s, reason="orphan"):
                self._remove(workload)

    def _end_what_may_not_run(self) -> bool:
        """Take a step towards ending it; return whether all was to be ended and has."""
        workloads = self._workloads.values()
        if (grace_s := self._ending_all) is not None:
            ends = [one.end(grace_s=min(one.origin.stop_grace_s, grace_s), reason=AGENT_ENDS) for one in workloads]
            return all(ends)
        for one in workloads:
            if self._lease.has_run_out(one.origin.lease_s) and one.look().state == "running":
                one.end(grace_s=min(one.origin.stop_grace_s, LEASE_GRACE_S_MAX), reason=LEASE_RAN_OUT)
        return False

    def _step_safely(self, wanted: Assignment) -> Observed:
        """Step one assignment; what its files refuse (a full disk, say) must not hold up the others."""
        try:
            return self._step_one(wanted)
        except OSError as error:
            log.exception("a step failed; trying again", extra={"assignment": wanted.id})
            known = next((one for one in self.observed if one.id == wanted.id), None)
            return known or Observed(wanted.id, wanted.fence, "preparing", wanted.gpus, message=str(error))

    def _step_one(self, wanted: Assignment) -> Observed:
        workload = self._workloads.get(wanted.id)
        if workload is None:
            return self._step_absent(wanted)
        if wanted.fence != workload.origin.fence:
            if workload.end(grace_s=workload.origin.stop_grace_s, reason="another assignment replaces it"):
                self._remove(workload)
            return Observed(wanted.id, wanted.fence, "preparing", wanted.gpus, message="an earlier run is being ended")
        if wanted.desired == "gone":
            return self._step_towards_gone(wanted, workload)
        look, carrier = workload.look(), self._carrier(wanted, workload)
        notices.show(workload.metadata, wanted)
        self._read_last(wanted, workload, look)
        if look.state == "running":
            carrier.keep()
            self._hold(wanted, workload)
        if look.state == "preparing":
            self._prepare(wanted, workload)
        if look.state in {"preparing", "prepared"} and not carrier.has_brought:
            self._bring(carrier, workload)
            look = workload.look()
        elif look.state == "prepared" and wanted.desired == "running" and self._may_start(workload):
            self._start(wanted, workload)
            look = workload.look()
        return observe(workload, carrier.show(look, is_asked_to_end=was_asked_to_end(wanted, look)), carrier)

    def _hold(self, wanted: Assignment, workload: Workload) -> None:
        """Hold what runs to its share of the disk, and to what was announced."""
        if why := self._shares.why_over(wanted, workload):
            workload.end(grace_s=0.0, reason=why)  # Each moment more is room that others lack.
        if wanted.notice:
            hold_to(wanted.notice, workload)

    def _carrier(self, wanted: Assignment, workload: Workload) -> Carrier:
        """Return who carries the files of a workload."""
        carrier = self._carriers.get(wanted.id)
        if carrier is None or carrier.fence != wanted.fence:
            carrier = self._carriers[wanted.id] = Carrier(wanted, folder=workload.folder, store=self._store)
        return carrier

    def _bring(self, carrier: Carrier, workload: Workload) -> None:
        if carrier.trouble:
            workload.cancel(carrier.trouble)
        else:
            carrier.bring()

    def _step_absent(self, wanted: Assignment) -> Observed:
        gone = Observed(wanted.id, wanted.fence, "gone", wanted.gpus)
        if wanted.fence <= self._home.removed_fence(wanted.id):
            return gone if self._wiper.step(wanted.id) else self._wiping(wanted)
        if wanted.desired == "gone":
            # Never seen here. Written down, so that no later word can start it.
            self._wiper.never_used(assignment=wanted.id, fence=wanted.fence, gpus=wanted.gpus)
            self._home.remember_removed(wanted.id, wanted.fence)
            return gone
        refusal = self._refused.get((wanted.id, wanted.fence)) or self._why_not(wanted)
        if refusal:
            self._refused[wanted.id, wanted.fence] = refusal
            return Observed(wanted.id, wanted.fence, "failed", wanted.gpus, message=refusal)
        if self._ending_all is not None:
            return Observed(wanted.id, wanted.fence, "preparing", wanted.gpus, message="the node agent is ending")
        holders = [
            one.origin.id for one in self._workloads.values() if not set(one.origin.gpus).isdisjoint(wanted.gpus)
        ]
        holders += self._wiper.holders(wanted.gpus)
        if holders:
            message = f"waiting for GPUs that {', '.join(holders)} still holds"
            return Observed(wanted.id, wanted.fence, "preparing", wanted.gpus, message=message)
        workload = self._workloads[wanted.id] = self._kind.make(wanted)
        carrier = self._carrier(wanted, workload)
        return observe(workload, carrier.show(workload.look(), is_asked_to_end=False), carrier)

    def _why_not(self, wanted: Assignment) -> str:
        """Return why this node cannot do this, or nothing."""
        if wanted.id not in self._workloads and self._home.reserve.is_full():
            return DISK_FULL
        inventory = self._inventory()
        for name in wanted.gpus:
            gpu = inventory.find(name)
            if gpu is None:
                return f"{name} is not in this node"
            if not gpu.healthy:
                return f"{name} is not healthy"
        if wanted.work.has_files and self._store is None:
            return NO_STORE
        if wanted.volumes and (refusal := self._volumes.why_not(wanted) if self._volumes else NO_VOLUMES):
            return refusal
        return self._kind.refusal(wanted)

    def _gpus(self, wanted: Assignment) -> list[Gpu]:
        return [gpu for gpu in map(self._inventory().find, wanted.gpus) if gpu is not None]

    def _may_start(self, workload: Workload) -> bool:
        return self._ending_all is None and not self._lease.has_run_out(workload.origin.lease_s)

    def _prepare(self, wanted: Assignment, workload: Workload) -> None:
        refusal = self._why_not(wanted)
        if refusal:
            workload.cancel(refusal)
        elif self._may_start(workload):
            workload.prepare(wanted, self._gpus(wanted))

    def _start(self, wanted: Assignment, workload: Workload) -> None:
        refusal = self._why_not(wanted)
        if refusal:
            workload.cancel(refusal)
        else:
            workload.start(wanted, self._gpus(wanted))

    def _step_towards_gone(self, wanted: Assignment, workload: Workload) -> Observed:
        origin, carrier = workload.origin, self._carrier(wanted, workload)
        if not workload.end(grace_s=origin.stop_grace_s, reason=""):
            return observe(workload, workload.look(), carrier)
        look = workload.look()
        self._read_last(wanted, workload, look)
        seen = observe(workload, carrier.show(look, is_asked_to_end=True), carrier)
        self._bear_witness([seen])
        if look.state == "exited" and not carrier.take_last():
            return seen
        if self._has_told_all(workload, carrier) and self._remove(workload):
            if not self._wiper.step(origin.id):
                return self._wiping(origin)
            return Observed(origin.id, origin.fence, "gone", origin.gpus)
        return seen

    def _wiping(self, removed: Origin | Assignment) -> Observed:
        return Observed(removed.id, removed.fence, "wiping", removed.gpus, message=self._wiper.phase(removed.id))

    def _has_told_all(self, workload: Workload, carrier: Carrier) -> bool:
        """Return whether the server has the whole log and knows the last checkpoint, or had its time for that."""
        name = workload.origin.id
        began = self._ended_at.setdefault(name, boottime())
        size = workload.output.stat().st_size if workload.output.exists() else 0
        is_known = self.shipped.get(name, 0) >= size and self._heard.get(name) == carrier.checkpoint
        return is_known or boottime() - began > self.LOG_WAIT_S

    def _remove(self, workload: Workload) -> bool:
        """Take a step towards nothing being left; forget the workload when that is so."""
        name, fence = workload.origin.id, workload.origin.fence
        if self._home.removed_fence(name) < fence:
            self._home.remember_removed(name, fence)
        carrier = self._carriers.get(name)
        if carrier is not None and not carrier.stop():
            return False
        # Before its folder goes: it alone would tell the next agent which GPUs are dirty.
        self._wiper.expect(assignment=name, fence=fence, gpus=workload.origin.gpus)
        if not workload.remove():
            return False
        self._workloads.pop(name, None)
        self._ended_at.pop(name, None)
        if self._witness is not None:
            self._witness.forget(name)
        if self._readings is not None:
            self._readings.forget(name)
        self._shares.forget(name)
        self._carriers.pop(name, None)
        return True


def hold_to(notice: Notice, workload: Workload) -> None:
    """End what was announced to end: SIGTERM one grace before the deadline, SIGKILL at it."""
    left_s = notices.left_s(notice)
    if left_s <= notice.grace_s:
        # The whole grace however often we ask: a shorter one would count from the first SIGTERM.
        workload.end(grace_s=notice.grace_s if left_s > 0 else 0.0, reason=notices.why(notice))


def was_asked_to_end(wanted: Assignment, look: Look) -> bool:
    """Return whether somebody else than its command ended a workload."""
    reasons = [AGENT_ENDS] + ([notices.why(wanted.notice)] if wanted.notice else [])
    return is_lost(look.message) or any(reason in look.message for reason in reasons)


def observe(workload: Workload, look: Look, carrier: Carrier | None = None) -> Observed:
    """Return what is reported of a workload that looks like this."""
    origin = workload.origin
    return Observed(
        id=origin.id,
        fence=origin.fence,
        state="failed" if look.has_ended and is_lost(look.message) else look.state,
        gpus=origin.gpus,
        # A command that ends well at the word to end has filled the disk all the same.
        exit_code=KILLED if look.exit_code == 0 and has_filled(look.message) else look.exit_code,
        exited_at=look.exited_at,
        message=look.message,
        output=workload.output,
        progress=look.progress,
        ports=look.ports,
        outputs=carrier.outputs if carrier else None,
        checkpoint=carrier.checkpoint if carrier else None,
    )
