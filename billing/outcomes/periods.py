"""What a contract's version cost a buyer in a period, and the cap that this cannot pass."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import F, QuerySet

from billing import accounts
from billing.models import Outcome, OutcomePeriod


@dataclass(frozen=True, slots=True)
class Period:
    """When the period began in which something counts, and the most that it may cost."""

    starts_at: datetime
    cap_micros: int | None = None


def counted_micros(*, version: str, organization: accounts.Organization, starts_at: datetime) -> int:
    """Return what a version cost a buyer in a period so far."""
    row = _rows(version, organization.pk, starts_at).first()
    return row.micros if row else 0


def count(*, version: str, organization_id: int, period: Period, amount_micros: int) -> int:
    """Count an amount in its period, as far as the cap lets it; return how much that is. Behind the gate."""
    row, _ = OutcomePeriod.objects.get_or_create(
        version=version, organization_id=organization_id, starts_at=period.starts_at
    )
    if period.cap_micros is not None:
        amount_micros = min(amount_micros, max(0, period.cap_micros - row.micros))
    OutcomePeriod.objects.filter(pk=row.pk).update(micros=F("micros") + amount_micros)
    return amount_micros


def uncount(reversal: Outcome) -> None:
    """Let what was given back count no more. Behind the gate."""
    if reversal.period is not None:
        rows = _rows(reversal.version, reversal.organization_id, reversal.period)
        rows.update(micros=F("micros") - reversal.amount_micros)


def _rows(version: str, organization_id: int, starts_at: datetime) -> QuerySet[OutcomePeriod]:
    return OutcomePeriod.objects.filter(version=version, organization=organization_id, starts_at=starts_at)
