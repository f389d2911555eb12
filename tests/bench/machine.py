"""What every benchmark says of the machine it ran on, and how it ends."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil


def facts() -> dict[str, Any]:
    """Return what a reader needs to compare figures: without it they mean nothing.

    `load_before` is the load average when it is asked, so ask before the work:
    above a few tenths somebody else was using the machine too.
    """
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def last_line(name: str, figures: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return the line of JSON that every benchmark ends its standard output with."""
    return json.dumps({"name": name, "figures": figures, "machine": machine})


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)] if ordered else 0.0


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
