"""Notices what goes wrong with the GPUs and tells the control plane within a second; the server judges it."""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from provisioning.agent.clock import boottime
from provisioning.agent.events import Condition, Event, EventSource, KernelLog

log = logging.getLogger("gpumarket.agent")

WAIT_S = 1.0
DUPLICATE_S = 300.0  # NVML and the kernel log tell of the same XID; a burst of one is one.
# What a reset of ours itself causes: the GPU is off the bus, or away, for a moment. All else is news even then.
OF_A_RESET = frozenset({"xid:79", "lost", "gpu_unavailable"})
HOT_WINDOW_S, HOT_SHARE = 600.0, 0.6


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
        self._before: dict[str, Condition] = {}
        self._slow: dict[tuple[str, str], deque[tuple[float, bool]]] = {}
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
            before = self._before.get(gpu, Condition())
            self._before[gpu] = condition
        codes = [code for code in codes_of(condition) if code not in codes_of(before)]
        codes += list(self._throttled(gpu, condition))
        for code in codes:
            self._tell(Event(gpu, "agent", code, DETAILS.get(code, "")))

    def _throttled(self, gpu: str, condition: Condition) -> Iterator[str]:
        """Yield what has slowed a GPU down for most of ten minutes: a moment of it is normal."""
        now = boottime()
        for code, is_slow in (("thermal", condition.is_hot), ("power_brake", condition.is_braked)):
            if is_slow is None:
                continue
            seen = self._slow.setdefault((gpu, code), deque())
            seen.append((now, is_slow))
            if now - seen[0][0] < HOT_WINDOW_S:
                continue
            while now - seen[0][0] > HOT_WINDOW_S:
                seen.popleft()
            if sum(was_slow for _, was_slow in seen) >= HOT_SHARE * len(seen):
                seen.clear()
                yield code

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
            self._told = {key: at for key, at in self._told.items() if key[0] != gpu}

    def condition(self, gpu: str) -> Condition | None:
        """Return what one GPU says of itself now; None where nothing is known of it."""
        return self._source.conditions().get(gpu)


DETAILS = {
    "lost": "the GPU does not answer any more",
    "reset_required": "NVML asks for a reset of the GPU",
    "row_remap_pending": "a row of its memory is replaced at the next reset",
    "row_remap_failed": "no spare row is left",
    "thermal": "slowed down by heat for most of ten minutes",
    "power_brake": "slowed down by its power supply for most of ten minutes",
}


def codes_of(condition: Condition) -> list[str]:
    """Return the events that a condition amounts to. What a GPU does not tell amounts to none, and proves nothing."""
    if condition.is_lost:
        return ["lost"]
    codes = []
    if condition.needs_reset:
        codes.append("reset_required")
    if condition.recovery:
        codes.append(f"recovery:{condition.recovery}")
    if condition.uncorrected:
        codes.append("ecc_dbe")
    if condition.remap_pending:
        codes.append("row_remap_pending")
    if condition.remap_failed:
        codes.append("row_remap_failed")
    return codes
