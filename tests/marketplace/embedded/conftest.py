"""What the tests of the embedded servers share: folders that everybody may enter, and small programs."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marketplace.embedded.programs import Program
from marketplace.embedded.supervisor import Supervisor

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an unprivileged user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="gpumarket-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(folder: Path, said: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, say=said.append)
    yield supervisor
    supervisor.end_all(within_s=5)


def make_program(folder: Path, code: str = SLEEP, **overrides) -> Program:
    given = {"name": "sleeper", "argv": (sys.executable, "-I", "-S", "-c", code), "folder": folder, "environ": {}}
    return Program(**given | overrides)


def wait_until(condition: Callable[[], object], *, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
