"""What an organization spends: now, and in any stretch of time, from its usage spans in one query."""

from dataclasses import dataclass
from datetime import datetime

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


def of(organization: Organization, *, at: datetime) -> Spending:
    """Return what an organization spends now, today and this month. One query."""
    today = midnight(at)
    month = today.replace(day=1)
    (day, burn), (month_micros, _) = spent(organization, [(today, at), (month, at)], at=at)
    return Spending(currency=organization.currency, per_hour_micros=burn, today_micros=day, month_micros=month_micros)


def midnight(at: datetime) -> datetime:
    """Return the beginning of the day in the reader's time zone."""
    return timezone.localtime(at).replace(hour=0, minute=0, second=0, microsecond=0)
