"""The calendar of payouts: `calendar.toml`."""

import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

MICROS = 1_000_000
_TABLE = tomllib.loads(Path(__file__).with_name("calendar.toml").read_text(encoding="utf-8"))
DAYS: tuple[int, ...] = tuple(sorted(_TABLE["days"]))


def slot(at: datetime) -> date:
    """Return the last day of the calendar that has come."""
    day = at.astimezone(UTC).date()
    while day.day not in DAYS:
        day -= timedelta(days=1)
    return day


def end_of(slot: date) -> datetime:
    """Return when a day of the calendar is over, in UTC."""
    return datetime(slot.year, slot.month, slot.day, tzinfo=UTC) + timedelta(days=1)


def following(at: datetime) -> date:
    """Return the next day on which is paid."""
    day = at.astimezone(UTC).date() + timedelta(days=1)
    while day.day not in DAYS:
        day += timedelta(days=1)
    return day


def minimum_micros(currency: str) -> int:
    """Return from how much on a payout is sent; less stays for the next."""
    units: int = _TABLE["minimum"].get(currency, _TABLE["minimum"]["other"])
    return units * MICROS
