"""Guards one container and outlives the agent: `python -m provisioning.agent.guard FOLDER`.

It starts the container that the agent made ready, keeps what it writes, ends it when asked to or when the lease of
assignment and node has run out, and writes down its end. The folder is the conversation between agent and guard:

    order.json  the container's name, podman's environment, the limit of the output. Written before a guard starts.
    claim       locked with flock(2) as long as a guard lives (or while the agent makes sure that none will act).
    pipe        what the container writes. It holds both ends open itself, so it does not notice a guard that died.
    started     there from the moment when the command may have begun: it is never started again after that.
    running     there when podman has started it.
    stop.json   {"grace_s"}: the agent writes it and sends SIGTERM. The command gets SIGTERM, then all get SIGKILL.
    output      what was written, byte by byte, up to the limit.
    end.json    exit code and time; written last.

A guard that was killed harms nothing: the agent starts the next one, which finds the container and the pipe where
they were. Only a start that was interrupted is given up, because nobody could tell whether the command ran.
"""

import fcntl
import json
import os
import select
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import keep_room, read_json, write_json_in_room, write_whole
from provisioning.agent.lease import LEASE_RAN_OUT, SUPERVISOR_KILLED, LeaseWatch
from provisioning.agent.output import OutputFile
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.shim import lease_grace_s, lease_s, signal_name

READ_BYTES = 1 << 16
QUICK_LOOK_S = 0.05
LOOKS_MAX = 50  # For a container that lives and whose processes we cannot hold.
SLOW_LOOK_S = 2.0
KILLED, SIGNALLED = 137, 128
INTERRUPTED = "never started: its supervisor was killed while it started the container"


def main() -> int:
    """Guard the container of the folder named on the command line, unless another guard does."""
    folder = Path(sys.argv[1]).absolute()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    lock = take_claim(folder)
    if lock is None:
        return 1
    if not (folder / "end.json").exists():
        Guard(folder, json.loads((folder / "order.json").read_bytes())).run()
    os.close(lock)
    return 0


