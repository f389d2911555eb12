"""The periods of each share of revenue that was agreed to: they begin with the agreement and end with the contract."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from django.db.models import Max, Q

from billing.months import month_of, next_month
from marketplace.contracts import offering
from marketplace.contracts import terms as written
from marketplace.models import Acceptance, RevenuePeriod, Side

DAY = timedelta(days=1)


def open_due(*, at: datetime, limit: int) -> int:
    """Open the periods that have begun, of every share of revenue; return how many that were."""
    opened = 0
    agreed = Acceptance.objects.filter(side=Side.BUYER, version__contract__kind="revenue_share")
    # Earlier versions first: where they end a later one begins.
    agreed = agreed.select_related("version", "organization").order_by("version__contract", "version__number", "pk")
    for one in agreed:
        opened += _open(one, at=at, limit=limit - opened)
        if opened >= limit:
            break
    return opened


def current(agreed: Acceptance, *, at: datetime) -> RevenuePeriod | None:
    """Return the period of an agreement's own version in which a moment lies, opened if it has begun; None where none.

    `agreed` has its version and organization.
    """
    _open(agreed, at=at, limit=None)
    own = RevenuePeriod.objects.filter(version=agreed.version_id, organization=agreed.organization_id)
    return own.filter(starts_at__lte=at, ends_at__gt=at).first()


def ended_at(agreed: Acceptance, *, at: datetime) -> datetime | None:
    """Return when the last period of an agreement's version ended; None while one runs or is to come."""
    if current(agreed, at=at) is not None:
        return None
    own = RevenuePeriod.objects.filter(version=agreed.version_id, organization=agreed.organization_id)
    last: datetime | None = own.aggregate(last=Max("ends_at"))["last"]
    return last


def _open(agreed: Acceptance, *, at: datetime, limit: int | None) -> int:
    missing = list(islice(_missing(agreed, at), limit))
    return len(RevenuePeriod.objects.bulk_create(missing, ignore_conflicts=True)) if missing else 0


def bounds(kind: str, at: datetime) -> tuple[datetime, datetime]:
    """Return the UTC day or month in which a moment lies."""
    if kind == "month":
        return month_of(at), next_month(at)
    begin = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return begin, begin + DAY


def _missing(agreed: Acceptance, at: datetime) -> Iterator[RevenuePeriod]:
    """Yield what a version has to open: after those before it, until a later one holds or its customer has left."""
    version, since = agreed.version, offering.in_force_at(agreed)
    over_at = offering.over_at(agreed)
    if since is None or (over_at is not None and over_at <= since):
        return
    revenue = written.of(version.terms)["revenue"]
    until = min(at, version.withdrawn_at or at)
    within = timedelta(seconds=revenue["statement_within_s"])
    begin = _begin(agreed, since)
    while begin <= until and (over_at is None or begin < over_at):
        end = bounds(revenue["period"], begin)[1]
        yield RevenuePeriod(
            version=version, organization_id=agreed.organization_id, currency=agreed.organization.currency,
            starts_at=begin, ends_at=end, due_at=end + within, final_at=end + 2 * within,
        )  # fmt: skip
        begin = end


def _begin(agreed: Acceptance, since: datetime) -> datetime:
    """Return where the next period of a version begins: its first not before the version was in force."""
    version = agreed.version
    before = RevenuePeriod.objects.filter(
        version__contract=version.contract_id, version__number__lte=version.number,
        organization=agreed.organization_id,
    )  # fmt: skip
    own = Max("ends_at", filter=Q(version=version))
    ends = before.aggregate(last=Max("ends_at"), own=own)
    first = bounds(written.of(version.terms)["revenue"]["period"], since)[0]
    if ends["last"] is None:
        return first
    last: datetime = ends["last"]
    return last if ends["own"] is not None else max(last, first)
