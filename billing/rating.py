"""From unit-milliseconds (of GPUs, of GiB) and a price per unit-hour to money: whole numbers, one rounding."""

from collections.abc import Iterable
from datetime import datetime, timedelta

MILLISECOND = timedelta(milliseconds=1)
MILLISECONDS_PER_HOUR = 3_600_000


def amount_micros(*, micros_per_unit_hour: int, unit_milliseconds: int) -> int:
    """Return what the use cost, rounded half up to a whole micro.

    Callers pass the use of the whole span, never of a slice: rounding each
    slice would make the bill depend on how often we look. What a slice costs is
    the whole up to its end minus what was charged before.
    """
    assert micros_per_unit_hour >= 0
    assert unit_milliseconds >= 0
    return rounded_micros(micros_per_unit_hour * unit_milliseconds)


def rounded_micros(unit_micro_milliseconds: int) -> int:
    """Return an exact product of units, micros per unit-hour and milliseconds as money, rounded half up, once."""
    return (unit_micro_milliseconds + MILLISECONDS_PER_HOUR // 2) // MILLISECONDS_PER_HOUR


def unit_milliseconds(*, quantity: int, start: datetime, end: datetime) -> int:
    """Return the use of `quantity` units from `start` to `end`; none where the end lies before the start."""
    return quantity * max(0, (end - start) // MILLISECOND)


def whole_millisecond(at: datetime) -> datetime:
    """Return the millisecond in which `at` lies: spans begin and end on whole ones."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def take_in_turn(amount_micros: int, available_micros: Iterable[int]) -> tuple[list[int], int]:
    """Return what each source gives when the first is emptied before the next is touched, and what then is missing."""
    assert amount_micros >= 0
    shares = []
    missing = amount_micros
    for available in available_micros:
        share = min(missing, max(0, available))
        shares.append(share)
        missing -= share
    return shares, missing
