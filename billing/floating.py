"""Prices that float: one price version for ever, and the points from which on it is another amount.

Each point carries the integral up to it, in micros x milliseconds, so what use
between two moments costs is a difference of two sums, however often the price
moved between them, and no meter has to be closed for that. Points are only
appended, in the order of time, and never within time that was charged already.
"""

from collections.abc import Collection, Iterable
from datetime import datetime

from django.db import connection, transaction
from django.db.models import Max

from billing import rating, runway
from billing.accounts import Organization, lock_all
from billing.errors import RetroactivePrice
from billing.models import PricePoint, PriceVersion, Unit, UsageSpan

# The sum up to a moment: that of the last point before it, and its price from there on.
SUMS = """
SELECT wanted.n, coalesce(point.sum_micro_ms + point.micros_per_unit_hour * (
    round(1000 * extract(epoch FROM wanted.moment - point.starts_at))
), 0)
FROM unnest(%s::bigint[], %s::timestamptz[]) WITH ORDINALITY AS wanted (series, moment, n)
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint WHERE price_version_id = wanted.series AND starts_at <= wanted.moment
    ORDER BY starts_at DESC LIMIT 1
) point ON true
ORDER BY wanted.n
"""


KEEP_STILL = """
SELECT FROM billing_priceversion
WHERE is_floating AND id = ANY(ARRAY(
    SELECT DISTINCT price_version_id FROM billing_usagespan WHERE id = ANY(%s::bigint[])
))
ORDER BY id FOR SHARE
"""
LOCK_TRIES = 5


@transaction.atomic
def open_series(
    *, sku: str, currency: str, micros_per_unit_hour: int, by: str, at: datetime, unit: str = Unit.GPU
) -> PriceVersion:
    """Return the floating price of a thing for sale in a currency, opened at this amount if there is none yet."""
    at = rating.whole_millisecond(at)
    series = PriceVersion.objects.filter(sku=sku, currency=currency, is_floating=True).first()
    if series is None:
        series, is_new = PriceVersion.objects.get_or_create(
            sku=sku,
            currency=currency,
            is_floating=True,
            defaults={
                "micros_per_unit_hour": micros_per_unit_hour,
                "effective_from": at,
                "published_at": at,
                "published_by": by,
                "unit": unit,
            },
        )
        if is_new:
            PricePoint.objects.create(
                price_version=series, starts_at=at, micros_per_unit_hour=micros_per_unit_hour, sum_micro_ms=0
            )
    return series


@transaction.atomic
def append(*, series: PriceVersion, micros_per_unit_hour: int, at: datetime) -> PricePoint:
    """Let the price be another amount from `at` on, or from the end of what was charged already if that is later.

    Returns the point in force; the same amount again adds none. Raises
    RetroactivePrice before the last point. Locks the accounts of everybody who
    pays this price, because their money lasts longer or less long from then on.
    """
    payers = _lock_payers(series)
    last = PricePoint.objects.filter(price_version=series).latest("starts_at")
    starts_at = rating.whole_millisecond(at)
    if starts_at < last.starts_at:
        raise RetroactivePrice(f"{series.sku}: {starts_at:%Y-%m-%d %H:%M:%S} is over")
    if micros_per_unit_hour == last.micros_per_unit_hour:
        return last
    starts_at = max(starts_at, last.starts_at + rating.MILLISECOND, *_charged_through(series))
    lasted_ms = (starts_at - last.starts_at) // rating.MILLISECOND
    point = PricePoint.objects.create(
        price_version=series,
        starts_at=starts_at,
        micros_per_unit_hour=micros_per_unit_hour,
        sum_micro_ms=last.sum_micro_ms + last.micros_per_unit_hour * lasted_ms,
    )
    for payer in payers:
        runway.refresh(organization=payer, at=starts_at)
    return point


def keep_still(series: Collection[int]) -> None:
    """Keep those of these prices that float from moving until the transaction ends. Their payers are locked."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM billing_priceversion WHERE is_floating AND id = ANY(%s::bigint[]) ORDER BY id FOR SHARE",
            [list(series)],
        )


def keep_all_still(spans: Collection[int]) -> None:
    """Keep the floating prices of these spans from moving until the transaction ends. Their payers are locked."""
    with connection.cursor() as cursor:
        cursor.execute(KEEP_STILL, [list(spans)])


def prices_now(series: Collection[int], *, at: datetime) -> dict[int, int]:
    """Return the micros per unit-hour that each of these floating prices is at a moment, in one query."""
    points = PricePoint.objects.filter(price_version__in=series, starts_at__lte=at)
    latest = points.order_by("price_version", "-starts_at").distinct("price_version")
    return dict(latest.values_list("price_version_id", "micros_per_unit_hour"))


def price_now(series: PriceVersion, *, at: datetime) -> int:
    """Return the micros per unit-hour that a price is at a moment, floating or not."""
    if not series.is_floating:
        return series.micros_per_unit_hour
    return prices_now([series.pk], at=at).get(series.pk, series.micros_per_unit_hour)


def amounts_micros(spans: Iterable[tuple[UsageSpan, datetime]]) -> list[int]:
    """Return what each span costs until its moment, rounded once; at most one query for all that float."""
    spans = [(span, max(span.started_at, rating.whole_millisecond(until))) for span, until in spans]
    floating = [(span, until) for span, until in spans if span.price_version.is_floating]
    sums: dict[tuple[int, datetime], int] = {}
    if floating:
        moments = [(span.price_version_id, moment) for span, until in floating for moment in (span.started_at, until)]
        with connection.cursor() as cursor:
            cursor.execute(SUMS, [[series for series, _ in moments], [moment for _, moment in moments]])
            sums = {wanted: int(total) for wanted, (_, total) in zip(moments, cursor.fetchall(), strict=True)}
    return [
        rating.rounded_micros(
            span.quantity * (sums[span.price_version_id, until] - sums[span.price_version_id, span.started_at])
        )
        if span.price_version.is_floating
        else rating.amount_micros(
            micros_per_unit_hour=span.micros_per_unit_hour,
            unit_milliseconds=rating.unit_milliseconds(quantity=span.quantity, start=span.started_at, end=until),
        )
        for span, until in spans
    ]


def _charged_through(series: PriceVersion) -> list[datetime]:
    """Return until when use at a price was charged: of what runs, and of what ended, where there is any."""
    spans = UsageSpan.objects.filter(price_version=series)
    running = spans.filter(ended_at=None).aggregate(last=Max("charged_through"))
    ended = spans.filter(ended_at__isnull=False).aggregate(last=Max("ended_at"))
    return [found["last"] for found in (running, ended) if found["last"] is not None]


def _lock_payers(series: PriceVersion) -> list[Organization]:
    """Lock the accounts of everybody who pays this price, then the price, and return them all.

    Who came while we waited for the price is not among them: the savepoint gives the locks back, and we begin again.
    """
    for tries_left in reversed(range(LOCK_TRIES)):
        payers = _payers(series)
        with transaction.atomic():
            lock_all([payer.pk for payer in payers])
            PriceVersion.objects.select_for_update(no_key=True).get(pk=series.pk)
            if not tries_left or {payer.pk for payer in _payers(series)} <= {payer.pk for payer in payers}:
                return payers
            transaction.set_rollback(True)
    raise AssertionError("the last try returns")


def _payers(series: PriceVersion) -> list[Organization]:
    """Return who pays this price now, in the order in which accounts are locked."""
    open_spans = UsageSpan.objects.filter(price_version=series, ended_at=None).select_related("organization")
    found = open_spans.order_by("organization", "pk").distinct("organization")
    return [span.organization for span in found]
