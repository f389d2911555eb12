"""Who acts in these tests: a real agent in a process of its own, and a node that the test steps by hand."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil

from provisioning.agent.cleaning import SimulatedCleaner
from provisioning.agent.journal import Journal
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.runtime import Observed, Runtime
from provisioning.agent.simulated import SimulatedGpus
from provisioning.agent.state import Home, Lease
from provisioning.agent.store import Store
from provisioning.agent.wiping import Wiper
from provisioning.agent.workload import Processes, ProcessWorkload
from tests.provisioning.agent.control_plane import TOKEN, make_assignment

GPUS = "simulated:H200:4:144384"
PATIENCE_S = 60


def eventually(ask: Callable[[], Any], *, seconds: float = PATIENCE_S) -> Any:
    """Return the first answer that is true; fail when none comes in time."""
    limit = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < limit, f"still {answer!r} after {seconds} s"
        time.sleep(0.02)
    return answer


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that lives in a home: agents, supervisors and what they run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), process.cwd(), process.environ().get("HOME", "")]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(home) in word for word in words):
                found.append(process)
    return found


def is_running(pid: int) -> bool:
    """Return whether a process lives, other than as a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class AgentRun:
    """A real agent in a process of its own."""

    def __init__(self, home: Path, url: str, *options: str, env: dict[str, str] | None = None) -> None:
        self.log_file = home.with_suffix(".log")
        arguments = [sys.executable, "-m", "provisioning.agent.main", "--url", url, "--home", str(home)]
        if "--gpus" not in options:
            arguments += ["--gpus", GPUS]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*arguments, *options], stderr=log, env=os.environ | {"GPUMARKET_JOIN_TOKEN": TOKEN} | (env or {})
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def kill(self) -> None:
        """Kill it as the machine would: without a word."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End it with a signal, which takes 20 seconds at most; return how many it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=20)
        return time.monotonic() - began

    def exit_code(self) -> int:
        """Wait for it to end by itself."""
        return self.process.wait(timeout=20)


class Node:
    """The inside of an agent without its threads and without a control plane: the test says what and when."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path)
        self.home.begin_epoch()
        self.lease = Lease(self.home)
        self.news = threading.Event()
        self.journal = Journal(path / "journal", news=self.news.set)
        source = SimulatedGpus(model="H200", count=4, memory_mib=144384, seed=self.home.seed(), home=path)
        self.monitor = GpuMonitor(source=source, home=self.home, changed=self.news.set)
        self.gpus = [gpu.uuid for gpu in self.monitor.inventory().gpus]
        self.desired: dict[str, dict[str, Any]] = {}
        self._shims: list[Any] = []
        self.store: Store | None = None
        self.runtime = self._make_runtime()

    def wake_up(self) -> None:
        """Forget all that is only in memory, as an agent does that was killed and started again."""
        self._shims += [workload._shim for workload in self.runtime._workloads.values()]
        self._stop_carriers()
        self.lease = Lease(self.home)
        self.runtime = self._make_runtime()

    def _stop_carriers(self) -> None:
        """Let nothing of an agent that was killed go on."""
        for carrier in self.runtime._carriers.values():
            eventually(carrier.stop)

    def _make_runtime(self) -> Runtime:
        self.wiper = Wiper(
            home=self.home.path, journal=self.journal, cleaner=SimulatedCleaner(), excused=lambda gpu: nullcontext()
        )
        runtime = Runtime(
            home=self.home,
            lease=self.lease,
            kind=Processes(self.home.workloads),
            inventory=self.monitor.inventory,
            changed=self.news.set,
            wiper=self.wiper,
            store=self.store,
        )
        runtime.LOG_WAIT_S = 0  # Nobody takes the logs here.
        return runtime

    def workload(self, name: str) -> ProcessWorkload:
        """What the runtime holds of an assignment."""
        workload = self.runtime._workloads[name]
        assert isinstance(workload, ProcessWorkload)
        return workload

    def shim_pid(self, name: str) -> int:
        """The pid of an assignment's supervisor."""
        pid = self.workload(name)._shim_pid()
        assert pid is not None
        return pid

    def launch_again(self, name: str, *command: str) -> int:
        """Start one more supervisor for an assignment; return its exit code."""
        workload = self.workload(name)
        self._shims.append(workload._shim)
        workload._launch(command=command, env={"PATH": "/bin:/usr/bin"}, volumes=[])
        assert workload._shim is not None
        return workload._shim.wait(timeout=20)

    def say(self) -> None:
        """Hand the whole document to the node, as of the next generation."""
        generation = self.home.document().generation + 1
        assert self.home.adopt_document(generation=generation, desired={"assignments": list(self.desired.values())})

    def want(self, name: str, desired: str, /, **changes: Any) -> None:
        """Change one assignment of the document."""
        self.desired[name] = self.desired.get(name, make_assignment(name)) | {"desired": desired} | changes
        self.say()

    def unwant(self, name: str) -> None:
        """Take an assignment out of the document."""
        del self.desired[name]
        self.say()

    def look(self, name: str) -> Observed:
        """Step once; return what would be reported of an assignment."""
        self.runtime.step()
        return next(one for one in self.runtime.observed if one.id == name)

    def until(self, name: str, state: str) -> Observed:
        """Step until an assignment is in a state; a failure names the one in which it stayed."""
        limit = time.monotonic() + PATIENCE_S
        while (seen := self.look(name)).state != state:
            assert time.monotonic() < limit, f"still {seen} after {PATIENCE_S} s"
            time.sleep(0.02)
        return seen

    def stays(self, name: str, state: str, *, seconds: float = 0.4) -> Observed:
        """Step for a while; the assignment must not leave its state."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            seen = self.look(name)
            assert seen.state == state
            time.sleep(0.02)
        return seen

    def work(self, name: str) -> Path:
        """The folder in which an assignment's command works."""
        return self.home.workloads / name / "work"

    def output(self, name: str) -> str:
        """What the command has written so far."""
        path = self.home.workloads / name / "output"
        return path.read_text() if path.exists() else ""

    def run(self, name: str, script: str, /, **changes: Any) -> None:
        """Have a shell script run, and wait until it does (or has ended)."""
        self.want(name, "running", command=["sh", "-c", script], **changes)
        eventually(lambda: self.look(name).state in {"running", "exited"})

    def close(self) -> None:
        """End everything at once."""
        self.desired = {}
        self.say()
        for workload in tuple(self.runtime._workloads.values()):
            workload.end(grace_s=0, reason="the test is over")

        def is_empty() -> bool:
            self.runtime.step()
            return not self.runtime._workloads

        eventually(is_empty)
        for shim in filter(None, self._shims):
            shim.wait(timeout=20)
        if self.store is not None:
            self.store._client.close()
        self.home.close()
