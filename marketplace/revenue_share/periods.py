"""The periods of each share of revenue that was agreed to: they begin with the agreement and end with the contract."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from django.db.models import Max

from billing.months import month_of, next_month
from marketplace.contracts import terms as written
from marketplace.models import Acceptance, RevenuePeriod, Side

DAY = timedelta(days=1)
PERIODS_MAX = 40


def open_due(*, at: datetime, limit: int) -> int:
    """Open the periods that have begun, of every share of revenue; return how many that were."""
    opened = 0
    agreed = Acceptance.objects.filter(side=Side.BUYER, version__contract__kind="revenue_share")
    agreed = agreed.select_related("version", "organization")
    for one in agreed.order_by("pk"):
        missing = list(_missing(one, at))[: limit - opened]
        opened += len(RevenuePeriod.objects.bulk_create(missing, ignore_conflicts=True))
        if opened >= limit:
            break
    return opened


def bounds(kind: str, at: datetime) -> tuple[datetime, datetime]:
    """Return the UTC day or month in which a moment lies."""
    if kind == "month":
        return month_of(at), next_month(at)
    begin = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return begin, begin + DAY


def _missing(agreed: Acceptance, at: datetime) -> Iterator[RevenuePeriod]:
    version = agreed.version
    revenue = written.of(version.terms)["revenue"]
    last = RevenuePeriod.objects.filter(version=version, organization=agreed.organization_id)
    ends = last.aggregate(last=Max("ends_at"))["last"]
    until = min(at, version.withdrawn_at or at)
    begin = ends or bounds(revenue["period"], agreed.at)[0]
    within = timedelta(seconds=revenue["statement_within_s"])
    for _ in range(PERIODS_MAX):
        if begin > until:
            return
        begin, end = bounds(revenue["period"], begin)
        yield RevenuePeriod(
            version=version, organization_id=agreed.organization_id, currency=agreed.organization.currency,
            starts_at=begin, ends_at=end, due_at=end + within, final_at=end + 2 * within,
        )  # fmt: skip
        begin = end
