"""One shell, command or transfer of files in a workload: joins an SSH channel and a process, pressure both ways."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncssh
import psutil

from provisioning.agent.limits import BEFORE
from provisioning.agent.podman import PodmanError
from provisioning.agent.ssh_places import Place
from provisioning.agent.workload import PACKAGE_ROOT, ProcessWorkload
from provisioning.agent.workloads import KILLED, Entry, Workload

log = logging.getLogger("gpumarket.agent")

PIECE_BYTES = 128 << 10
WAITING_BYTES_MAX = 1 << 20
NEWS_S = 1.2  # How long after a kill we may hear that the whole workload ended.
LAST_OUTPUT_S = 0.5  # How long a terminal may still print what the programs behind it wrote.
TERM_SHAPE = re.compile(r"[A-Za-z0-9._+-]{1,64}")
WELCOME_VARIABLES = re.compile(r"(LANG|LC_[A-Z]{1,20}|COLORTERM)")
VALUE_MAX = 200
MARK = "GPUMARKET_SESSION"  # In the environment of what a session runs: by it a container's processes are found.
ENDED_BY_US, CANNOT_START = 255, 126


class Visit(Protocol):
    """The connection that a session belongs to."""

    @property
    def place(self) -> Place:
        """Where it is."""

    def shut_because(self) -> str:
        """Return why the place is closed by now, or nothing."""

    def opened(self, session: "Session", kind: str) -> bool:
        """Note a session; False if there may be no more, or the place has closed."""

    def closed(self, session: "Session") -> None:
        """Note that a session is over."""


@dataclass(frozen=True)
class Terminal:
    """What the client asked for as its terminal; size in columns, rows and pixels."""

    kind: str
    size: tuple[int, int, int, int]


class Session(asyncssh.SSHServerSession[bytes]):
    """The life of one channel, from the request to the exit code."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._terminal: Terminal | None = None
        self._command: str | None = None
        self._kind = ""
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting_bytes = 0
        self._is_paused = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._process: asyncio.subprocess.Process | None = None
        self._master = -1
        self._task: asyncio.Task[None] | None = None
        self.id = ""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Keep the channel."""
        self._chan = chan

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], _modes: Mapping[int, int]) -> bool:
        """Note that a terminal is wanted."""
        self._terminal = Terminal(term_type if TERM_SHAPE.fullmatch(term_type) else "dumb", term_size)
        return True

    def shell_requested(self) -> bool:
        """Let a shell begin."""
        return self._begin("shell")

    def exec_requested(self, command: str) -> bool:
        """Let a command begin."""
        self._command = command
        return self._begin("exec")

    def subsystem_requested(self, subsystem: str) -> bool:
        """Let a transfer of files begin; there is no other subsystem."""
        return subsystem == "sftp" and self._begin("sftp")

    def _begin(self, kind: str) -> bool:
        self._kind = kind
        return self._visit.opened(self, kind)

    def session_started(self) -> None:
        """Run what was asked for."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes, _datatype: asyncssh.DataType) -> None:
        """Take input; when the process does not keep up, the client must wait."""
        self._input.put_nowait(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > WAITING_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self._chan.pause_reading()

    def eof_received(self) -> bool:
        """Note the end of the input; output goes on."""
        self._input.put_nowait(b"")
        return True

    def pause_writing(self) -> None:
        """Wait with output until the client has taken what there is."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Go on with output."""
        self._may_write.set()

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Tell the programs behind the terminal its new size."""
        if self._master >= 0:
            set_size(self._master, (width, height, pixwidth, pixheight))

    def signal_received(self, signal: str) -> None:
        """Pass a signal on to what runs in front."""
        number = NUMBERS.get(signal)
        if number is None or self._process is None:
            return
        if self._command_is_elsewhere:
            self._signal_inside(number)
        else:
            self._signal(number)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Hang up: the client is gone. What ignores that runs on, and we read what it still says."""
        self._may_write.set()
        self._input.put_nowait(b"")
        self._signal(signal.SIGHUP)
        if self._terminal is not None and self._task is not None:
            self._task.cancel()  # Closes the terminal, which hangs up the shell too.
        self._signal_inside(signal.SIGHUP)
        self._visit.closed(self)

    def end(self, why: str) -> None:
        """End it from our side, with a line that says why."""
        if not self._chan.is_closing():
            line = f"\r\ngpumarket: {why}\r\n" if self._terminal else f"gpumarket: {why}\n"
            self._chan.write_stderr(line.encode())
            self._chan.exit(ENDED_BY_US)
        self._signal_inside(signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal_inside(self, number: int) -> None:
        """Signal a command in a container, which is no child of ours and does not notice when podman's client ends."""
        if self._command_is_elsewhere:
            asyncio.get_running_loop().run_in_executor(None, signal_marked, self.id, number)

    @property
    def _command_is_elsewhere(self) -> bool:
        return self._kind != "sftp" and not isinstance(self._visit.place.workload, ProcessWorkload)

    def _signal(self, number: int) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        group = process.pid
        if self._master >= 0 and number != signal.SIGKILL:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._master) or group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)

    async def _run(self) -> None:
        try:
            code = await (self._run_in_terminal() if self._terminal and self._kind != "sftp" else self._run_in_pipes())
        except (OSError, ValueError, PodmanError) as error:
            log.warning("a session could not start", extra={"session": self.id, "error": str(error)})
            self._finish(CANNOT_START, f"gpumarket: it could not be started: {error}\n")
        else:
            await self._conclude(code)
        finally:
            if self._master >= 0:
                os.close(self._master)
                self._master = -1

    async def _conclude(self, code: int) -> None:
        """Tell how it ended; what was killed together with its instance is told as that."""
        limit = time.monotonic() + (NEWS_S if code in {KILLED, -signal.SIGKILL} else 0)
        while not (why := self._visit.shut_because()) and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        if why:
            self.end(why)
        else:
            self._finish(code)

    def _finish(self, code: int, message: str = "") -> None:
        if self._chan.is_closing():
            return
        if message:
            self._chan.write_stderr(message.encode())
        if code < 0:
            self._chan.exit_with_signal(NAMES.get(-code, "TERM"))
        else:
            self._chan.exit(code)

    async def _entry(self) -> Entry:
        workload = self._visit.place.workload
        if self._kind == "sftp":
            return await asyncio.to_thread(sftp_entry, workload)  # It may have to ask podman.
        given = self._chan.get_environment()
        env = {name: value for name, value in given.items() if is_welcome(name, value)}
        if self._terminal is not None:
            env["TERM"] = self._terminal.kind
        env[MARK] = self.id
        inside = workload.entry(self._command, tty=self._terminal is not None, env=env)
        kind = "tty" if self._terminal is not None else "pipes"
        launcher = (sys.executable, "-I", "-S", str(Path(__file__).with_name("terminal.py")), kind, str(BEFORE))
        return Entry((*launcher, *inside.argv), inside.env, inside.cwd)

    async def _run_in_pipes(self) -> int:
        process = await self._spawn(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        feeding = asyncio.create_task(self._feed(process.stdin))
        try:
            await asyncio.gather(self._pour(process.stdout), self._pour(process.stderr, asyncssh.EXTENDED_DATA_STDERR))
            return await process.wait()
        finally:
            feeding.cancel()
            process.stdin.close()

    async def _run_in_terminal(self) -> int:
        assert self._terminal is not None
        loop = asyncio.get_running_loop()
        self._master, behind = pty.openpty()
        set_size(self._master, self._terminal.size)
        try:
            process = await self._spawn(stdin=behind, stdout=behind, stderr=behind)
        finally:
            os.close(behind)
        reader = asyncio.StreamReader(limit=PIECE_BYTES)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(self._master), "rb", 0)
        )
        writing, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(self._master), "wb", 0)
        )
        feeding = asyncio.create_task(self._feed(asyncio.StreamWriter(writing, protocol, None, loop), is_terminal=True))
        pouring = asyncio.create_task(self._pour(reader))
        try:
            code = await process.wait()
            await asyncio.wait([pouring], timeout=LAST_OUTPUT_S)
            return code
        finally:
            feeding.cancel()
            pouring.cancel()
            reading.close()
            writing.close()

    async def _spawn(self, **pipes: Any) -> asyncio.subprocess.Process:
        entry = await self._entry()
        self._process = await asyncio.create_subprocess_exec(
            *entry.argv, env=entry.env, cwd=entry.cwd, start_new_session=True, limit=PIECE_BYTES, **pipes
        )
        if self._chan.is_closing():
            self._signal(signal.SIGHUP)  # The client left while we started.
        return self._process

    async def _feed(self, writer: asyncio.StreamWriter, *, is_terminal: bool = False) -> None:
        """Hand the client's input to the process."""
        with contextlib.suppress(ConnectionError, OSError):
            while data := await self._input.get():
                writer.write(data)
                await writer.drain()
                self._waiting_bytes -= len(data)
                if self._is_paused and self._waiting_bytes < WAITING_BYTES_MAX // 2:
                    self._is_paused = False
                    self._chan.resume_reading()
            if not is_terminal:
                writer.close()
            return
        # Nobody reads it any more: what still comes is dropped, so that the client can go on to the end.
        while data := await self._input.get():
            self._waiting_bytes = 0
            if self._is_paused:
                self._is_paused = False
                self._chan.resume_reading()

    async def _pour(self, reader: asyncio.StreamReader, kind: asyncssh.DataType = None) -> None:
        """Hand the process's output to the client, no faster than it takes it."""
        while data := await piece(reader):
            if not self._chan.is_closing():
                self._chan.write(data, kind)
                await self._may_write.wait()


