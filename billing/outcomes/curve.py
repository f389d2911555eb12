"""What falls short of a guaranteed floor, and what that credits: a pure function of what was measured in an hour.

    throughput    = increase of the counter / (time in which it was read + down)
    availability  = up / (up + down)
    GPU health    = (up - degraded) / (up + down)

All in thousandths: of units per second, or of a percent. What was achieved is that over the floor, in basis points
rounded down; the credit is the deepest step that lies above it, no more than the cap, of what the hour cost, rounded
half up once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing.outcomes.words import BPS, price_micros

THROUGHPUT, AVAILABILITY, GPU_HEALTH = "throughput", "availability", "gpu_health"
PERCENT_MILLI = 100_000
SECOND_MS = 1000
# Of an hour of which less than this was to be judged nothing is.
LEAST_MS = 60_000


@dataclass(frozen=True, slots=True)
class Curve:
    """A floor and its steps, as terms have them: below so much of the floor, so much is credited."""

    metric: str
    floor_milli: int
    steps: tuple[tuple[int, int], ...]
    cap_bps: int = BPS

    @classmethod
    def read(cls, guarantee: Mapping[str, Any]) -> "Curve":
        """Return the curve of a version's terms."""
        steps = tuple((step["below_bps"], step["credit_bps"]) for step in guarantee["curve"])
        return cls(guarantee["metric"], guarantee["floor_milli"], steps, guarantee["cap_bps"])

    def credit_bps(self, achieved_bps: int) -> int:
        """Return what is credited where so much of the floor was achieved."""
        return min(self.cap_bps, max((credit for below, credit in self.steps if achieved_bps < below), default=0))


@dataclass(frozen=True, slots=True)
class Hour:
    """Everything that an hour's verdict follows from, and nothing else: its evidence.

    `increase_milli` is what the counter grew by, in thousandths, and `read_ms` the time between its readings; None
    and nothing where nobody read it. `returned_micros` is what of the hour was given back otherwise.
    """

    begins: datetime
    ends: datetime
    up_ms: int
    down_ms: int = 0
    degraded_ms: int = 0
    increase_milli: int | None = None
    read_ms: int = 0
    paid_micros: int = 0
    returned_micros: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold; `Hour.read` is the way back."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return kept | {"begins": self.begins.isoformat(), "ends": self.ends.isoformat()}

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "Hour":
        """Return what `as_json` kept."""
        moments = {name: datetime.fromisoformat(kept[name]) for name in ("begins", "ends")}
        return cls(**{**kept, **moments})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured and achieved, None where nothing was to be judged, and what is given back for that."""

    measured_milli: int | None
    achieved_bps: int | None
    credit_bps: int
    credit_micros: int


def judge(hour: Hour, curve: Curve) -> Verdict:
    """Return the verdict on an hour. The same evidence and terms always give the same."""
    amount, time = _amount(hour, curve.metric)
    if amount is None or time < LEAST_MS:
        return Verdict(None, None, 0, 0)
    achieved = amount * BPS // (time * curve.floor_milli)
    bps = curve.credit_bps(achieved)
    left = max(0, hour.paid_micros - hour.returned_micros)
    return Verdict(amount // time, achieved, bps, min(left, price_micros(hour.paid_micros, 1, bps=bps)))


def _amount(hour: Hour, metric: str) -> tuple[int | None, int]:
    """What was achieved as a product with its time, and that time, so that nothing is rounded before the verdict."""
    if metric == THROUGHPUT:
        grown = None if hour.increase_milli is None else hour.increase_milli * SECOND_MS
        return grown, hour.read_ms + hour.down_ms
    expected = hour.up_ms + hour.down_ms
    good = hour.up_ms - (hour.degraded_ms if metric == GPU_HEALTH else 0)
    return good * PERCENT_MILLI, expected
