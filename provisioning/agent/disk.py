"""Room on the disk: what a new assignment needs, and a reserve so that the agent itself can write when it is full."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

RESERVE_BYTES = 4 << 20
NEEDED_BYTES = 16 << 20  # Below this the node takes nothing new: logs, files and records of what runs come first.
MIB, GIB = 1 << 20, 1 << 30
FILLED = re.compile(r"the workload filled its disk share: ([0-9.]+) of ([0-9.]+ [MG]iB)")


class Reserve:
    """A file that holds room for the agent's own records: given up when the disk is full, taken again later."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / "reserve"
        self.take()

    def take(self) -> bool:
        """Hold the room if there is some; return whether it is held."""
        try:
            if self._file.exists() and self._file.stat().st_size >= RESERVE_BYTES:
                return True
            with self._file.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self._file.unlink(missing_ok=True)
            return False
        return True

    def give_up(self) -> None:
        """Make room for the agent's own records."""
        self._file.unlink(missing_ok=True)

    def writing(self, write: Callable[[], None]) -> None:
        """Call `write`, and once more with the reserve's room where the disk was full."""
        try:
            write()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            self.give_up()
            write()

    def is_full(self) -> bool:
        """Return whether the disk has no room for anything new."""
        space = os.statvfs(self._home)
        return space.f_bavail * space.f_frsize < NEEDED_BYTES or not self.take()


def has_filled(message: str) -> bool:
    """Return whether a workload was ended because it passed its share of the disk: that is a failure of its own."""
    return FILLED.search(message) is not None


def filled(used_bytes: int, limit_bytes: int) -> str:
    """Return why a workload is ended that keeps so much."""
    size, unit = (GIB, "GiB") if limit_bytes >= GIB else (MIB, "MiB")
    return f"the workload filled its disk share: {used_bytes / size:.1f} of {limit_bytes / size:.1f} {unit}"
