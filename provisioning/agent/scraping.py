"""Reads the counters of what runs here, as the workload shows them: Prometheus text format, on a port of its own.

What a workload says is its own word: it is read within narrow limits, and only the counters that were asked for by
name are told. What they mean, and whether they can be true, is the control plane's to say.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from provisioning.agent.protocol import Assignment, Counters
from provisioning.agent.workloads import Workload

log = logging.getLogger("gpumarket.agent")

EVERY_S = 15.0
TIMEOUT = httpx.Timeout(3.0)
LONGEST_S = 5.0
BYTES_MAX = 4 << 20
BIGGEST = 2**53
# A name, its labels (of which a value may hold anything but a bare quote), a value, perhaps a time.
SAMPLE = re.compile(
    r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*', re.ASCII
)


class Scraper:
    """Runs in a thread of its own: looks at everything that runs here and shows counters, every 15 s."""

    def __init__(
        self,
        *,
        wanted: Callable[[], Iterable[Assignment]],
        running: Callable[[str, int], Workload | None],
        record: Callable[[str, dict[str, Any]], object],
    ) -> None:
        self._wanted = wanted
        self._running = running
        self._record = record
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False, follow_redirects=False)

    def run(self, stopping: threading.Event) -> None:
        """Look until told to stop."""
        while not stopping.wait(EVERY_S):
            try:
                self.look()
            except Exception:
                log.exception("reading counters failed; trying again")

    def look(self) -> None:
        """Read every workload's counters once, and put what they say on record as one entry."""
        samples = []
        for one in self._wanted():
            workload = self._running(one.id, one.fence) if one.work.counters else None
            if workload is None or one.work.counters is None:
                continue
            values = self._read(workload.address(), one.work.counters)
            if values:
                samples.append({"assignment": one.id, "fence": one.fence, "values": values})
        if samples:
            self._record("counters", {"samples": samples})

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


def parsed(text: str, names: Iterable[str]) -> dict[str, int]:
    """Return the counters of these names, each the whole part of the sum over its labels; what is no number is none.

    The text format of Prometheus, version 0.0.4: one sample a line, `#` begins a comment.
    """
    sums: dict[str, float] = {}
    wanted = frozenset(names)
    for line in text.split("\n"):
        found = None if line.startswith("#") else SAMPLE.fullmatch(line.removesuffix("\r").lstrip(" \t"))
        if found is None or found[1] not in wanted:
            continue
        try:
            value = float(found[2])
        except ValueError:
            value = math.nan
        sums[found[1]] = sums.get(found[1], 0.0) + value
    return {name: int(value) for name, value in sums.items() if 0 <= value <= BIGGEST}
