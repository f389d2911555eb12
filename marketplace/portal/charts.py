"""Charts as numbers for an SVG: the template only writes them down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from marketplace.money import MICROS, shown
from marketplace.portal.spending import Day

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 12, 28
GRID_LINES = 4
LABELS_MOST = 8
GAP = 0.25


@dataclass(frozen=True)
class Bar:
    """One day's bar in the units of the view box; `label` stands under it where there is room."""

    day: datetime
    micros: int
    amount: str
    x: float
    y: float
    width: float
    height: float
    middle: float
    label: str
    is_last: bool


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


@dataclass(frozen=True)
class BarChart:
    """Bars, grid, and the figures for the sentence beside the chart."""

    width: int
    height: int
    bars: list[Bar]
    rules: list[Rule]
    total: str
    highest: Bar
    is_empty: bool


def bars(days: Sequence[Day], *, currency: str) -> BarChart:
    """Return cost by day as a bar chart. The scale ends at a round amount at or above the highest day."""
    top_micros = round_up(max(day.micros for day in days))
    floor, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    slot = (WIDTH - LEFT - RIGHT) / len(days)
    every = -(-len(days) // LABELS_MOST)
    drawn = []
    for number, day in enumerate(days):
        height = room * day.micros / top_micros
        last = number == len(days) - 1
        drawn.append(
            Bar(
                day=day.at,
                micros=day.micros,
                amount=shown(day.micros, currency),
                x=round(LEFT + slot * (number + GAP / 2), 1),
                y=round(floor - height, 1),
                width=round(slot * (1 - GAP), 1),
                height=round(height, 1),
                middle=round(LEFT + slot * (number + 0.5), 1),
                label=f"{day.at:%m-%d}" if (len(days) - 1 - number) % every == 0 else "",
                is_last=last,
            )
        )
    rules = [
        Rule(
            y=round(floor - room * step / GRID_LINES, 1),
            text=shown(top_micros * step // GRID_LINES, currency, exact=True),
        )
        for step in range(GRID_LINES + 1)
    ]
    return BarChart(
        width=WIDTH,
        height=HEIGHT,
        bars=drawn,
        rules=rules,
        total=shown(sum(day.micros for day in days), currency),
        highest=max(drawn, key=lambda bar: bar.micros),
        is_empty=not any(day.micros for day in days),
    )


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
