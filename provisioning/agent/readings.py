"""What was read of the counters of workloads: told in the journal, and kept beside each for what the node signs of it.

Only the counters that were asked for by name are told. What they mean, and whether they can be true, is the control
plane's to say. A command that has ended shows nothing any more, so the last reading is what it left in its file
(`GPUMARKET_COUNTERS`, in its working folder), in the text format that its port speaks.
"""

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.agent.environment import COUNTERS_FILE
from provisioning.agent.files import read_json, write_json
from provisioning.agent.folders import open_beneath
from provisioning.agent.protocol import Assignment

log = logging.getLogger("gpumarket.agent")

BYTES_MAX = 4 << 20
BIGGEST = 2**53
READINGS = "counters.json"
# A name, its labels (of which a value may hold anything but a bare quote), a value, perhaps a time.
SAMPLE = re.compile(
    r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*', re.ASCII
)


@dataclass(frozen=True)
class Reading:
    """What the counters of one run showed. `folder` is the workload's own, out of its command's reach."""

    assignment: str
    fence: int
    values: Mapping[str, int]
    folder: Path


class Readings:
    """Any thread may tell readings. After the last one of a run nothing of it is told any more."""

    def __init__(self, *, record: Callable[[str, dict[str, Any]], object]) -> None:
        self._record = record
        self._guard = threading.Lock()
        self._over: dict[str, int] = {}  # Fences of runs whose last reading was taken, by assignment.

    def tell(self, found: Sequence[Reading]) -> None:
        """Put what was read on record, as one entry."""
        with self._guard:
            # What was read just before a run ended may come after its last reading, and would look like a new count.
            self._tell([one for one in found if self._over.get(one.assignment) != one.fence])

    def take_last(self, wanted: Assignment, folder: Path) -> None:
        """Read once what a command that has ended left in its file of counters; what is below its port's is old."""
        if wanted.work.counters is None or self._over.get(wanted.id) == wanted.fence:
            return
        with self._guard:
            self._over[wanted.id] = wanted.fence
            before = read_json(folder / READINGS) or {}
            left = parsed(left_in(folder / "work"), wanted.work.counters.names)
            values = {name: value for name, value in left.items() if value >= before.get(name, [0])[-1]}
            if values:
                self._tell([Reading(wanted.id, wanted.fence, values, folder)])

    def forget(self, assignment: str) -> None:
        """Remember no more of what is gone from this node."""
        self._over.pop(assignment, None)

    def _tell(self, found: Sequence[Reading]) -> None:
        if not found:
            return
        samples = [
            {"assignment": one.assignment, "fence": one.fence, "values": dict(one.values)} for one in found
        ]  # fmt: skip
        self._record("counters", {"samples": samples})
        for one in found:
            note(one.folder / READINGS, one.values)


def left_in(work: Path) -> str:
    """Return the text that a command left of its counters; nothing where it left none that can be read."""
    try:
        with os.fdopen(open_beneath(work, COUNTERS_FILE), "rb") as file:
            found = file.read(BYTES_MAX + 1)
    except OSError:
        return ""
    return found.decode(errors="replace") if len(found) <= BYTES_MAX else ""


def note(path: Path, values: Mapping[str, int]) -> None:
    """Keep the first and the last reading of each counter beside its workload, for what the node signs of it."""
    try:
        kept = read_json(path) or {}
        signable = {name: one for name, one in values.items() if one < BIGGEST}
        new = {name: [kept.get(name, [one])[0], one] for name, one in signable.items()}
        write_json(path, kept | new, durable=False)
    except OSError as error:
        log.warning("cannot write readings down", extra={"path": str(path), "error": str(error)})


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
