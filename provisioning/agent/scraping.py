"""Reads the counters of what runs here, as the workload shows them: Prometheus text format, on a port of its own.

What a workload says is its own word: it is read within narrow limits. What is done with it, see `readings`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

import httpx

from provisioning.agent.protocol import Assignment, Counters
from provisioning.agent.readings import BYTES_MAX, Reading, Readings, parsed
from provisioning.agent.workloads import Workload

log = logging.getLogger("gpumarket.agent")

EVERY_S = 15.0
TICK_S = 1.0
TIMEOUT = httpx.Timeout(3.0)
LONGEST_S = 5.0


class Scraper:
    """Runs in a thread of its own: looks at everything that runs here and shows counters, every 15 s.

    What has just begun is read more often, after about 1, 2, 4 and 8 s: it may not run for long, and once it has
    ended nobody can ask it any more, only look at what it left.
    """

    def __init__(
        self,
        *,
        wanted: Callable[[], Iterable[Assignment]],
        running: Callable[[str, int], Workload | None],
        readings: Readings,
    ) -> None:
        self._wanted = wanted
        self._running = running
        self._readings = readings
        self._begun: dict[tuple[str, int], float] = {}
        self._read_at: dict[tuple[str, int], float] = {}
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False, follow_redirects=False)

    def run(self, stopping: threading.Event) -> None:
        """Look until told to stop."""
        while not stopping.wait(TICK_S):
            try:
                self.look(now=time.monotonic())
            except Exception:
                log.exception("reading counters failed; trying again")

    def look(self, *, now: float | None = None) -> None:
        """Read every workload's counters once, and put what they say on record as one entry.

        With a time (seconds that only grow) only of those that are due then.
        """
        found, here = list[Reading](), set[tuple[str, int]]()
        for one in self._wanted():
            workload = self._running(one.id, one.fence) if one.work.counters else None
            if workload is None or one.work.counters is None:
                continue
            here.add((one.id, one.fence))
            if now is not None and not self._is_due((one.id, one.fence), now):
                continue
            values = self._read(workload.address(), one.work.counters)
            if values:
                found.append(Reading(one.id, one.fence, values, folder=workload.metadata.parent))
        self._readings.tell(found)
        for gone in self._begun.keys() - here:
            del self._begun[gone]
            self._read_at.pop(gone, None)

    def _is_due(self, run: tuple[str, int], now: float) -> bool:
        """Return whether a run is to be read now, and count that as done."""
        age = now - self._begun.setdefault(run, now)
        if run in self._read_at and now < self._read_at[run] + min(max(age / 2, TICK_S), EVERY_S):
            return False
        self._read_at[run] = now
        return True

    def _read(self, address: str, counters: Counters) -> dict[str, int]:
        try:
            return parsed(self._fetch(f"http://{address}:{counters.port}{counters.path}"), counters.names)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.info("no counters this time", extra={"address": address, "error": str(error)})
            return {}

    def _fetch(self, url: str) -> str:
        found, began = b"", time.monotonic()
        with self._client.stream("GET", url, headers={"Accept": "text/plain;version=0.0.4"}) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                found += piece
                if len(found) > BYTES_MAX or time.monotonic() - began > LONGEST_S:
                    raise ValueError("it says too much or too slowly")
        return found.decode(errors="replace")