def take_claim(folder: Path) -> int | None:
    """Return the locked claim, or None while somebody else holds it."""
    lock = os.open(folder / "claim", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


class Guard:
    """Stays with one container from its start to its end."""

    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        self.folder = folder
        self.name = order["container"]
        self.podman = Podman(order["podman_env"])
        self.output = OutputFile(folder / "output", limit_bytes=order["output_limit_bytes"])
        self.pipe = os.open(folder / "pipe", os.O_RDWR | os.O_NONBLOCK)
        self.lease = LeaseWatch(folder.parents[1] / "lease.json", lease_s=lease_s(folder))
        self.lapse: dict[str, Any] | None = None  # The order to stop that the lease gave by running out.
        self.stop_began: float | None = None
        self.has_killed = False
        self.saw_it_end = False
        self.lost_its_monitor = False
        self.ended_at: float | None = None
        self.init = self.conmon = -1  # pidfds of the container's first process and of podman's monitor.
        self.wake, wake_in = os.pipe()
        for handle in (self.wake, wake_in):
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.looker = selectors.DefaultSelector()
        self.looker.register(self.pipe, selectors.EVENT_READ)
        self.looker.register(self.wake, selectors.EVENT_READ)

    def run(self) -> None:
        """Return when the container has ended and its end is written down."""
        keep_room(self.folder / "end.json")  # A command may fill the disk, and has ended all the same.
        failure = self._take_over() if (self.folder / "started").exists() else self._start()
        if not failure:
            self._stay()
            self._hold_on()
        self._drain(self.output.write)
        write_json_in_room(self.folder / "end.json", self._failed(failure) if failure else self._end())

    def _start(self) -> str:
        """Start the container for the only time; return why that failed, or nothing."""
        self._watch()  # Its first process is there already, and waits: so no end is too quick to be seen.
        self._drain(lambda _words_of_podman: None)  # Nothing in the container has begun.
        write_whole(self.folder / "started", b"")
        try:
            self.podman.run("start", self.name)
        except PodmanError as error:
            return f"podman could not start it: {error}"
        (self.folder / "running").touch()
        return ""

    def _take_over(self) -> str:
        """Go on where a killed guard left; return why there is nothing to go on with, or nothing."""
        found = self.podman.find(self.name)
        if found is None or found["State"]["Status"] not in {"created", "initialized", "configured"}:
            self._watch()
            (self.folder / "running").touch()
            return ""
        # Its start may be on its way even now. A container that is gone cannot be started by it.
        self.podman.run("rm", "--force", "--time", "0", self.name)
        return INTERRUPTED

    def _stay(self) -> None:
        """Keep the output and see to orders until podman's monitor is gone."""
        while self.conmon >= 0:
            must_look_soon = self._press_on()
            for key, _ in self.looker.select(QUICK_LOOK_S if must_look_soon else SLOW_LOOK_S):
                if key.fd == self.pipe:
                    self.output.write(os.read(self.pipe, READ_BYTES))
                elif key.fd == self.wake:
                    os.read(self.wake, READ_BYTES)
                else:
                    self._note_end_of(key.fd)

    def _hold_on(self) -> None:
        """Watch anew what lives though we lost sight of it; what cannot be held is ended: nothing may run alone."""
        for _ in range(LOOKS_MAX):
            if self.lost_its_monitor or not self._is_running():
                return
            self._watch()
            if self.conmon >= 0:
                self._stay()
            else:
                time.sleep(QUICK_LOOK_S)
        log_line = f"gpumarket: {self.name} could not be watched and is ended\n"
        self.output.write(log_line.encode())
        self.podman.run("rm", "--force", "--time", "0", self.name)

    def _is_running(self) -> bool:
        found = self.podman.find(self.name)
        return found is not None and found["State"]["Status"] == "running"

    def _watch(self) -> None:
        """Hold on to the processes of a container that lives; their pids cannot mean anybody else from then on."""
        before = self._pids()
        if 0 in before:
            return
        try:
            self.init, self.conmon = (os.pidfd_open(pid) for pid in before)
        except ProcessLookupError:
            return
        if self._pids() != before:
            self.init = self.conmon = -1
            return
        self.saw_it_end = True
        self.looker.register(self.init, selectors.EVENT_READ)
        self.looker.register(self.conmon, selectors.EVENT_READ)

    def _pids(self) -> tuple[int, int]:
        found = self.podman.find(self.name)
        return (0, 0) if found is None else (found["State"]["Pid"], found["State"].get("ConmonPid", 0))

    def _note_end_of(self, handle: int) -> None:
        self.looker.unregister(handle)
        if handle == self.init:
            self.ended_at = boottime()
            return
        # The monitor's last act is podman's clean-up. One that was killed leaves a container that nobody reaps.
        self.conmon = -1
        if self.ended_at is None:
            self.lost_its_monitor = not select.select([self.init], [], [], 0)[0]
            self._signal(signal.SIGKILL)
            self.ended_at = boottime()

    def _press_on(self) -> bool:
        """Take the next step of ending, if ending is asked for or due; return whether to look again soon."""
        stop = self._stop_order()
        if stop is None:
            return False
        if self.stop_began is None:
            self.stop_began = time.monotonic()
            self._signal(signal.SIGTERM)
        if not self.has_killed and time.monotonic() >= self.stop_began + stop["grace_s"]:
            self.has_killed = True
            self._signal(signal.SIGKILL)  # With the first process of its namespace, the kernel ends all others.
        return True

    def _stop_order(self) -> Any:
        """Return the order to stop, if there is one: the agent's, the lease's, or the more urgent of both."""
        if self.lapse is None and self.lease.has_run_out():
            self.lapse = {"grace_s": lease_grace_s(self.folder), "reason": LEASE_RAN_OUT}
        orders = [order for order in (read_json(self.folder / "stop.json"), self.lapse) if order is not None]
        return min(orders, key=lambda order: order["grace_s"], default=None)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.init, number)
        except ProcessLookupError:
            return  # It has ended.

    def _drain(self, take: Callable[[bytes], None]) -> None:
        while True:
            try:
                data = os.read(self.pipe, READ_BYTES)
            except BlockingIOError:
                return
            take(data)

    def _failed(self, why: str) -> dict[str, Any]:
        return {"state": "failed", "exit_code": None, "message": why, "at": boottime(), "boot_id": boot_id()}

    def _end(self) -> dict[str, Any]:
        """Return what is written down about a container that has ended."""
        found = self._find_ended()
        if self.lost_its_monitor:
            code, message = KILLED, SUPERVISOR_KILLED
        else:
            has_no_memory = (self.folder / "oom").exists()  # The monitor notes it where it was started.
            code, message = exit_of(found, has_no_memory=has_no_memory)
        asked = (read_json(self.folder / "stop.json") or {}).get("reason")
        lapsed = "" if self.lapse is None or asked == self.lapse["reason"] else self.lapse["reason"]
        return {
            "state": "exited",
            "exit_code": code,
            "message": "; ".join(filter(None, [message, lapsed])),
            "at": self.ended_at or boottime(),
            "boot_id": boot_id() if self.saw_it_end else "",  # Nobody saw when: the time compares with no clock.
        }

    def _find_ended(self) -> Any:
        """Return what podman says of the container, once it has noted its exit code: before that it says 0."""
        for _ in range(LOOKS_MAX):
            found = self.podman.find(self.name)
            if self.lost_its_monitor or found is None or found["State"]["Status"] == "exited":
                break
            time.sleep(QUICK_LOOK_S)
        return found


def exit_of(found: dict[str, Any] | None, *, has_no_memory: bool) -> tuple[int, str]:
    """Return the exit code of an ended container, and what there is to say about it.

    Podman tells a command that a signal killed by 128 and its number, as a shell does.
    """
    if found is None:
        return KILLED, "somebody removed its container"
    code = found["State"]["ExitCode"]
    if code < 0 or found["State"]["Status"] not in {"exited", "stopped"}:
        return KILLED, "podman does not know its exit code; it is assumed"
    if code == KILLED and (has_no_memory or found["State"].get("OOMKilled")):
        return code, f"killed: it needed more memory than its limit of {found['HostConfig']['Memory']} bytes"
    if SIGNALLED < code < SIGNALLED + 65:
        return code, f"killed by signal {code - SIGNALLED} ({signal_name(code - SIGNALLED)})"
    return code, ""


if __name__ == "__main__":
    sys.exit(main())
