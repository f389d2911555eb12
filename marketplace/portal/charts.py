"""What charts share: lines of a grid, times under it, and where a scale ends. The template only writes them down."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from marketplace.money import MICROS


@dataclass(frozen=True)
class Rule:
    """A line of the grid with the amount that it stands for."""

    y: float
    text: str


@dataclass(frozen=True)
class Label:
    """A time under a chart."""

    x: float
    at: datetime
    anchor: str


def labels(across: Callable[[datetime], float], *, since: datetime, until: datetime, parts: int) -> list[Label]:
    """Return the times that cut a stretch into equal parts, with its beginning and its end."""
    anchors = {0: "start", parts: "end"}
    moments = [since + (until - since) * part / parts for part in range(parts + 1)]
    return [Label(x=across(at), at=at, anchor=anchors.get(part, "middle")) for part, at in enumerate(moments)]


def round_up(micros: int) -> int:
    """Return the smallest 1, 2, 4 or 8 times a power of ten units that is not below; at least a hundredth of a unit."""
    step = MICROS // 100
    while True:
        for times in (1, 2, 4, 8):
            if step * times >= micros:
                return step * times
        step *= 10
