"""Programs that we run: each in a session of its own, ended together with everything it started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "GPUMARKET_STARTED_FOR"  # in the environment of all we start: the home it was started for
LOOK_AGAIN_S = 0.02


class CannotStart(Exception):
    """A program cannot be started; the message says which, why and what to do."""


def nothing() -> None: ...


@dataclass(frozen=True)
class Program:
    """What to run and as whom, and how to ask it to end. `before_start` clears what a killed run of it left."""

    name: str
    argv: tuple[str, ...]
    folder: Path
    environ: Mapping[str, str] = field(repr=False)
    uid: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    before_start: Callable[[], None] = nothing


@dataclass(frozen=True)
class Server:
    """A program that others connect to, where, and whether the given process of it answers yet."""

    program: Program
    url: str = field(repr=False)
    is_ready: Callable[[int], bool]


def start(program: Program, *, log: Path) -> subprocess.Popen[bytes]:
    """Start a program with its output appended to `log`. A signal for our terminal does not reach it."""
    program.before_start()
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the command lines are ours
            program.argv,
            cwd=program.folder,
            env=dict(program.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=program.uid,
            group=program.uid,
            extra_groups=None if program.uid is None else [],
        )


def end(running: Iterable[tuple[Program, subprocess.Popen[bytes]]], *, within_s: float) -> None:
    """End programs and everything they started: ask first, and kill what is left when the time is over."""
    deadline = time.monotonic() + within_s
    asked = []
    for program, process in running:
        asked.append((process, descendants(process.pid)))
        if process.poll() is None:
            process.send_signal(program.stop_signal)
    for process, _ in asked:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0, deadline - time.monotonic()))
    for process, started_by_it in asked:
        kill([*started_by_it, *descendants(process.pid)])
        process.kill()
        process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """Return all that a process started and that still hangs on it; [] when it is gone."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process], *, within_s: float = 2) -> None:
    """Kill processes and wait until they are gone. psutil leaves a re-used pid alone."""
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process)
    wait_until_gone(killed, within_s=within_s)


def wait_until_gone(processes: Iterable[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Wait until processes have ended; return those that have not."""
    deadline = time.monotonic() + within_s
    while alive := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_AGAIN_S)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process still runs.

    A zombie does not: in a container the first process may never collect the
    orphans that it inherits.
    """
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def last_lines(log: Path, *, count: int = 12) -> str:
    """Return the end of a log, indented, for a person who must see why something does not run."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"    ({error})"
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (nothing)"
