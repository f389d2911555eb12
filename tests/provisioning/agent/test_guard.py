"""A guard and a container that it lost sight of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provisioning.agent import guard as guards
from provisioning.agent.guard import Guard


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A guard without a container; what it does is written down."""
    monkeypatch.setattr(guards, "QUICK_LOOK_S", 0)
    made: Any = Guard.__new__(Guard)
    made.name, made.conmon, made.lost_its_monitor = "gm-test", -1, False
    made.done = []
    made.podman = SimpleNamespace(run=lambda *words: made.done.append(words[0]))
    made.output = SimpleNamespace(write=lambda data: None)
    made._watch = lambda: made.done.append("watch")
    made._stay = lambda: made.done.append("stay")
    return made


def test_what_lives_is_watched_anew_until_it_has_ended(guard: Any) -> None:
    lives = iter([True, True, False])
    guard._is_running = lambda: next(lives)
    guard.conmon = 5
    guard._hold_on()
    assert guard.done == ["watch", "stay"] * 2


def test_what_cannot_be_held_is_ended_and_never_called_well(guard: Any) -> None:
    guard._is_running = lambda: True
    guard._hold_on()
    assert guard.done == ["watch"] * guards.LOOKS_MAX + ["rm"]


@pytest.mark.parametrize(("lives", "lost"), [(False, False), (True, True)])
def test_what_has_ended_or_lost_its_monitor_is_left_as_it_is(guard: Any, lives: bool, lost: bool) -> None:
    guard._is_running = lambda: lives
    guard.lost_its_monitor = lost
    guard._hold_on()
    assert guard.done == []


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        ([("running", 0), ("stopping", 0), ("exited", 3)], 3),
        ([("stopping", 0)] * guards.LOOKS_MAX, guards.KILLED),
    ],
)
def test_an_exit_code_is_read_once_podman_has_noted_it_and_never_guessed_to_be_well(
    guard: Any, tmp_path: Path, seen: list[tuple[str, int]], code: int
) -> None:
    states = iter(seen)
    guard.podman.find = lambda name: {"State": dict(zip(("Status", "ExitCode"), next(states), strict=True))}
    guard.folder, guard.lapse, guard.ended_at, guard.saw_it_end = tmp_path, None, 1.0, True
    assert guard._end()["exit_code"] == code
    assert not list(states)
