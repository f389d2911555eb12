from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from provisioning import tasks
from provisioning.models import (
    Instance,
)
from tests.provisioning.health.cast import START, Heal
from tests.standing import frozen

clock = frozen(START)


@pytest.fixture
def heal(fleet: Any, run_until_idle: Callable[[], None], clock: Any) -> Heal:
    """Let everything that is due happen, again and again; a second passes each time."""

    def go(*, rounds: int = 12) -> None:
        for _ in range(rounds):
            clock.shift(timedelta(seconds=1))
            fleet.sync()
            tasks.decide_health_events()
            tasks.repair()
            run_until_idle()

    return go


@pytest.fixture
def played(clock: Any, fleet: Any, running: Instance) -> Any:
    """The node on which `running` runs, on GPU 0."""
    return fleet.nodes[running.assignments.get().node.name]
