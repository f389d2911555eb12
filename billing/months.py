"""Calendar months in UTC: those of invoices, and of budgets."""

from datetime import UTC, datetime, timedelta


def month_of(at: datetime) -> datetime:
    """Return the beginning of the UTC month in which a moment lies."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    """Return the end of the UTC month in which a moment lies, which is the beginning of the next."""
    return month_of(month_of(at) + timedelta(days=32))
