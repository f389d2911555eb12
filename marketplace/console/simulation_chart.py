"""What a draft of prices changes, drawn: for each thing two bars, what it brought and what it would have."""

from collections.abc import Iterable
from dataclasses import dataclass

from billing.models import SimulatedWare
from marketplace.money import shown
from marketplace.portal.charts import round_up

WIDTH, ROW, BAR, TOP = 720, 62, 14, 4
SHOWN = 12


@dataclass(frozen=True)
class Bars:
    """One thing: how long its bars are, in the units of the view box, and what they say."""

    name: str
    before: str
    after: str
    change: str
    before_width: float
    after_width: float
    name_y: int
    before_y: int
    after_y: int


@dataclass(frozen=True)
class SimulationChart:
    """The things that a draft changes most; `more` are not drawn."""

    bars: list[Bars]
    more: int
    width: int
    height: int
    bar: int


def drawn(found: Iterable[SimulatedWare], *, currency: str) -> SimulationChart:
    """Return the chart: the largest change first."""
    rows = sorted(found, key=lambda row: (-abs(row.after_micros - row.before_micros), row.name))
    kept = rows[:SHOWN]
    top = round_up(max((max(row.before_micros, row.after_micros) for row in kept), default=0))
    bars = [_bars(row, number, top, currency) for number, row in enumerate(kept)]
    return SimulationChart(bars, len(rows) - len(kept), WIDTH, len(kept) * ROW, BAR)


def _bars(row: SimulatedWare, number: int, top: int, currency: str) -> Bars:
    y = number * ROW + TOP
    change = row.after_micros - row.before_micros
    return Bars(
        name=row.name,
        before=shown(row.before_micros, currency),
        after=shown(row.after_micros, currency),
        change=("+" if change > 0 else "") + shown(change, currency),
        before_width=round(WIDTH * max(0, row.before_micros) / top, 1),
        after_width=round(WIDTH * max(0, row.after_micros) / top, 1),
        name_y=y + 14,
        before_y=y + 22,
        after_y=y + 22 + BAR + 2,
    )
