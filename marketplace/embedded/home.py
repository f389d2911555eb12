"""The folder of one local marketplace: its data, logs and keys, held by one `up` at a time."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from marketplace.embedded import postgres
from marketplace.embedded.programs import CannotStart, kill
from marketplace.embedded.supervisor import end_leftovers

LOCK = "up.lock"  # also the mark of a gpumarket home
CONTENT = ("redis", "logs", "run", "nodes", "static", "environment.json", "connection.json")
ENDING = "ending"
WAIT_FOR_HOLDER_S = 1
WAIT_FOR_ENDING_HOLDER_S = 12


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Make `home` a gpumarket home if it is new or empty, and keep every other `up` out of it meanwhile.

    What an earlier run that was killed left running is ended first.
    """
    _refuse_what_is_no_home(home)
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:  # PostgreSQL's user must get through to its data; every file here guards itself
        home.chmod(home.stat().st_mode | 0o011)
    lock = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, home)
        end_leftovers(home)
        yield
    finally:
        os.close(lock)


def start_over(home: Path) -> None:
    """Delete what we made in a home that is held, by name: a file of somebody else in it is not ours to delete."""
    end_workloads(home)
    postgres.remove(home / "postgres")
    for name in CONTENT:
        path = home / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def end_workloads(home: Path) -> None:
    """Kill what the nodes of this home still run, for the case that their agents could not end it."""
    shims = [process for process in psutil.process_iter() if _is_shim(process, home)]
    for shim in shims:
        with contextlib.suppress(psutil.NoSuchProcess):
            kill([*shim.children(recursive=True), shim])


def _is_shim(process: psutil.Process, home: Path) -> bool:
    try:
        argv = process.cmdline()
    except psutil.Error:
        return False
    return "provisioning.agent.shim" in argv and Path(argv[-1]).is_relative_to(home / "nodes")


def _refuse_what_is_no_home(home: Path) -> None:
    if home.exists() and not home.is_dir():
        raise CannotStart(f"{home} is not a folder.")
    if home.exists() and any(home.iterdir()) and not (home / LOCK).exists():
        raise CannotStart(
            f"{home} holds other things than a gpumarket home (there is no {LOCK}); nothing in it was touched."
            " Name a new or empty folder with --home."
        )


def say_ending(home: Path) -> None:
    """Note in a home that we hold that we are about to leave it: the next `up` then waits instead of giving up."""
    (home / LOCK).write_text(f"{os.getpid()} {ENDING}")


def _take(lock: int, home: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, _, ending = os.pread(lock, 64, 0).decode().partition(" ")
            if time.monotonic() - began > (WAIT_FOR_ENDING_HOLDER_S if ending else WAIT_FOR_HOLDER_S):
                raise CannotStart(
                    f"{home} is in use: process {holder} is already up there. Stop it (kill {holder}), or run a second"
                    " marketplace beside it with another --home and --port."
                ) from None
            time.sleep(0.1)
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            return
