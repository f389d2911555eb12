"""What a contract cost a buyer in a period, and the cap that this cannot pass."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F, QuerySet

from billing import accounts
from billing.models import Outcome, OutcomePeriod


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when something counts together, the most that it may cost, and which versions count for that.

    `versions` are names, or a query for them; None: the version alone that is counted.
    """

    starts_at: datetime
    ends_at: datetime
    cap_micros: int | None = None
    versions: Any = None


def counted_micros(*, version: str, organization: accounts.Organization, period: Period) -> int:
    """Return what the versions of a period cost a buyer in it so far."""
    return sum(row.micros for row in _counted(version, organization.pk, period))


def count(*, version: str, organization_id: int, period: Period, amount_micros: int) -> int:
    """Count an amount in its period, as far as the cap lets it; return how much that is. Behind the gate."""
    rows = list(_counted(version, organization_id, period))
    if period.cap_micros is not None:
        amount_micros = min(amount_micros, max(0, period.cap_micros - sum(row.micros for row in rows)))
    own = [row.pk for row in rows if (row.version, row.starts_at) == (version, period.starts_at)]
    if own:
        OutcomePeriod.objects.filter(pk__in=own).update(micros=F("micros") + amount_micros)
    else:
        OutcomePeriod.objects.create(
            version=version, organization_id=organization_id, starts_at=period.starts_at, micros=amount_micros
        )  # fmt: skip
    return amount_micros


def uncount(reversal: Outcome) -> None:
    """Let what was given back count no more. Behind the gate."""
    if reversal.period is not None:
        rows = OutcomePeriod.objects.filter(
            version=reversal.version, organization=reversal.organization_id, starts_at=reversal.period
        )  # fmt: skip
        rows.update(micros=F("micros") - reversal.amount_micros)


def _counted(version: str, organization_id: int, period: Period) -> QuerySet[OutcomePeriod]:
    versions = [version] if period.versions is None else period.versions
    return OutcomePeriod.objects.filter(
        version__in=versions, organization=organization_id, starts_at__gte=period.starts_at,
        starts_at__lt=period.ends_at,
    )  # fmt: skip
