"""What results took: the time of their attempts and of their verification, which the platform pays at list price.

The customer pays for results, so such time is covered and not charged. Its price moves from what results took to the
revenue, as if the platform were its own customer, so that the owner of the GPUs is paid by its rate card as always.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from billing import accounts, floating, ledger, rating
from billing.models import Account, Escrow, OutcomeCost, UsageSpan
from billing.outcomes import totals
from billing.suppliers import accruing
from billing.suppliers.accruing import Supplied

# So long after an escrow was closed the last span that it covers is waited for.
LATE = timedelta(days=7)
BATCH = 500
SUPPLIER = "SELECT id FROM marketplace_organization WHERE public_id = %s"


def book_costs(*, at: datetime, limit: int = BATCH) -> int:
    """Book the time that resources with an escrow covered and that is over; return how many spans that were."""
    booked = 0
    for span, version in _due(at, limit):
        booked += book_cost(span=span, version=version, at=at) is not None
    return booked


@transaction.atomic
def book_cost(*, span: UsageSpan, version: str, at: datetime) -> OutcomeCost | None:
    """Book what a covered span would have cost; once for it. None where it runs still, or was booked before."""
    if span.ended_at is None or not span.covered_by:
        return None
    row, is_new = OutcomeCost.objects.get_or_create(
        span=span,
        defaults={
            "resource_id": span.covered_by,
            "version": version,
            "currency": span.price_version.currency,
            "unit_milliseconds": rating.unit_milliseconds(
                quantity=span.quantity, start=span.started_at, end=span.ended_at
            ),
            "amount_micros": _at_list_price(span, span.ended_at),
            "at": at,
        },
    )
    if not is_new:
        return None
    if row.version:
        totals.add([(row.version, row.currency, 0, row.amount_micros)])
    if row.amount_micros:
        key = f"cost:{span.public_id}"
        ledger.transfer(
            key=f"earn:{key}",
            source=accounts.platform(Account.Kind.OUTCOME_COST, row.currency),
            target=accounts.platform(Account.Kind.REVENUE, row.currency),
            amount_micros=row.amount_micros,
            reason=f"{span.resource_name} for {span.covered_by}"[:200],
            at=at,
        )
        _note_delivery(key, span, row)
    return row


@dataclass(frozen=True, slots=True)
class Metered:
    """Use that something covered between two moments, and what it would have cost by the list.

    Amounts of a span's parts add up to that of the whole: each is what it cost until then less what it cost before.
    """

    span: UsageSpan
    since: datetime
    until: datetime
    amount_micros: int


def metered(*, covered_by: str, since: datetime, until: datetime) -> list[Metered]:
    """Return the use that something covered between two moments, the earliest first."""
    spans = UsageSpan.objects.filter(covered_by=covered_by, started_at__lt=until).select_related("price_version")
    found = list(spans.filter(Q(ended_at=None) | Q(ended_at__gt=since)).order_by("started_at", "pk"))
    bare = [_uncovered(span) for span in found]
    ends = [min(until, span.ended_at or until) for span in found]
    through = floating.amounts_micros(zip(bare, ends, strict=True))
    before = floating.amounts_micros((span, since) for span in bare)
    return [
        Metered(span, max(since, span.started_at), end, whole - less)
        for span, end, whole, less in zip(found, ends, through, before, strict=True)
    ]


def unbooked_micros(*, versions: Sequence[str], currency: str, without: Any, at: datetime) -> int:
    """Return what work under these versions took that is not booked yet, but for these resources (ids, or a query)."""
    escrows = Escrow.objects.filter(version__in=versions, currency=currency)
    waiting = escrows.filter(Q(state=Escrow.State.OPEN) | Q(closed_at__gt=at - LATE)).values("resource_id")
    spans = UsageSpan.objects.filter(covered_by__in=waiting, outcome_cost=None).exclude(resource_id__in=without)
    found = spans.select_related("price_version")
    return sum(floating.amounts_micros((_uncovered(span), min(at, span.ended_at or at)) for span in found))


def _due(at: datetime, limit: int) -> Iterator[tuple[UsageSpan, str]]:
    """Spans that are over and not booked, with the version of the contract that they were for."""
    waiting = Escrow.objects.filter(Q(state=Escrow.State.OPEN) | Q(closed_at__gt=at - LATE))
    versions = dict(waiting.values_list("resource_id", "version"))
    spans = UsageSpan.objects.filter(covered_by__in=versions, ended_at__isnull=False, outcome_cost=None)
    for span in spans.select_related("price_version").order_by("pk")[:limit]:
        yield span, versions[span.covered_by]


def _at_list_price(span: UsageSpan, until: datetime) -> int:
    """What it would have cost, had nothing covered it."""
    return floating.amounts_micros([(_uncovered(span), until)])[0]


def _uncovered(span: UsageSpan) -> UsageSpan:
    return UsageSpan(
        quantity=span.quantity, price_version=span.price_version, started_at=span.started_at, meter=span.meter
    )


def _note_delivery(key: str, span: UsageSpan, row: OutcomeCost) -> None:
    """Let the supplier of the GPUs be paid, where there is one."""
    supplier = span.labels.get("supplier")
    if not supplier or span.meter != UsageSpan.Meter.GPU:
        return
    with connection.cursor() as cursor:
        cursor.execute(SUPPLIER, [supplier])
        found = cursor.fetchone()
    if found is not None:
        assert span.ended_at is not None
        accruing.note_delivery(
            key=key,
            currency=row.currency,
            amount_micros=row.amount_micros,
            supplied=Supplied(
                found[0], span.labels.get("offer", ""), span.started_at, span.ended_at, row.unit_milliseconds
            ),
        )
