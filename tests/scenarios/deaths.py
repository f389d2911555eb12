"""Processes that are killed, or hang, at a moment that the test names."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from provisioning import engine


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process_that_dies(work: Callable[[], Any]) -> None:
    """Do the work in a process of its own, which is killed on the way."""
    connections.close_all()  # A connection belongs to one process.
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"it was not killed but ended with {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def in_a_process_that_hangs(work: Callable[[], Any]) -> Callable[[], None]:
    """Do the work in a process of its own until that stops; return what lets it go on to its end."""
    connections.close_all()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it did not hang"

    def wake() -> None:
        os.kill(pid, signal.SIGCONT)
        assert os.waitpid(pid, 0)[1] == 0

    return wake


@pytest.fixture
def _no_nudges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to Redis belongs to one process, too; sweeps find what nobody nudges."""
    monkeypatch.setattr(engine, "nudge", lambda workflow_id: None)
