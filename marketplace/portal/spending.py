"""What an organization spends: now, and in any stretch of time, from its usage spans in one query."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

from marketplace.models import Organization

# What a span costs up to a moment, as `floating.amounts_micros` has it: whole milliseconds, rounded half up, once. A
# stretch costs the difference of its two ends, so that stretches which touch add up to the bill.
SUM_AT = """(
    SELECT sum_micro_ms + micros_per_unit_hour * round(1000 * extract(epoch FROM {moment} - starts_at))
    FROM billing_pricepoint WHERE price_version_id = price.id AND starts_at <= {moment}
    ORDER BY starts_at DESC LIMIT 1
)"""
SEEN = """greatest(span.started_at, date_trunc(
    'milliseconds', least(coalesce(span.ended_at, {moment}), {moment}, %(now)s)
))"""
UP_TO = f"""
div(span.quantity * CASE WHEN price.is_floating
    THEN {SUM_AT.format(moment=SEEN)} - {SUM_AT.format(moment="span.started_at")}
    ELSE price.micros_per_unit_hour::numeric * round(1000 * extract(epoch FROM {SEEN} - span.started_at))
END + 1800000, 3600000)
"""
SPENT = f"""
SELECT stretch.number,
       coalesce(sum({UP_TO.format(moment="stretch.till")} - {UP_TO.format(moment="stretch.began")}), 0)::bigint,
       coalesce(sum(coalesce(last.micros_per_unit_hour, price.micros_per_unit_hour) * span.quantity)
           FILTER (WHERE span.ended_at IS NULL), 0)::bigint
FROM unnest(%(began)s::timestamptz[], %(till)s::timestamptz[]) WITH ORDINALITY AS stretch (began, till, number)
LEFT JOIN (billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id)
       ON span.organization_id = %(organization)s
      AND span.started_at < stretch.till AND coalesce(span.ended_at, 'infinity') > stretch.began
LEFT JOIN LATERAL (
    SELECT micros_per_unit_hour FROM billing_pricepoint WHERE price.is_floating AND price_version_id = price.id
    ORDER BY starts_at DESC LIMIT 1
) last ON true
GROUP BY stretch.number ORDER BY stretch.number
"""  # noqa: S608  nothing in it comes from outside


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


def spent(
    organization: Organization, stretches: Sequence[tuple[datetime, datetime]], *, at: datetime
) -> list[tuple[int, int]]:
    """Return for each stretch what it cost until `at`, and what burns per hour of what is still open in it."""
    with connection.cursor() as cursor:
        cursor.execute(
            SPENT,
            {
                "organization": organization.pk,
                "now": at,
                "began": [began for began, _ in stretches],
                "till": [till for _, till in stretches],
            },
        )
        return [(micros, burn) for _, micros, burn in cursor.fetchall()]


def midnight(at: datetime) -> datetime:
    """Return the beginning of the day in the reader's time zone."""
    return timezone.localtime(at).replace(hour=0, minute=0, second=0, microsecond=0)
