"""Keeps programs running: starts one that died again, and ends what an earlier, killed run left behind."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from marketplace.embedded.addresses import write_private
from marketplace.embedded.programs import (
    MARK,
    CannotStart,
    Program,
    Server,
    end,
    kill,
    last_lines,
    start,
    wait_until_gone,
)

LOOK_AGAIN_S = 0.05
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15
FORGIVEN_AFTER_S = 30  # a program that ran this long has no earlier deaths held against it
LOG_MAX_BYTES = 16 * 1024 * 1024  # a longer one makes room at the next start; one such is kept
CRASH_LOOP = 3  # deaths in a row that are worth the last lines of the log
STAGE_RESERVE_S = 2  # of the time to end, kept for each stage that is still to come


class ToldToStop(Exception):
    """Somebody wants everything to end while it is still starting."""


@dataclass
class _Kept:
    program: Program
    stage: int
    process: subprocess.Popen[bytes]
    running_since: float
    deaths: int = 0
    start_again_at: float | None = None


class Supervisor:
    """Runs programs for one home: logs in `home/logs`, records of what runs in `home/run`.

    Programs are ended stage by stage, highest first, so that one may still
    talk to those of the stages below while it ends.
    """

    def __init__(self, home: Path, *, say: Callable[[str], None]) -> None:
        self.home = home
        self._say = say
        self._kept: dict[str, _Kept] = {}
        self._is_stopping = False
        for folder in ("logs", "run"):
            (home / folder).mkdir(mode=0o700, exist_ok=True)

    def stop(self) -> None:
        """Make whoever waits or watches return; a signal handler may call it."""
        self._is_stopping = True

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def start(self, program: Program, *, stage: int) -> None:
        """Start a program that is to run until the end."""
        program = replace(program, environ={**program.environ, MARK: _mark(self.home)})
        self._kept[program.name] = _Kept(program, stage, self._launch(program), running_since=time.monotonic())

    def run_to_end(self, program: Program, *, within_s: float) -> None:
        """Run a program that has an end, a good one, or raise CannotStart."""
        self.start(program, stage=1)
        process = self._kept[program.name].process
        self.wait_for(program.name, until=lambda: process.poll() == 0, within_s=within_s)
        self._forget(program.name)

    def wait_for(self, name: str, *, until: Callable[[], bool], within_s: float) -> None:
        """Return when the condition holds. While we wait for anything, nobody may die: a start is no time for luck."""
        deadline = time.monotonic() + within_s
        while True:
            # Looked at before the condition: who ends well in between is no dead one.
            dead = next((kept for kept in self._kept.values() if kept.process.poll() is not None), None)
            if until():
                return
            if self._is_stopping:
                raise ToldToStop
            if dead is not None:
                raise CannotStart(self._last_words(dead.program.name, _cause(dead.process.returncode)))
            if time.monotonic() > deadline:
                raise CannotStart(self._last_words(name, f"is not ready after {within_s:g} s"))
            time.sleep(LOOK_AGAIN_S)

    def wait_for_server(self, server: Server, *, within_s: float) -> None:
        """Return when a server that was started answers."""
        name = server.program.name
        self.wait_for(name, until=lambda: server.is_ready(self._kept[name].process.pid), within_s=within_s)

    def watch(self, *, until: Callable[[], bool]) -> None:
        """Start programs that died again, at once and then after growing pauses; return when told to stop."""
        while not (self._is_stopping or until()):
            self.look()
            time.sleep(LOOK_AGAIN_S)

    def look(self) -> None:
        """Take one look at every program."""
        now = time.monotonic()
        for kept in self._kept.values():
            if kept.start_again_at is None and kept.process.poll() is not None:
                self._notice_death(kept, now)
            if kept.start_again_at is not None and kept.start_again_at <= now:
                kept.start_again_at = None
                kept.process = self._launch(kept.program)
                kept.running_since = now

    def end_all(self, *, within_s: float) -> None:
        """End everything, the highest stage first."""
        deadline = time.monotonic() + within_s
        for stage in sorted({kept.stage for kept in self._kept.values()}, reverse=True):
            members = [kept for kept in self._kept.values() if kept.stage == stage]
            end(
                [(kept.program, kept.process) for kept in members],
                within_s=max(0, deadline - time.monotonic() - STAGE_RESERVE_S * stage),
            )
            for kept in members:
                kill(_strays(kept.process.pid, self.home))
                self._forget(kept.program.name)

    def _forget(self, name: str) -> None:
        del self._kept[name]
        _record_file(self.home, name).unlink(missing_ok=True)

    def _launch(self, program: Program) -> subprocess.Popen[bytes]:
        log = self.log(program.name)
        if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.1"))
        process = start(program, log=log)
        _record(self.home, program.name, process.pid)
        return process

    def _notice_death(self, kept: _Kept, now: float) -> None:
        # What a killed parent leaves behind holds its port and does its work beside the new one.
        kill(_strays(kept.process.pid, self.home))
        kept.deaths = 1 if now - kept.running_since > FORGIVEN_AFTER_S else kept.deaths + 1
        pause_s = 0 if kept.deaths == 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (kept.deaths - 2))
        kept.start_again_at = now + pause_s
        when = f"in {pause_s:g} s" if pause_s else "now"
        cause = f"{_cause(kept.process.returncode)} and is started again {when}"
        if kept.deaths < CRASH_LOOP:
            self._say(f"{kept.program.name} {cause}.")
        else:
            self._say(self._last_words(kept.program.name, f"{cause}; it has died {kept.deaths} times in a row"))

    def _last_words(self, name: str, what: str) -> str:
        return f"{name} {what}. {self.log(name)} ends with:\n{last_lines(self.log(name))}"


def end_leftovers(home: Path, *, within_s: float = 3) -> list[str]:
    """End what a run of this home that was killed left running, nothing else; return the names.

    A process is ours when it has the pid and the start time that were
    recorded, or when it works in the session of such a process and carries our
    mark. A stranger who got a pid that was once ours is left alone.
    """
    records = sorted((home / "run").glob("*.json"))
    found = {record.stem: list(_left_of(record, home)) for record in records}
    ours = [process for processes in found.values() for process in processes]
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    kill(wait_until_gone(ours, within_s=within_s))
    for record in records:
        record.unlink()
    return [name for name, processes in found.items() if processes]


def _left_of(record: Path, home: Path) -> Iterator[psutil.Process]:
    try:
        written = json.loads(record.read_text())
        pid, started = int(written["pid"]), float(written["started_s_after_boot"])
    except (ValueError, KeyError, TypeError):
        return  # cut off by a crash of the machine: nothing of that boot runs
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(_started_s_after_boot(process) - started) < 0.02:
            yield process
    yield from _strays(pid, home)


def _strays(session: int, home: Path) -> list[psutil.Process]:
    """Return the living members of a session that we began, its leader not among them."""
    return [
        process for process in psutil.process_iter() if process.pid != session and _is_stray(process, session, home)
    ]


def _is_stray(process: psutil.Process, session: int, home: Path) -> bool:
    try:
        return os.getsid(process.pid) == session and process.environ().get(MARK) == _mark(home)
    except (OSError, psutil.Error):
        return False


def _mark(home: Path) -> str:
    return str(home.resolve())


def _record(home: Path, name: str, pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        started = _started_s_after_boot(psutil.Process(pid))
        write_private(_record_file(home, name), json.dumps({"pid": pid, "started_s_after_boot": started}))


def _record_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.json"


def _started_s_after_boot(process: psutil.Process) -> float:
    """Return a start time that does not move when somebody sets the clock."""
    return round(float(process.create_time() - psutil.boot_time()), 2)


def _cause(returncode: int) -> str:
    if returncode >= 0:
        return f"ended by itself (code {returncode})"
    return f"was killed ({signal.Signals(-returncode).name})"
