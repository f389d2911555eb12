"""Cost by day as stacked bars: numbers for an SVG, and the same figures for the table beneath it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from django.utils.translation import gettext as _

from marketplace.money import shown
from marketplace.portal.charts import Rule, round_up

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 100, 8, 12, 28
GRID_LINES = 4
LABELS_MOST = 8
GAP = 0.25
SERIES_MOST = 6


class Dated(Protocol):
    """An amount of a day; what it is told apart by are attributes of it."""

    @property
    def day(self) -> datetime: ...

    @property
    def micros(self) -> int: ...


@dataclass(frozen=True)
class Series:
    """What one colour stands for, with its sum; `look` is its class in the chart and the legend."""

    name: str
    look: str
    micros: int
    amount: str


@dataclass(frozen=True)
class Piece:
    """A series' part of one day's bar in the units of the view box."""

    look: str
    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Row:
    """One day: its sum and each series' part, as the table writes them. `label` stands under the bar where there is
    room; that of the last day ends with its bar, because a phone writes larger than the margin is."""

    day: datetime
    micros: int
    amount: str
    cells: list[str]
    label_x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class StackedChart:
    """Pieces, grid and legend, and the figures for the sentence beside the chart."""

    width: int
    height: int
    left: int
    pieces: list[Piece]
    rules: list[Rule]
    series: list[Series]
    rows: list[Row]
    total: str
    highest: Row
    is_empty: bool


def stacked(
    costs: Sequence[Dated], days: Sequence[datetime], *, by: str, names: Mapping[str, str], currency: str
) -> StackedChart:
    """Return the cost of these days, told apart by one dimension; the smallest beyond six series stand together.

    What was given back makes a day's sum smaller and no bar: a bar cannot hang below the floor.
    """
    series, place_of = _series(costs, by=by, names=names, currency=currency)
    numbers = {day: number for number, day in enumerate(days)}
    parts = [[0] * len(series) for _day in days]
    for cost in costs:
        parts[numbers[cost.day]][place_of[getattr(cost, by)]] += cost.micros
    top = round_up(max(sum(max(0, micros) for micros in day) for day in parts))
    floor, room, slot = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP, (WIDTH - LEFT - RIGHT) / len(days)
    every = -(-len(days) // LABELS_MOST)
    pieces, rows = [], []
    for number, (day, amounts) in enumerate(zip(days, parts, strict=True)):
        below = 0
        for one, micros in zip(series, amounts, strict=True):
            if micros <= 0:
                continue
            y = round(floor - room * (below + micros) / top, 1)
            pieces.append(
                Piece(
                    look=one.look,
                    title=f"{day:%Y-%m-%d} {one.name}: {shown(micros, currency)}",
                    x=round(LEFT + slot * (number + GAP / 2), 1),
                    y=y,
                    width=round(slot * (1 - GAP), 1),
                    height=round(floor - room * below / top - y, 1),
                )
            )
            below += micros
        is_labelled, is_last = (len(days) - 1 - number) % every == 0, number == len(days) - 1
        rows.append(
            Row(
                day=day,
                micros=sum(amounts),
                amount=shown(sum(amounts), currency),
                cells=[shown(micros, currency) for micros in amounts],
                label_x=round(LEFT + slot * (number + (1 if is_last else 0.5)), 1),
                label=f"{day:%m-%d}" if is_labelled else "",
                anchor="end" if is_last else "middle",
            )
        )
    rules = [
        Rule(y=round(floor - room * step / GRID_LINES, 1), text=shown(top * step // GRID_LINES, currency, exact=True))
        for step in range(GRID_LINES + 1)
    ]
    return StackedChart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        pieces=pieces,
        rules=rules,
        series=series,
        rows=rows,
        total=shown(sum(row.micros for row in rows), currency),
        highest=max(rows, key=lambda row: row.micros),
        is_empty=not costs,
    )


def _series(
    costs: Sequence[Dated], *, by: str, names: Mapping[str, str], currency: str
) -> tuple[list[Series], dict[str, int]]:
    """Return the series, the largest first, and which one each value belongs to."""
    sums: dict[str, int] = {}
    for cost in costs:
        value = getattr(cost, by)
        sums[value] = sums.get(value, 0) + cost.micros
    ranked = sorted(sums, key=lambda value: (-sums[value], value))
    kept = ranked if len(ranked) <= SERIES_MOST else ranked[: SERIES_MOST - 1]
    rest = ranked[len(kept) :]
    place_of = {value: min(place, len(kept)) for place, value in enumerate(ranked)}
    told = [(names.get(value) or value or _("without a name"), sums[value]) for value in kept]
    if rest:
        told.append((_("Other"), sum(sums[value] for value in rest)))
    series = [
        Series(name=name, look=f"fill-{place + 1}", micros=micros, amount=shown(micros, currency))
        for place, (name, micros) in enumerate(told)
    ]
    return series, place_of
