"""How available something was: a pure function of what was measured and when it should have run.

    availability = (up - weight x degraded) / (up + down)

Up is what the meter measured. Down is time in which it should have run and the meter stood still, and time after a
fault of ours until it ran again. Degraded is a part of up. All else (its customer's own stops, announced
maintenance, interruptions of spot, its first start) is in neither, so it changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from billing.sla.terms import BPS, MILLION, Terms

MILLISECOND = timedelta(milliseconds=1)
Stretch = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that a month's availability follows from, and nothing else: its evidence.

    `expected`: when it should have run; `down`: after faults of ours; `measured`: its spans; `noted`: faults that did
    not end it. `paid_micros`: what the month's use cost; `returned_micros`: what of that was given back otherwise.
    """

    begins: datetime
    ends: datetime
    expected: tuple[Stretch, ...] = ()
    down: tuple[Stretch, ...] = ()
    measured: tuple[Stretch, ...] = ()
    noted: tuple[datetime, ...] = ()
    paid_micros: int = 0
    returned_micros: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold; `Seen.read` is the way back."""
        return {
            "begins": self.begins.isoformat(),
            "ends": self.ends.isoformat(),
            **{name: [[a.isoformat(), b.isoformat()] for a, b in getattr(self, name)] for name in STRETCHES},
            "noted": [at.isoformat() for at in self.noted],
            "paid_micros": self.paid_micros,
            "returned_micros": self.returned_micros,
        }

    @classmethod
    def read(cls, kept: dict[str, Any]) -> "Seen":
        """Return what `as_json` kept."""
        when = datetime.fromisoformat
        return cls(
            begins=when(kept["begins"]),
            ends=when(kept["ends"]),
            **{name: tuple((when(a), when(b)) for a, b in kept[name]) for name in STRETCHES},
            noted=tuple(when(at) for at in kept["noted"]),
            paid_micros=kept["paid_micros"],
            returned_micros=kept["returned_micros"],
        )


STRETCHES = ("expected", "down", "measured")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How available it was, and what is given back for that."""

    up_ms: int
    down_ms: int
    degraded_ms: int
    availability_ppm: int
    credit_bps: int
    credit_micros: int
    incidents: tuple[Stretch, ...]


def judge(seen: Seen, terms: Terms) -> Verdict:
    """Return the verdict on a month. The same evidence and terms always give the same."""
    month = seen.begins, seen.ends
    up = joined(within(seen.measured, *month))
    missing = [*without(joined(within(seen.expected, *month)), up), *without(joined(within(seen.down, *month)), up)]
    incidents = tuple((a, b) for a, b in joined(missing) if b - a >= terms.min_incident)
    notes = joined(within([(at, at + terms.degraded_for) for at in seen.noted], *month))
    degraded = total_ms(up) - total_ms(without(up, notes))
    up_ms, down_ms = total_ms(up), total_ms(incidents)
    ppm = _ppm(up_ms, down_ms, degraded, terms)
    bps = terms.credit_bps(ppm)
    left = max(0, seen.paid_micros - seen.returned_micros)
    credit = min(left, seen.paid_micros * bps // BPS)
    return Verdict(up_ms, down_ms, degraded, ppm, bps, credit, incidents)


def _ppm(up_ms: int, down_ms: int, degraded_ms: int, terms: Terms) -> int:
    """Millionths, rounded down; all of them where there was nothing to measure."""
    if not up_ms + down_ms:
        return MILLION
    good = up_ms * BPS - degraded_ms * terms.degraded_weight_bps
    return good * MILLION // ((up_ms + down_ms) * BPS)


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return stretches in order, those that touch or overlap as one, empty ones left out."""
    found: list[Stretch] = []
    for begin, end in sorted(stretches):
        if begin >= end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def without(stretches: Sequence[Stretch], taken: Sequence[Stretch]) -> list[Stretch]:
    """Return what is left of some stretches without others; both are `joined`."""
    found: list[Stretch] = []
    for begin, end in stretches:
        at = begin
        for off, on in taken:
            if on <= at or off >= end:
                continue
            if off > at:
                found.append((at, off))
            at = max(at, on)
        if at < end:
            found.append((at, end))
    return found


def total_ms(stretches: Iterable[Stretch]) -> int:
    """Return how long stretches last together, in whole milliseconds each."""
    return sum((end - begin) // MILLISECOND for begin, end in stretches)


def within(stretches: Iterable[Stretch], begins: datetime, ends: datetime) -> list[Stretch]:
    """Return what of stretches lies between two moments, empty ones left out."""
    cut = ((max(begin, begins), min(end, ends)) for begin, end in stretches)
    return [(begin, end) for begin, end in cut if begin < end]
