"""Measured hours against a guaranteed floor as numbers for an SVG: steps, the floor, and the hours that fell short."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.models import GuaranteeHour
from marketplace.portal.charts import Label, Rule, labels

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 84, 8, 16, 28
GRID_LINES = 4
LABELS = 4
HOUR = timedelta(hours=1)
MILLI = 1000
PERCENT = "%"


@dataclass(frozen=True)
class Short:
    """An hour below the floor, as a bar behind the line."""

    x: float
    width: float


@dataclass(frozen=True)
class GuaranteeChart:
    """Points as SVG writes them; each run of hours that were judged is a line of its own."""

    width: int
    height: int
    left: int
    lines: list[str]
    floor: str
    shorts: list[Short]
    rules: list[Rule]
    labels: list[Label]
    least: str
    floor_text: str


def draw(hours: Sequence[GuaranteeHour]) -> GuaranteeChart | None:
    """Return the chart of hours in their order, or None where nothing was measured."""
    judged = [row for row in hours if row.measured_milli is not None]
    if not judged:
        return None
    since, until = hours[0].hour, hours[-1].hour + HOUR
    metric = str(judged[-1].curve["metric"])
    top = _round_up(max(*map(_measured, judged), *map(_floor, judged)))

    def across(at: datetime) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ((at - since) / (until - since)), 1)

    def up(milli: int) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * milli / top, 1)

    def steps(rows: Sequence[GuaranteeHour], values: Sequence[int]) -> str:
        edges = zip(rows, values, strict=True)
        return " ".join(f"{across(at)},{up(y)}" for row, y in edges for at in (row.hour, row.hour + HOUR))

    return GuaranteeChart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        lines=[steps(run, [_measured(row) for row in run]) for run in _runs(judged)],
        floor=steps(hours, [_floor(row) for row in hours]),
        shorts=[
            Short(x=across(row.hour), width=round(across(row.hour + HOUR) - across(row.hour), 1))
            for row in judged
            if row.credit_bps
        ],
        rules=[
            Rule(y=up(top * step // GRID_LINES), text=said(top * step // GRID_LINES, metric))
            for step in range(GRID_LINES + 1)
        ],
        labels=labels(across, since=since, until=until, parts=LABELS),
        least=said(min(_measured(row) for row in judged), metric),
        floor_text=said(_floor(judged[-1]), metric),
    )


def said(milli: int, metric: str) -> str:
    """Return what was measured as people read it."""
    whole, rest = divmod(milli, MILLI)
    text = f"{whole:,}" if not rest else f"{whole:,}.{rest:03}".rstrip("0")
    return f"{text}/s" if metric == "throughput" else f"{text} {PERCENT}"


def _runs(rows: Sequence[GuaranteeHour]) -> list[list[GuaranteeHour]]:
    found: list[list[GuaranteeHour]] = []
    for row in rows:
        if found and row.hour == found[-1][-1].hour + HOUR:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _measured(row: GuaranteeHour) -> int:
    return row.measured_milli or 0


def _floor(row: GuaranteeHour) -> int:
    return int(row.curve["floor_milli"])


def _round_up(milli: int) -> int:
    """The smallest 1, 2, 4 or 8 times a power of ten that is not below."""
    step = 1
    while True:
        for times in (1, 2, 4, 8):
            if step * times >= milli:
                return step * times
        step *= 10
