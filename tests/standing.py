"""Worlds that stand: what many tests begin with is made once, and each finds it as if it were made for it alone.

A fixture that is marked `@standing` is a stage. Stages are made in the order of their definition, each in a savepoint
of one transaction that is never committed; a test runs in a savepoint above, and is rolled back to it. The next test
keeps the stages that it has in common with the last one. A test that commits, or that overrides what a stage needs, has
its world made as by any other fixture.

The world of a test whose clock is `frozen` is made at that moment. A fixture that moves the clock by itself finds the
stages that it needs; all others are made after it.
"""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from itertools import count, takewhile
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


@dataclass(frozen=True)
class Plan:
    """The stages that a test begins with, and the moment at which its clock stands then, if it does."""

    stages: tuple[Stage, ...] = ()
    at: datetime | None = None


class World:
    """The stages that stand now, and this test's copies of them."""

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.plan = Plan()
        self.copies: dict[str, Any] | None = None

    def begin(self, plan: Plan) -> None:
        """Plan a test, and leave what it does not begin with."""
        kept = self._kept(plan)
        self.plan, self.copies = plan, None
        while len(self.made) > kept:
            transaction.set_rollback(True)
            self.made.pop().atomic.__exit__(None, None, None)

    def _kept(self, plan: Plan) -> int:
        """Return how many stages it has in common with the last one."""
        if not connection.in_atomic_block or connection.closed_in_transaction or connection.needs_rollback:
            return 0
        if plan.at != self.plan.at or (self.made and not plan.at and time.monotonic() - self.made[0].since > STANDS_S):
            return 0
        return sum(
            1 for _ in takewhile(lambda pair: pair[0].stage is pair[1], zip(self.made, plan.stages, strict=False))
        )

    def build(self) -> None:
        """Make what is still missing."""
        if time_machine.escape_hatch.is_travelling():
            self.begin(Plan())
        with time_machine.travel(self.plan.at, tick=False) if self.plan.at else nullcontext():
            for stage in self.plan.stages[len(self.made) :]:
                self._make(stage)

    def _make(self, stage: Stage) -> None:
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
        return WORLD.share(stage) if stage in WORLD.plan.stages else make(**needs)

    shared.stage = stage  # type: ignore[attr-defined]
    return pytest.fixture(shared)


def frozen(at: datetime) -> Any:
    """Make a fixture of a clock that stands at a moment, and of a hand that moves it."""

    def clock() -> Iterator[time_machine.Traveller]:
        with time_machine.travel(at, tick=False) as hand:
            yield hand

    clock.at = at  # type: ignore[attr-defined]
    return pytest.fixture(clock)


def _moves_the_clock(maker: Callable[..., Any]) -> bool:
    """Return whether a fixture holds the clock, or puts another in place of Django's."""
    names = set(maker.__code__.co_names) if hasattr(maker, "__code__") else set()
    return "time_machine" in names or {"setattr", "timezone"} <= names


def _needed(name: str, defined: dict[str, Any]) -> set[str]:
    """Return the fixtures that one is made of, itself included."""
    found, asked = set(), [name]
    while asked:
        one = asked.pop()
        if one in defined and one not in found:
            found.add(one)
            asked += defined[one].argnames
    return found


def planned(item: pytest.Item) -> Plan:
    """Return the stages that a test begins with; none where it cannot share them."""
    marker, info = item.get_closest_marker("django_db"), getattr(item, "_fixtureinfo", None)
    names = getattr(item, "fixturenames", ())
    if info is None or (marker and marker.kwargs) or "transactional_db" in names or "live_server" in names:
        return Plan()
    defined = {name: defs[-1] for name, defs in info.name2fixturedefs.items()}
    moments = {one.func.at for one in defined.values() if hasattr(one.func, "at")}
    if len(moments) > 1:
        return Plan()
    shared = set(defined)
    for name, one in defined.items():
        if not hasattr(one.func, "at") and _moves_the_clock(one.func):
            shared &= _needed(name, defined)
    stages = {name: defined[name].func.stage for name in shared if hasattr(defined[name].func, "stage")}
    plan: list[Stage] = []
    for stage in sorted(stages.values(), key=lambda stage: stage.place):
        if set(stage.needs) <= {one.name for one in plan} | {"db"}:
            plan.append(stage)
    return Plan(tuple(plan), next(iter(moments), None) if plan else None)


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
