"""The history of an auction's price as numbers for an SVG: a line, the band between least and most, and the reserve."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from marketplace.money import shown
from marketplace.portal.charts import Label, Rule, labels, round_up
from marketplace.spot_market import Bucket

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 84, 8, 22, 28
GRID_LINES = 4
LABELS = 4


@dataclass(frozen=True)
class PriceChart:
    """Points as SVG writes them; `steps` follow the price as it held, which jumps and never slopes."""

    width: int
    height: int
    left: int
    band: str
    steps: str
    reserve: str
    rules: list[Rule]
    labels: list[Label]
    least: str
    most: str
    last: str


def draw(history: Sequence[Bucket], *, currency: str, since: datetime, until: datetime) -> PriceChart | None:
    """Return the chart of a history, or None where there was no auction."""
    if not history:
        return None
    top = round_up(max(max(bucket.most_micros, bucket.reserve_micros) for bucket in history))
    span = until - since

    def across(at: datetime) -> float:
        share = min(max(at - since, timedelta(0)), span) / span
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def up(micros: int) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * micros / top, 1)

    # Each stretch reaches to the next: a price holds until another one does.
    ends = [*(bucket.at for bucket in history[1:]), until]
    stretches = [(across(bucket.at), across(end), bucket) for bucket, end in zip(history, ends, strict=True)]
    upper = [f"{x},{up(bucket.most_micros)}" for began, ended, bucket in stretches for x in (began, ended)]
    lower = [f"{x},{up(bucket.least_micros)}" for began, ended, bucket in stretches for x in (began, ended)]
    return PriceChart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        band=" ".join([*upper, *reversed(lower)]),
        steps=" ".join(f"{x},{up(one.last_micros)}" for began, ended, one in stretches for x in (began, ended)),
        reserve=" ".join(f"{x},{up(one.reserve_micros)}" for began, ended, one in stretches for x in (began, ended)),
        rules=[
            Rule(y=up(top * step // GRID_LINES), text=shown(top * step // GRID_LINES, currency, exact=True))
            for step in range(GRID_LINES + 1)
        ],
        labels=labels(across, since=since, until=until, parts=LABELS),
        least=shown(min(bucket.least_micros for bucket in history), currency, exact=True),
        most=shown(max(bucket.most_micros for bucket in history), currency, exact=True),
        last=shown(history[-1].last_micros, currency, exact=True),
    )