NUMBERS = {one.name.removeprefix("SIG"): one.value for one in signal.Signals if not one.name.startswith("SIGRT")}
NAMES = {number: name for name, number in NUMBERS.items()}


def signal_marked(session: str, number: int) -> None:
    """Signal what a session runs in a container: its first process, and what stayed in the kernel's session of that.

    Podman's client carries the mark too, and is older; but it is in our namespace of processes and not in there.
    """
    found = []
    ours = os.readlink("/proc/self/ns/pid")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == session and os.readlink(f"/proc/{process.pid}/ns/pid") != ours:
                found.append((process.create_time(), os.getsid(process.pid), process))
    for _, kernels_session, process in found:
        # What left for a session of its own (tmux) goes on, as it does where nothing is contained.
        if kernels_session == min(found, key=lambda one: one[:2])[1]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


async def piece(reader: asyncio.StreamReader) -> bytes:
    """Return what the process wrote next; nothing at its end, which a terminal tells as an error."""
    try:
        return await reader.read(PIECE_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def is_welcome(name: str, value: str) -> bool:
    """Return whether a variable of the client's may come along: its language, nothing that chooses what runs."""
    return WELCOME_VARIABLES.fullmatch(name) is not None and len(value) <= VALUE_MAX and value.isprintable()


def set_size(master: int, size: tuple[int, int, int, int]) -> None:
    """Give a terminal its size; the kernel tells the programs behind it."""
    columns, rows, width, height = (min(max(part, 0), 0xFFFF) for part in size)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def sftp_entry(workload: Workload) -> Entry:
    """Return the helper that serves a workload's files."""
    files = workload.files()
    where = ("folder",) if files.pid is None else ("container", str(files.pid))
    env = {"PYTHONPATH": str(PACKAGE_ROOT), "TZ": "UTC0", "LC_ALL": "C", "GPUMARKET_MARK": workload.origin.mark}
    argv = (sys.executable, "-P", "-S", "-m", "provisioning.agent.sftp", *where, str(files.folder))
    argv += tuple(map(str, files.volumes))
    return Entry(argv, env, "/")
