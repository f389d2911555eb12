"""`python -m tests.bench.gpu`: what the GPUs of this machine tell, and whether their energy counters agree with power.

For each GPU: its facts, which questions it does not support, and over a minute the growth of its energy counter beside
the integral of its power. The two differ where power is sampled too rarely, so the difference is the figure.
"""

import argparse
import sys
import time
from dataclasses import asdict, fields
from typing import Any

from provisioning.agent.gpus import GpuSourceError, Reading
from provisioning.agent.nvml import NvmlGpus
from tests.bench.machine import facts as machine_facts
from tests.bench.machine import last_line

MILLI = 1000


def untold(reading: Reading) -> list[str]:
    """Return the meters that a GPU has no answer for."""
    return [one.name for one in fields(reading) if getattr(reading, one.name) is None]


def integrate(source: NvmlGpus, *, seconds: float, every_s: float) -> dict[str, dict[str, Any]]:
    """Return for each GPU the joules of its counter and those of its power over a time, by the trapezoid rule."""
    first = {reading.uuid: reading for _, reading in source.read(busy=frozenset())}
    last, joules = dict(first), dict.fromkeys(first, 0.0)
    began = before = time.monotonic()
    while before - began < seconds:
        time.sleep(every_s)
        now = time.monotonic()
        for _, reading in source.read(busy=frozenset()):
            was = last.get(reading.uuid)
            if was is not None and was.power_mw is not None and reading.power_mw is not None:
                joules[reading.uuid] += (was.power_mw + reading.power_mw) / 2 * (now - before) / MILLI
            last[reading.uuid] = reading
        before = now
    found = {}
    for uuid, reading in last.items():
        start, end = first[uuid].millijoules, reading.millijoules
        counter = None if start is None or end is None or end < start else (end - start) / MILLI
        off = None if not counter else round(100 * (joules[uuid] - counter) / counter, 2)
        found[uuid] = {"counter_joules": counter, "power_joules": round(joules[uuid], 3), "difference_percent": off}
    return found


def main() -> None:
    """Measure, and print one JSON document as the last line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--every", type=float, default=0.1, help="seconds between two looks at the power")
    given = options.parse_args()
    machine = machine_facts()
    try:
        source = NvmlGpus()
    except GpuSourceError as error:
        sys.exit(f"there is no GPU to measure: {error}")
    found = source.read(busy=frozenset())
    figures = {
        "driver": source.driver,
        "gpus": [asdict(gpu) | {"not_told": untold(reading)} for gpu, reading in found],
        "links": [asdict(link) for link in source.links()],
        "energy": integrate(source, seconds=given.seconds, every_s=given.every),
    }
    print(last_line("gpu", figures, machine))


if __name__ == "__main__":
    main()
