"""Readings over time as numbers for an SVG: a line of its own look for each GPU, broken where there was no reading."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext as _

from marketplace.portal.charts import Label, Rule, labels
from provisioning.telemetry import Point, Series

WIDTH, HEIGHT = 720, 160
LEFT, RIGHT, TOP, BOTTOM = 84, 8, 12, 24
GRID_LINES = 2
LABELS = 4
SPAN = timedelta(hours=1)
# Two steps without a point are a gap: a line across it would claim what nobody read.
GAP_STEPS = 2
# Colours and dashes that the style sheet has; together they tell so many GPUs apart.
TONES, DASHES = 8, 4


@dataclass(frozen=True)
class Key:
    """Which GPU a line is of. `look` is the classes of its colour and dashes, the same in every chart."""

    number: int
    uuid: str
    look: str


@dataclass(frozen=True)
class Line:
    """An unbroken piece of one GPU's line, as the points of a polyline."""

    look: str
    points: str


@dataclass(frozen=True)
class Cell:
    """One GPU's values over the time; None is what it did not tell."""

    now: float | None
    least: float | None
    most: float | None


@dataclass(frozen=True)
class LineChart:
    """Lines in the units of the view box, and the same as a cell for each GPU."""

    title: str
    unit: str
    width: int
    height: int
    lines: list[Line]
    rules: list[Rule]
    labels: list[Label]
    cells: list[Cell]

    @property
    def is_empty(self) -> bool:
        """Return whether no GPU told anything."""
        return not self.lines

    @property
    def now(self) -> tuple[float, float] | None:
        """Return the lowest and the highest of the newest values."""
        told = [cell.now for cell in self.cells if cell.now is not None]
        return (min(told), max(told)) if told else None


@dataclass(frozen=True)
class Readings:
    """Charts of the same GPUs over the same time, with their legend."""

    keys: list[Key]
    charts: list[LineChart]

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to show."""
        return all(chart.is_empty for chart in self.charts)

    @property
    def rows(self) -> list[tuple[Key, list[tuple[LineChart, Cell]]]]:
        """Return the charts as a table: for each GPU, a cell of each chart."""
        return [(key, [(chart, chart.cells[place]) for chart in self.charts]) for place, key in enumerate(self.keys)]


def readings(found: Sequence[Series], *, since: datetime, until: datetime) -> Readings:
    """Return utilization, power and temperature of these GPUs over a time."""
    keys = [
        Key(number=place + 1, uuid=one.uuid, look=f"tone-{place % TONES + 1} dash-{place // TONES % DASHES}")
        for place, one in enumerate(found)
    ]

    def chart(title: str, unit: str, value: Callable[[Point], float | None], least_top: float) -> LineChart:
        return _chart(found, keys, title=title, unit=unit, value=value, top=least_top, since=since, until=until)

    charts = [
        chart(_("Utilization"), "%", lambda point: point.utilization_percent, 100),
        chart(_("Power"), "W", lambda point: None if point.power_mw is None else point.power_mw / 1000, 100),
        chart(_("Temperature"), "°C", lambda point: point.temperature_c, 100),
    ]
    return Readings(keys=keys, charts=charts)


def _chart(
    found: Sequence[Series],
    keys: Sequence[Key],
    *,
    title: str,
    unit: str,
    value: Callable[[Point], float | None],
    top: float,
    since: datetime,
    until: datetime,
) -> LineChart:
    told = [[(point.at, value(point)) for point in one.points] for one in found]
    highest = max((number for line in told for _, number in line if number is not None), default=0.0)
    while top < highest:
        top *= 2
    floor, room, width = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP, WIDTH - LEFT - RIGHT

    def across(at: datetime) -> float:
        return round(LEFT + width * ((at - since) / (until - since)), 1)

    lines = [
        Line(key.look, " ".join(f"{across(at)},{round(floor - room * number / top, 1)}" for at, number in run))
        for key, one, points in zip(keys, found, told, strict=True)
        for run in _unbroken(points, one.step * GAP_STEPS)
    ]
    return LineChart(
        title=title,
        unit=unit,
        width=WIDTH,
        height=HEIGHT,
        lines=lines,
        rules=[
            Rule(y=round(floor - room * part / GRID_LINES, 1), text=f"{top * part / GRID_LINES:.0f} {unit}")
            for part in range(GRID_LINES + 1)
        ],
        labels=labels(across, since=since, until=until, parts=LABELS),
        cells=[_cell([number for _, number in points]) for points in told],
    )


def _cell(values: Sequence[float | None]) -> Cell:
    told = [value for value in values if value is not None]
    return Cell(now=values[-1] if values else None, least=min(told, default=None), most=max(told, default=None))


def _unbroken(points: Sequence[tuple[datetime, float | None]], gap: timedelta) -> list[list[tuple[datetime, float]]]:
    """Cut a line where the GPU told nothing or no sample came."""
    runs: list[list[tuple[datetime, float]]] = []
    before: datetime | None = None
    for at, number in points:
        if number is None:
            before = None
            continue
        if before is None or at - before > gap:
            runs.append([])
        runs[-1].append((at, number))
        before = at
    return runs
