"""Readings over time as numbers for an SVG: a line for each GPU, broken where there was no reading."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext as _

from marketplace.portal.charts import Rule
from provisioning.telemetry import Point, Series

WIDTH, HEIGHT = 720, 160
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 12, 24
GRID_LINES = 2
LABELS = 4
SPAN = timedelta(hours=1)
# Two steps without a point are a gap: a line across it would claim what nobody read.
GAP_STEPS = 2


@dataclass(frozen=True)
class Label:
    """A moment under the chart."""

    x: float
    at: datetime


@dataclass(frozen=True)
class LineChart:
    """Lines in the units of the view box. `latest` is the newest value of each GPU, or None."""

    title: str
    unit: str
    width: int
    height: int
    lines: list[str]
    rules: list[Rule]
    labels: list[Label]
    latest: list[tuple[str, float | None]]

    @property
    def is_empty(self) -> bool:
        """Return whether no GPU told anything."""
        return not self.lines


def charts(found: Sequence[Series], *, since: datetime, until: datetime) -> list[LineChart]:
    """Return utilization, power and temperature of these GPUs over a time."""

    def chart(title: str, unit: str, value: Callable[[Point], float | None], least_top: float) -> LineChart:
        return _chart(found, title=title, unit=unit, value=value, top=least_top, since=since, until=until)

    return [
        chart(_("Utilization"), "%", lambda point: point.utilization_percent, 100),
        chart(_("Power"), "W", lambda point: None if point.power_mw is None else point.power_mw / 1000, 100),
        chart(_("Temperature"), "°C", lambda point: point.temperature_c, 100),
    ]


def _chart(
    found: Sequence[Series],
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

    runs = [run for one, points in zip(found, told, strict=True) for run in _unbroken(points, one.step * GAP_STEPS)]
    lines = [" ".join(f"{across(at)},{round(floor - room * number / top, 1)}" for at, number in run) for run in runs]
    moments = [since + (until - since) * part / LABELS for part in range(1, LABELS)]
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
        labels=[Label(x=across(at), at=at) for at in moments],
        latest=[(one.uuid, points[-1][1] if points else None) for one, points in zip(found, told, strict=True)],
    )


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
