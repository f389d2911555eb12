"""What an organization spends: now, today and this month, as its overview of costs adds it up, in one query."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from marketplace.models import Organization
from marketplace.spend import cost


@dataclass(frozen=True)
class Spending:
    """Amounts in micros of `currency`; today and this month are those of the reader's time zone."""

    currency: str
    per_hour_micros: int
    today_micros: int
    month_micros: int


def of(organization: Organization, *, at: datetime) -> Spending:
    """Return what an organization spends now, today and this month. One query."""
    today = midnight(at)
    month = today.replace(day=1)
    # To their ends: what is posted for a day or a month that goes on stands at its end.
    stretches = [(today, today + timedelta(days=1)), (month, month_after(month))]
    (day, burn), (month_micros, _) = cost(organization, stretches, at=at)
    return Spending(currency=organization.currency, per_hour_micros=burn, today_micros=day, month_micros=month_micros)


def month_after(month: datetime) -> datetime:
    """Return the midnight that begins the month after this one."""
    year, number = divmod(month.year * 12 + month.month, 12)
    return month.replace(year=year, month=number + 1)


def midnight(at: datetime) -> datetime:
    """Return the beginning of the day in the reader's time zone."""
    return timezone.localtime(at).replace(hour=0, minute=0, second=0, microsecond=0)
