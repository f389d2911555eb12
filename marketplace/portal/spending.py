"""What an organization spends: now, and in any stretch of time, from its usage spans in one query."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from marketplace.models import Organization
from marketplace.spend import spent


@dataclass(frozen=True)
class Spending:
    """Amounts in micros of `currency`; today and this month are those of the reader's time zone."""

    currency: str
    per_hour_micros: int
    today_micros: int
    month_micros: int


@dataclass(frozen=True)
class Day:
    """What one day cost so far."""

    at: datetime
    micros: int


def of(organization: Organization, *, at: datetime) -> Spending:
    """Return what an organization spends now, today and this month. One query."""
    today = midnight(at)
    month = today.replace(day=1)
    (day, burn), (month_micros, _) = spent(organization, [(today, at), (month, at)], at=at)
    return Spending(currency=organization.currency, per_hour_micros=burn, today_micros=day, month_micros=month_micros)


def by_day(organization: Organization, *, days: int, at: datetime) -> list[Day]:
    """Return the cost of each of the last days, oldest first, today included. One query."""
    assert days > 0
    today = midnight(at)
    # Arithmetic within one zone is of wall clocks, so these are midnights even where clocks change.
    begins = [today - timedelta(days=back) for back in range(days - 1, -1, -1)]
    ends = [*begins[1:], at]
    amounts = spent(organization, list(zip(begins, ends, strict=True)), at=at)
    return [Day(at=begin, micros=micros) for begin, (micros, _) in zip(begins, amounts, strict=True)]


def midnight(at: datetime) -> datetime:
    """Return the beginning of the day in the reader's time zone."""
    return timezone.localtime(at).replace(hour=0, minute=0, second=0, microsecond=0)
