"""Supervises one workload and outlives the agent: `python -m provisioning.agent.shim FOLDER`.

The folder is the whole conversation between agent and shim:

    order.json  what to run: command, environment, output limit. Written by the agent before it starts a shim.
    claim       the shim's pid. Made by link(2), so that one shim at most ever acts on a folder, and locked with
                flock(2) as long as that shim lives: the lock, not the pid, says that it does.
    started     there from the moment when the command may have begun.
    stop.json   {"grace_s"}: the agent writes it and sends SIGTERM. Everything gets SIGTERM, then SIGKILL.
    output      standard output and error of the command, byte by byte, up to the limit.
    end.json    exit code and time; written last, when nothing of the workload runs and all output is kept.

Two levels above the folder is the agent's home with its lease.json. When the lease in assignment.json has run out since
the server was last heard, the shim ends the workload as if stop.json asked for it: the agent may be long dead.

On Linux the shim is the reaper of all that descends from it, so a process that forks twice and starts its own
session is still its child. When the command exits, what it left running is killed, as in a container.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import keep_room, read_json, write_json_in_room
from provisioning.agent.lease import LEASE_GRACE_S_MAX, LEASE_RAN_OUT, STICKY_S, LeaseWatch
from provisioning.agent.output import OutputFile

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
READ_BYTES = 1 << 16
QUICK_LOOK_S = 0.02
SLOW_LOOK_S = 5.0
NOT_FOUND, NOT_STARTED, KILLED_BY = 127, 126, 128


def main() -> int:
    """Run the order of the folder named on the command line, unless another shim has claimed it."""
    folder = Path(sys.argv[1]).absolute()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # A handler, not SIG_IGN: the command would inherit that.
    order = json.loads((folder / "order.json").read_bytes())
    lock = claim(folder)
    if lock is None:
        return 1
    Supervisor(folder, order).run()
    os.close(lock)
    return 0


def claim(folder: Path) -> int | None:
    """Take the folder for this process: the locked claim's file, or None if somebody has been here before."""
    mine = folder / f".claim-{os.getpid()}"
    lock = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, str(os.getpid()).encode())
        os.link(mine, folder / "claim")  # Appears whole, locked, and only where there was none.
    except FileExistsError:
        os.close(lock)
        return None
    finally:
        mine.unlink()
    return lock


