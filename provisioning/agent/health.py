"""Notices what goes wrong with the GPUs and tells the control plane within a second; the server judges it."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from provisioning.agent.clock import boottime
from provisioning.agent.conditions import Condition, findings, gone
from provisioning.agent.events import Event, EventSource, KernelLog

log = logging.getLogger("gpumarket.agent")

WAIT_S = 1.0
DUPLICATE_S = 300.0  # NVML and the kernel log tell of the same XID; a burst of one is one.
# What a reset of ours itself causes: the GPU is off the bus, or away, for a moment. All else is news even then.
OF_A_RESET = frozenset({"xid:79", "lost", "gpu_unavailable"})
WINDOW_S, SLOW_SHARE = 600.0, 0.6
REPLAYS_MAX = 80  # In a window: NVIDIA's DCGM warns from eight a minute on.
# What comes and goes at a start, or while a driver is loaded anew, is told when it has lasted so long.
LASTS_S = {"fabric": 120.0, "driver": 30.0}
NODE = ""


class Record(Protocol):
    """Where events are kept until the server has them: the journal."""

    def append(self, kind: str, body: dict[str, Any]) -> Any:
        """Keep it, durably."""


class HealthWatch:
    """Turns what the sources say, and what the GPUs say of themselves, into events in the journal."""

    def __init__(self, *, source: EventSource, journal: Record, kernel_log: KernelLog | None = None) -> None:
        self._source = source
        self._journal = journal
        self._kernel_log = kernel_log
        self._guard = threading.RLock()
        self._told: dict[tuple[str, str], float] = {}
        self._before: dict[str, set[str]] = {}
        self._since: dict[tuple[str, str], float] = {}
        self._active: dict[str, set[int]] = {}  # The NVLinks that each GPU had since it was last repaired.
        self._failures: dict[str, int] = {}
        self._slow: dict[tuple[str, str], deque[tuple[float, bool]]] = {}
        self._replays: dict[str, deque[tuple[float, int]]] = {}
        self._excused: dict[str, int] = {}  # GPUs that we ourselves take away for a while, and how often.

    def run(self, stopping: threading.Event) -> None:
        """Watch until told to stop."""
        while not stopping.is_set():
            try:
                self.step(WAIT_S)
            except Exception:
                log.exception("watching the GPUs' health failed; trying again")
                stopping.wait(WAIT_S)

    def follow(self, stopping: threading.Event) -> None:
        """Follow the kernel log until told to stop, in a thread of its own: it tells what NVML keeps to itself."""
        while self._kernel_log is not None and not stopping.is_set():
            try:
                for event in self._kernel_log.wait(WAIT_S):
                    self.note(event)
            except Exception:
                log.exception("reading the kernel log failed; trying again")
                stopping.wait(WAIT_S)

    def step(self, timeout_s: float) -> None:
        """Wait for events for so long, then ask every GPU how it is: the verdict follows its error at once."""
        for event in self._source.wait(timeout_s):
            self.note(event)
        for gpu, condition in self._source.conditions().items():
            self._compare(gpu, condition)
        trouble = self._source.trouble()
        self._tell_what_is_new(NODE, {"driver": trouble} if trouble else {})

    def driver_hangs(self) -> None:
        """Tell that the driver has not answered for long; who waits for its answer cannot."""
        self.note(Event(NODE, "agent", "driver", "the driver does not answer"))

    def note(self, event: Event) -> None:
        """Tell the server of an event, unless it heard the same of this GPU just now."""
        now = boottime()
        with self._guard:
            key = (event.gpu, event.code)
            if (event.gpu in self._excused and event.code in OF_A_RESET) or now - self._told.get(
                key, -DUPLICATE_S
            ) < DUPLICATE_S:
                return
            self._told = {old: at for old, at in self._told.items() if now - at < DUPLICATE_S} | {key: now}
        self._tell(event)

    def _tell(self, event: Event) -> None:
        log.warning("health event", extra={"gpu": event.gpu, "code": event.code, "detail": event.detail})
        body = {"gpu": event.gpu, "source": event.source, "code": event.code, "detail": event.detail}
        self._journal.append("health", body)  # Which wakes the sync.

    def _compare(self, gpu: str, condition: Condition) -> None:
        """Tell what is worse than it was; what stays bad is told once."""
        with self._guard:
            if gpu in self._excused:
                return
        found = findings(condition)
        if condition.links is not None:
            active = self._active.setdefault(gpu, set())
            active |= {link for link, is_active in condition.links.items() if is_active}
            if away := gone(condition.links, of=active):
                found["nvlink"] = f"NVLink {', '.join(map(str, away))} is not active any more"
        self._tell_what_is_new(gpu, found)
        for code, detail in self._over_time(gpu, condition):
            self.note(Event(gpu, "agent", code, detail))

    def _tell_what_is_new(self, gpu: str, found: Mapping[str, str]) -> None:
        now = boottime()
        self._since = {key: since for key, since in self._since.items() if key[0] != gpu or key[1] in found} | {
            (gpu, code): self._since.get((gpu, code), now) for code in found
        }
        standing = {code for code in found if now - self._since[gpu, code] >= LASTS_S.get(code, 0)}
        with self._guard:
            before, self._before[gpu] = self._before.get(gpu, set()), standing
        for code in found:
            if code in standing - before:
                self._tell(Event(gpu, "agent", code, found[code]))

    def _over_time(self, gpu: str, condition: Condition) -> Iterator[tuple[str, str]]:
        """Yield what only several looks tell: what slowed a GPU down for most of a window, and counters that grew."""
        for code, is_slow, detail in (
            ("thermal", condition.is_hot, "slowed down by heat"),
            ("memory_thermal", condition.is_memory_hot, "its memory was hotter than it may be"),
            ("power_brake", condition.is_braked, "slowed down by its power supply"),
            ("pcie", condition.is_pcie_slow, "its PCIe link was slower or narrower than it could be, under load"),
        ):
            if is_slow is not None and self._is_mostly_slow(gpu, code, is_slow=is_slow):
                yield code, f"{detail} for most of ten minutes"
        if condition.pcie_replays is not None and self._replays_often(gpu, condition.pcie_replays):
            yield "pcie", f"more than {REPLAYS_MAX} packets were sent again in ten minutes"
        if condition.link_failures is not None:
            before = self._failures.get(gpu, condition.link_failures)
            self._failures[gpu] = condition.link_failures
            if condition.link_failures > before:
                yield "nvlink", "an NVLink could not be recovered"

    def _is_mostly_slow(self, gpu: str, code: str, *, is_slow: bool) -> bool:
        now = boottime()
        seen = self._slow.setdefault((gpu, code), deque())
        if seen and now - seen[-1][0] > WINDOW_S:
            seen.clear()  # It told nothing for so long that what was before is of another time.
        seen.append((now, is_slow))
        if now - seen[0][0] < WINDOW_S:
            return False
        while now - seen[0][0] > WINDOW_S:
            seen.popleft()
        if sum(was_slow for _, was_slow in seen) < SLOW_SHARE * len(seen):
            return False
        seen.clear()
        return True

    def _replays_often(self, gpu: str, count: int) -> bool:
        now = boottime()
        seen = self._replays.setdefault(gpu, deque())
        if seen and count < seen[-1][1]:
            seen.clear()  # It counts from zero again.
        seen.append((now, count))
        while now - seen[0][0] > WINDOW_S:
            seen.popleft()
        if count - seen[0][1] <= REPLAYS_MAX:
            return False
        seen.clear()
        seen.append((now, count))
        return True

    @contextmanager
    def excused(self, gpu: str) -> Iterator[None]:
        """Say nothing of a GPU that we reset or wipe ourselves; what is wrong with it afterwards is news."""
        with self._guard:
            self._excused[gpu] = self._excused.get(gpu, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                self._excused[gpu] -= 1
                if not self._excused[gpu]:
                    del self._excused[gpu]
            self.forget(gpu)

    def forget(self, gpu: str) -> None:
        """Take whatever a GPU says from now on as new: it was repaired meanwhile."""
        with self._guard:
            self._before.pop(gpu, None)
            self._active.pop(gpu, None)
            self._failures.pop(gpu, None)
            self._told = {key: at for key, at in self._told.items() if key[0] != gpu}

    def condition(self, gpu: str) -> Condition | None:
        """Return what one GPU says of itself now; None where nothing is known of it."""
        return self._source.conditions().get(gpu)
