"""Which hours a reservation holds: its strips, as pure functions of them, and the rows changed in one place."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from billing.rating import MILLISECOND
from marketplace.models import Reservation, ReservationStrip
from provisioning.calendar import HOUR


@dataclass(frozen=True)
class Step:
    """So many GPUs in every hour from a start to an end."""

    starts_at: datetime
    ends_at: datetime
    gpus: int


def held_at(strips: Iterable[ReservationStrip], at: datetime) -> int:
    """Return how many GPUs are held at a moment."""
    return sum(strip.gpus for strip in strips if strip.starts_at <= at < strip.ends_at)


def steps(strips: Collection[ReservationStrip]) -> list[Step]:
    """Return what is held as a step function without overlaps, hours of nothing left out."""
    edges = sorted({edge for strip in strips for edge in (strip.starts_at, strip.ends_at)})
    found: list[Step] = []
    for begin, end in pairwise(edges):
        gpus = held_at(strips, begin)
        if not gpus:
            continue
        if found and (found[-1].ends_at, found[-1].gpus) == (begin, gpus):
            found[-1] = Step(found[-1].starts_at, end, gpus)
        else:
            found.append(Step(begin, end, gpus))
    return found


def least_within(strips: Collection[ReservationStrip], starts_at: datetime, ends_at: datetime) -> int:
    """Return the fewest GPUs that are held in any hour of a window."""
    edges = {starts_at} | {strip.ends_at for strip in strips} | {strip.starts_at for strip in strips}
    return min(held_at(strips, edge) for edge in edges if starts_at <= edge < ends_at)


def clipped(
    strips: Iterable[ReservationStrip], starts_at: datetime, ends_at: datetime | None = None
) -> list[ReservationStrip]:
    """Return unsaved copies of the strips, cut to a window."""
    found = []
    for strip in strips:
        begin, end = max(strip.starts_at, starts_at), strip.ends_at if ends_at is None else min(strip.ends_at, ends_at)
        if begin < end:
            found.append(_copy(strip, begin, end, strip.gpus))
    return found


@dataclass(frozen=True)
class Taken:
    """GPUs that were taken out of a strip, and what a GPU-hour of them had cost and was worth."""

    starts_at: datetime
    ends_at: datetime
    gpus: int
    paid_micros: int
    worth_micros: int


def take_out(reservation: Reservation, *, starts_at: datetime, ends_at: datetime, gpus: int) -> list[Taken]:
    """Take GPUs of each hour of a window out of a reservation's strips, the dearest first; return what they were.

    The caller holds the offer's gate and knows that they are there, then calls `refit`.
    """
    strips = list(reservation.strips.all())
    edges = sorted(
        {starts_at, ends_at}
        | {edge for strip in strips for edge in (strip.starts_at, strip.ends_at) if starts_at < edge < ends_at}
    )
    taken: list[Taken] = []
    for begin, end in pairwise(edges):
        left = gpus
        for strip in sorted(strips, key=lambda one: (-one.paid_micros, one.pk or 0)):
            if not left or not (strip.starts_at <= begin and end <= strip.ends_at):
                continue
            share = min(left, strip.gpus)
            left -= share
            strips.remove(strip)
            strips += _rest(strip, begin, end, share)
            taken.append(Taken(begin, end, share, strip.paid_micros, strip.worth_micros))
        assert not left, "more is taken than is held"
    _replace(reservation, strips)
    return _merged(taken)


def _rest(strip: ReservationStrip, begin: datetime, end: datetime, gpus: int) -> list[ReservationStrip]:
    """Return what is left of a strip without some GPUs of a part of its time."""
    parts = [
        (strip.starts_at, begin, strip.gpus),
        (begin, end, strip.gpus - gpus),
        (end, strip.ends_at, strip.gpus),
    ]
    return [_copy(strip, first, last, count) for first, last, count in parts if first < last and count]


def add(reservation: Reservation, strips: Iterable[ReservationStrip]) -> None:
    """Give a reservation more hours; the caller then calls `refit`."""
    _replace(reservation, [*reservation.strips.all(), *strips])


def refit(reservation: Reservation) -> bool:
    """Keep start, end and GPUs of the row beside its strips; return False, with the row as it was, if none are left."""
    strips = list(reservation.strips.all())
    if not strips:
        return False
    changes: dict[str, Any] = {
        "starts_at": min(strip.starts_at for strip in strips),
        "ends_at": max(strip.ends_at for strip in strips),
        "gpus": max(step.gpus for step in steps(strips)),
    }
    changes["locks_at"] = changes["starts_at"] - timedelta(minutes=reservation.terms["lock_minutes"])
    Reservation.objects.filter(pk=reservation.pk).update(**changes)
    for name, value in changes.items():
        setattr(reservation, name, value)
    return True


def worth_micros(strips: Iterable[ReservationStrip], starts_at: datetime, ends_at: datetime) -> int:
    """Return what the platform keeps for the hours of a window."""
    return sum(
        strip.worth_micros * strip.gpus * ((strip.ends_at - strip.starts_at) // HOUR)
        for strip in clipped(strips, starts_at, ends_at)
    )


def gpu_milliseconds(strips: Iterable[ReservationStrip], starts_at: datetime, ends_at: datetime) -> int:
    """Return how much is held in a window."""
    here = clipped(strips, starts_at, ends_at)
    return sum(strip.gpus * ((strip.ends_at - strip.starts_at) // MILLISECOND) for strip in here)


def _replace(reservation: Reservation, strips: Sequence[ReservationStrip]) -> None:
    """Write strips in place of those that are there, neighbours of the same kind joined."""
    reservation.strips.all().delete()
    joined: list[ReservationStrip] = []
    for strip in sorted(strips, key=lambda one: (one.paid_micros, one.worth_micros, one.gpus, one.starts_at)):
        last = joined[-1] if joined else None
        if last is not None and last.ends_at == strip.starts_at and _kind(last) == _kind(strip):
            last.ends_at = strip.ends_at
        else:
            joined.append(_copy(strip, strip.starts_at, strip.ends_at, strip.gpus))
    for strip in joined:
        strip.reservation = reservation
    ReservationStrip.objects.bulk_create(joined)


def _kind(strip: ReservationStrip) -> tuple[int, int, int]:
    return strip.gpus, strip.paid_micros, strip.worth_micros


def _copy(strip: ReservationStrip, begin: datetime, end: datetime, gpus: int) -> ReservationStrip:
    return ReservationStrip(
        reservation_id=strip.reservation_id,
        starts_at=begin,
        ends_at=end,
        gpus=gpus,
        paid_micros=strip.paid_micros,
        worth_micros=strip.worth_micros,
    )


def _merged(taken: Sequence[Taken]) -> list[Taken]:
    """Join what follows each other in time and is the same otherwise."""
    found: list[Taken] = []
    for one in sorted(taken, key=lambda t: (t.paid_micros, t.worth_micros, t.gpus, t.starts_at)):
        last = found[-1] if found else None
        if last is not None and (last.ends_at, last.gpus, last.paid_micros, last.worth_micros) == (
            one.starts_at, one.gpus, one.paid_micros, one.worth_micros
        ):  # fmt: skip
            found[-1] = Taken(last.starts_at, one.ends_at, last.gpus, last.paid_micros, last.worth_micros)
        else:
            found.append(one)
    return found
