"""Starts a cluster's daemons, and ends all that came of them when whoever asked for them is gone, however that went.

What a daemon leaves behind (a slurmstepd goes on without its slurmd) becomes this process's child, as orphans become
init's elsewhere: that tells ours from all others of this machine.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

PR_SET_CHILD_SUBREAPER = 36
ENDED_WITHIN_S = 20


class Keeper:
    """The other end: starts the process, orders daemons of it, and ends it."""

    def __init__(self, folder: Path) -> None:
        with (folder / "keeper.out").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.slurm.keeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=Path(__file__).parents[2], start_new_session=True, text=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def start(self, **order: Any) -> int:
        """Start a daemon; return its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it with all that is left."""
        self._process.communicate(timeout=ENDED_WITHIN_S)


def reap(*_: Any) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start(order: dict[str, Any]) -> int:
    user = order["user"]
    with open(order["log"], "ab") as log:
        return subprocess.Popen(
            order["command"], env=order["env"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # A slurmstepd hides its environment, but not where it is.
            start_new_session=True, cwd=order["folder"], user=user, group=user, extra_groups=[] if user else None,
        ).pid  # fmt: skip


def main() -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:  # Until nobody holds the other end.
        print(start(json.loads(line)), flush=True)
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
