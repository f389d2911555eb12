import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.provisioning.agent.control_plane import TOKEN, ControlPlane

GPUS = "simulated:H200:4:144384"


def eventually(ask: Callable[[], Any], *, seconds: float = 10) -> Any:
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


class AgentRun:
    """A real agent in a process of its own."""

    def __init__(self, home: Path, url: str, *options: str, env: dict[str, str] | None = None) -> None:
        self.home = home
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
        """End it with a signal; return how long that took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=10)
        return time.monotonic() - began


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An agent's home; when the test ends, nothing may run there any more, so the last processes are ended."""
    home = tmp_path / "home"
    yield home
    for _ in range(3):
        for process in processes_of(home):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def start_agent(plane: ControlPlane, home: Path) -> Iterator[Callable[..., AgentRun]]:
    """Start an agent in this test's home, as often as it is called."""
    agents: list[AgentRun] = []

    def start(*options: str, **more: Any) -> AgentRun:
        agents.append(AgentRun(home, plane.url, *options, **more))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()
