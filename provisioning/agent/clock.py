"""The one clock of the agent: seconds since the machine started, sleep included. Wall clocks jump."""

import time
from pathlib import Path

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Return the seconds since this machine started."""
    return time.clock_gettime(CLOCK)


def boot_id() -> str:
    """Return a name for this start of the machine; times of `boottime` compare only under the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without Linux: the second at which the machine started, as far as the wall clock can tell.
        return f"started-{round((time.time() - boottime()) / 60)}"
