"""When an instance should have run and when a fault of ours kept it from that: a pure function of its moves."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from billing.sla.availability import Stretch
from provisioning.models import STARTING, Phase, Reason
from provisioning.models.instances import INFRASTRUCTURE

# In these it should run. While it drains it was announced to end, and what is measured counts as up.
EXPECTED = {Phase.RUNNING, Phase.NOTIFIED}


@dataclass(frozen=True, slots=True)
class Move:
    """When an instance came to a phase, and why."""

    at: datetime
    phase: str
    reason: str = ""


@dataclass
class Told:
    """Stretches in which it should have run, and in which it was down by a fault of ours."""

    expected: list[Stretch] = field(default_factory=list)
    down: list[Stretch] = field(default_factory=list)


def told(moves: Iterable[Move], *, until: datetime, failed_counts_for: timedelta) -> Told:
    """Walk through an instance's moves in order.

    It is down from a failure that was not its customer's until it runs again or somebody stops it; while it lies
    failed and nobody starts it, no longer than `failed_counts_for`. What never ran yet is not down.
    """
    found = Told()
    ordered = list(moves)
    state = "off"
    for move, following in zip(ordered, [*ordered[1:], None], strict=True):
        state = _state_after(state, move)
        end = until if following is None else min(until, following.at)
        if state == "expected":
            found.expected.append((move.at, end))
        elif state == "down":
            is_waiting = move.phase == Phase.FAILED
            found.down.append((move.at, min(end, move.at + failed_counts_for) if is_waiting else end))
    return found


def _state_after(state: str, move: Move) -> str:
    if move.phase in EXPECTED:
        return "expected"
    if move.phase == Phase.FAILED:
        ours = move.reason in INFRASTRUCTURE or (state == "down" and move.reason == Reason.NO_CAPACITY)
        return "down" if ours and state in {"expected", "down"} else "off"
    return "down" if move.phase in STARTING and state == "down" else "off"