class Supervisor:
    """Starts the command once, keeps its output, reaps and ends all that descends from it."""

    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        self.folder = folder
        self.order = order
        self.output = OutputFile(folder / "output", limit_bytes=order["output_limit_bytes"])
        self.command_pid = 0
        self.end: dict[str, Any] | None = None
        self.stop_began: float | None = None
        self.lease = LeaseWatch(folder.parents[1] / "lease.json", lease_s=lease_s(folder))
        self.lapse: dict[str, Any] | None = None  # The order to stop that the lease gave by running out.
        self.pipe, self.pipe_in = os.pipe()
        self.wake, wake_in = os.pipe()
        for handle in (self.pipe, self.wake, wake_in):
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)

    def run(self) -> None:
        """Return when nothing of the workload is left and its end is written down."""
        libc = load_libc()
        if libc is not None:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        keep_room(self.folder / "end.json")  # A command may fill the disk, and has ended all the same.
        (self.folder / "started").touch()
        self.command_pid = self._fork(libc)
        os.close(self.pipe_in)
        looker = selectors.DefaultSelector()
        looker.register(self.wake, selectors.EVENT_READ)
        looker.register(self.pipe, selectors.EVENT_READ)
        while self._reap():
            must_look_soon = self._press_on()
            for key, _ in looker.select(QUICK_LOOK_S if must_look_soon else SLOW_LOOK_S):
                if not self._drain(key.fd):
                    looker.unregister(key.fd)
        while self._drain(self.pipe, is_last=True):
            pass
        write_json_in_room(self.folder / "end.json", self._whole_end())

    def _whole_end(self) -> dict[str, Any]:
        """Return the end, with the lease as its reason where nobody has written that into stop.json."""
        assert self.end is not None
        if self.lapse is None or (self._asked_to_stop() or {}).get("reason") == self.lapse["reason"]:
            return self.end
        return self.end | {"message": "; ".join(filter(None, [self.end["message"], self.lapse["reason"]]))}

    def _fork(self, libc: Any) -> int:
        parent = os.getpid()
        # Who is asked to end before the command is there ends once it is: until then our own handler would take it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return pid
        code = NOT_STARTED
        try:
            os.setsid()
            if not self.order.get("has_network", True):
                from provisioning.agent.loneliness import leave_network  # noqa: PLC0415  few need it

                leave_network()  # First: a change of what a process may do forgets whose death ends it.
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(KILLED_BY + signal.SIGKILL)
            become(self.order, workdir=self.folder / "work", output=self.pipe_in)
        except FileNotFoundError as error:
            code = NOT_FOUND
            os.write(self.pipe_in, refusal(self.order, error))
        except (OSError, ValueError) as error:
            os.write(self.pipe_in, refusal(self.order, error))
        finally:
            os._exit(code)

    def _reap(self) -> bool:
        """Collect who has ended; return whether anybody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.command_pid:
                self.end = end_record(os.waitstatus_to_exitcode(status))

    def _press_on(self) -> bool:
        """Take the next step of ending, if ending is asked for or due; return whether to look again soon."""
        stop = self._stop_order()
        if stop is None:
            if self.end is not None:
                kill_children(command_pid=self.command_pid)
            return self.end is not None
        if self.stop_began is None:
            self.stop_began = time.monotonic()
            for pid in descendants(os.getpid()) if is_linux() else [-self.command_pid]:
                send(pid, signal.SIGTERM)
        if time.monotonic() >= self.stop_began + stop["grace_s"]:
            kill_children(command_pid=self.command_pid)
        return True

    def _stop_order(self) -> Any:
        """Return the order to stop, if there is one: the agent's, the lease's, or the more urgent of both."""
        if self.lapse is None and self.end is None and self.lease.has_run_out():
            self.lapse = {"grace_s": lease_grace_s(self.folder), "reason": LEASE_RAN_OUT}
        orders = [order for order in (self._asked_to_stop(), self.lapse) if order is not None]
        return min(orders, key=lambda order: order["grace_s"], default=None)

    def _asked_to_stop(self) -> Any:
        return read_json(self.folder / "stop.json")

    def _drain(self, handle: int, *, is_last: bool = False) -> bool:
        """Read what is there; return False when nothing will come any more (or, `is_last`, nothing is there)."""
        try:
            data = os.read(handle, READ_BYTES)
        except BlockingIOError:
            return not is_last
        if handle == self.pipe:
            self.output.write(data)
        return bool(data)


def lease_s(folder: Path) -> float:
    """Return how long a workload may run on when the server is not heard; STICKY_S where its folder does not say."""
    return said_of(folder, "lease_s", default=STICKY_S)


def lease_grace_s(folder: Path) -> float:
    """Return how long a workload may take to end once its lease has run out; 0 where its folder does not say."""
    return min(said_of(folder, "stop_grace_s", default=0), LEASE_GRACE_S_MAX)


def said_of(folder: Path, name: str, *, default: float) -> float:
    """Return a number of the assignment that a folder was made for."""
    try:
        return float(read_json(folder / "assignment.json")[name])
    except (OSError, ValueError, TypeError, KeyError):
        return default


def become(order: dict[str, Any], *, workdir: Path, output: int) -> None:
    """Turn this process into the command; raises where that cannot be."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # An exec would keep what Python or our own parents ignore.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    # An order that an earlier agent left says nothing of it.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (order.get("files", hard), hard))
    os.chdir(workdir)
    os.execvpe(order["command"][0], order["command"], order["env"])  # noqa: S606  it is what was rented


def refusal(order: dict[str, Any], error: Exception) -> bytes:
    """Return the line for the workload's log that says why its command did not start."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = f"gpumarket: cannot run {order['command'][0]!r}: {reason}\n"
    return line.encode(errors="replace")


def end_record(exit_code: int) -> dict[str, Any]:
    """Return what is written down about a command that exits now; negative codes are signals, as in `subprocess`."""
    message = ""
    if exit_code < 0:
        message = f"killed by signal {-exit_code} ({signal_name(-exit_code)})"
        exit_code = KILLED_BY - exit_code
    return {"state": "exited", "exit_code": exit_code, "message": message, "at": boottime(), "boot_id": boot_id()}


def signal_name(number: int) -> str:
    """Return SIGTERM for 15, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unnamed"


def is_linux() -> bool:
    """Return whether there are /proc and prctl(2). Elsewhere a workload is only as much as its process group."""
    return sys.platform == "linux"


def load_libc() -> Any:
    """Return the C library, or None where it has no prctl(2)."""
    return ctypes.CDLL(None, use_errno=True) if is_linux() else None


def parents() -> dict[int, int]:
    """Return the parent of every process, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text(errors="replace")
            except OSError:
                continue  # It ended while we looked.
            # The name in parentheses may itself hold parentheses and blanks.
            found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """Return the pids of all that descends from `pid`."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return found


def kill_children(*, command_pid: int) -> None:
    """Kill the direct children: until they are reaped, their pids cannot mean anybody else.

    Their own children become ours by that, and fall in the next round.
    """
    me = os.getpid()
    for pid in [child for child, parent in parents().items() if parent == me] if is_linux() else [-command_pid]:
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
