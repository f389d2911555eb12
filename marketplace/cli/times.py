"""Moments as people type them: in UTC, unless they say otherwise."""

import re
from datetime import UTC, datetime, timedelta

from marketplace.cli.problems import usage
from marketplace.cli.words import parse_time

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
HINT = "Write 2026-11-27T18:00 (UTC, or with an offset such as +09:00), a weekday, tomorrow, or +6h."


def moment(text: str, *, now: datetime) -> datetime:
    """Return the moment that was typed; a day alone begins at midnight UTC, a weekday is the next one."""
    word = text.strip().casefold()
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if found := re.fullmatch(r"\+(\d{1,4})h", word):
        return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=int(found[1]))
    if word == "tomorrow":
        return midnight + timedelta(days=1)
    if word in WEEKDAYS:
        days = (WEEKDAYS.index(word) - midnight.weekday() - 1) % 7 + 1
        return midnight + timedelta(days=days)
    try:
        typed = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise usage(f"{text!r} is no time.", suggestion=HINT) from error
    return typed.replace(tzinfo=UTC) if typed.tzinfo is None else typed.astimezone(UTC)


def away(text: str, *, ahead: bool, suggestion: str) -> str:
    """Return the moment that "8h" ago, or `ahead` of now, means; a date begins in the zone of this machine."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in UNITS and number.isdigit() and len(number) < 6:
            span = timedelta(**{UNITS[unit]: int(number)})
            return sent(datetime.now(UTC) + (span if ahead else -span))
        return sent(datetime.fromisoformat(text.replace("Z", "+00:00")))
    except ValueError as error:
        raise usage(f"{text!r} is not a time.", suggestion=suggestion) from error


def sent(at: datetime) -> str:
    """Return a moment as the API takes it."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def hour(text: str) -> str:
    """Return a moment of the API as an hour, such as 2026-11-27 18:00 UTC."""
    return f"{parse_time(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
