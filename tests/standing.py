"""Worlds that stand: what many tests begin with is made once, and each finds it as if it were made for it alone.

A fixture that is marked `@standing` is a stage. Stages are made in the order of their definition, each in a savepoint
of one transaction that is never committed; a test runs in a savepoint above, and is rolled back to it. The next test
keeps the stages that it has in common with the last one. A test that commits, that has a clock of its own, or that
overrides what a stage needs, has its world made as by any other fixture.
"""

import functools
import inspect
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.utils import translation

# What stands long has heartbeats and leases that are as old.
STANDS_S = 10
_places = count()


@dataclass(frozen=True)
class Stage:
    """One fixture: its place in the order of all, its name, how it is made, and from which others."""

    place: int
    name: str
    make: Callable[..., Any]
    needs: tuple[str, ...]


@dataclass
class Made:
    """A stage that stands, and what all stages up to it are by then, by their names: a later one may change them."""

    stage: Stage
    atomic: Any
    since: float
    values: dict[str, Any]

    def stands(self, stage: Stage, now: float) -> bool:
        """Return whether it is this stage, and not too old."""
        return self.stage is stage and now - self.since < STANDS_S


class World:
    """The stages that stand now, and this test's copies of them."""

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.plan: list[Stage] = []
        self.copies: dict[str, Any] | None = None

    def begin(self, plan: list[Stage]) -> None:
        """Plan a test, and leave what it does not begin with."""
        self.plan, self.copies = plan, None
        now = time.monotonic()
        kept = 0
        while kept < min(len(self.made), len(plan)) and self.made[kept].stands(plan[kept], now):
            kept += 1
        if not connection.in_atomic_block or connection.closed_in_transaction or connection.needs_rollback:
            kept = 0
        while len(self.made) > kept:
            transaction.set_rollback(True)
            self.made.pop().atomic.__exit__(None, None, None)

    def build(self) -> None:
        """Make what is still missing."""
        if time_machine.escape_hatch.is_travelling():
            self.begin([])
        for stage in self.plan[len(self.made) :]:
            values = deepcopy(self.made[-1].values) if self.made else {"db": None}
            atomic = transaction.atomic()
            atomic.__enter__()
            self.made.append(Made(stage, atomic, time.monotonic(), values))
            with translation.override("en"):
                values[stage.name] = stage.make(**{name: values[name] for name in stage.needs})
            connection.check_constraints()

    def share(self, stage: Stage) -> Any:
        """Return this test's copy of a stage; what stages know of each other they know in the copy too."""
        if self.copies is None:
            self.copies = deepcopy(self.made[-1].values)
        return self.copies[stage.name]


WORLD = World()


def standing(make: Callable[..., Any]) -> Any:
    """Make a fixture that stands: it needs nothing but `db` and others that do, and can be copied."""
    stage = Stage(next(_places), make.__name__, make, tuple(inspect.signature(make).parameters))

    @functools.wraps(make)
    def shared(**needs: Any) -> Any:
        return WORLD.share(stage) if stage in WORLD.plan else make(**needs)

    shared.stage = stage  # type: ignore[attr-defined]
    return pytest.fixture(shared)


def _moves_the_clock(maker: Callable[..., Any]) -> bool:
    """Return whether a fixture holds the clock, or puts another in place of Django's."""
    names = set(maker.__code__.co_names) if hasattr(maker, "__code__") else set()
    return "time_machine" in names or {"setattr", "timezone"} <= names


def planned(item: pytest.Item) -> list[Stage]:
    """Return the stages that a test begins with; none where it cannot share them."""
    marker, info = item.get_closest_marker("django_db"), getattr(item, "_fixtureinfo", None)
    names = getattr(item, "fixturenames", ())
    if info is None or (marker and marker.kwargs) or "transactional_db" in names or "live_server" in names:
        return []
    makers = {name: defs[-1].func for name, defs in info.name2fixturedefs.items()}
    if any(_moves_the_clock(maker) for maker in makers.values()):
        return []
    stages = {maker.stage.name: maker.stage for maker in makers.values() if hasattr(maker, "stage")}
    plan: list[Stage] = []
    for stage in sorted(stages.values(), key=lambda stage: stage.place):
        if set(stage.needs) <= {one.name for one in plan} | {"db"}:
            plan.append(stage)
    return plan


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    from pytest_django.plugin import blocking_manager_key

    with item.config.stash[blocking_manager_key].unblock():
        WORLD.begin(planned(item))


@pytest.fixture
def _standing_world(_plain: None, _silence_is_theirs: None, django_db_setup: None, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        WORLD.build()


@pytest.fixture
def _django_db_helper(_standing_world: None, _django_db_helper: None) -> None:
    """pytest-django's own, above the world that stands."""
