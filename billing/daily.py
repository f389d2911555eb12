"""What was sold, by UTC day, thing, market and currency: a summary of the ledger's charges, a day at a time.

Whoever charges, corrects, adjusts or earns writes down in the same transaction
which stretch of time that touched (`RevenueToSum`). A sweep takes what was
written, and works out each day that was touched as a whole, so late use and
corrections need no rule of their own. A slice of a span costs what the span is
charged until the slice's end less what it is charged until its beginning, so
that all days of a span add up to its charges to the micro.
"""

from datetime import date, datetime

from django.db import connection, transaction

ONE_SWEEP_AT_A_TIME = 7_220_002  # the key of an advisory lock
# As many days in one go: at 300,000 spans a month that is some seconds.
DAYS_MAX = 31
STORAGE, RESERVED, ADJUSTMENT, OUTCOME = "storage", "reserved", "adjustment", "outcome"

TOUCH = "INSERT INTO billing_revenuetosum (since, through) VALUES (%s, %s)"
TAKE = """
WITH taken AS (
    DELETE FROM billing_revenuetosum
    RETURNING (since AT TIME ZONE 'UTC')::date AS first, (through AT TIME ZONE 'UTC')::date AS last
), stretch AS (
    SELECT DISTINCT first, last FROM taken
)
SELECT DISTINCT first + number AS day FROM stretch CROSS JOIN LATERAL generate_series(0, last - first) AS number
ORDER BY day DESC
"""
LEAVE = """
INSERT INTO billing_revenuetosum (since, through)
SELECT day::timestamp AT TIME ZONE 'UTC', day::timestamp AT TIME ZONE 'UTC' FROM unnest(%s::date[]) AS day
"""
# The exact integral of a floating price up to a moment, and what a span is charged until then; as `charging` has both.
SUM_AT = """coalesce((
    SELECT sum_micro_ms + micros_per_unit_hour * round(1000 * extract(epoch FROM {moment} - starts_at))
    FROM billing_pricepoint WHERE price_version_id = price.id AND starts_at <= {moment}
    ORDER BY starts_at DESC LIMIT 1
), 0)"""
COST = f"""div(2 * span.quantity * CASE WHEN price.is_floating
    THEN {SUM_AT} - {SUM_AT.format(moment="span.started_at")}
    ELSE price.micros_per_unit_hour::numeric * round(1000 * extract(epoch FROM {{moment}} - span.started_at))
END + 3600000, 7200000)"""
SUM_UP = f"""
WITH wanted AS MATERIALIZED (
    SELECT day, day::timestamp AT TIME ZONE 'UTC' AS began, (day + 1)::timestamp AT TIME ZONE 'UTC' AS till
    FROM unnest(%(days)s::date[]) AS day
), part AS (
    SELECT slice.day, span.labels ->> 'offer' AS thing, price.currency,
        CASE WHEN span.meter = 'volume' THEN '{STORAGE}' ELSE coalesce(span.labels ->> 'market', '') END AS market,
        CASE WHEN slice.till >= span.charged_through THEN span.charged_micros
             ELSE {COST.format(moment="slice.till")} END
        - CASE WHEN slice.began <= span.started_at THEN 0 ELSE {COST.format(moment="slice.began")} END AS micros
    FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
    JOIN wanted slice ON span.started_at < slice.till AND span.charged_through > slice.began
    WHERE span.covered_by = '' AND span.started_at < (SELECT max(till) FROM wanted)
        AND (span.ended_at IS NULL OR span.ended_at > (SELECT min(began) FROM wanted))
    UNION ALL
    SELECT slice.day, split_part(moved.key, ':', 2), target.currency, '{RESERVED}', moved.amount_micros
    FROM wanted slice
    JOIN billing_transfer moved ON moved.effective_at >= slice.began AND moved.effective_at < slice.till
    JOIN billing_account source ON source.id = moved.source_id AND source.kind = 'deferred'
    JOIN billing_account target ON target.id = moved.target_id AND target.kind = 'revenue'
    WHERE moved.key LIKE 'earn:%%'
    UNION ALL
    SELECT slice.day, split_part(price.sku, '/', 1), organization.currency, '{ADJUSTMENT}', posting.amount_micros
    FROM wanted slice JOIN billing_adjustmentposting posting
        ON posting.through > slice.began AND posting.through <= slice.till
    JOIN billing_adjustment adjustment ON adjustment.id = posting.adjustment_id
    JOIN marketplace_organization organization ON organization.id = adjustment.organization_id
    LEFT JOIN billing_priceversion price ON price.id = adjustment.price_version_id
    UNION ALL
    SELECT slice.day, outcome.version, outcome.currency, '{OUTCOME}',
        CASE outcome.kind WHEN 'reversed' THEN -outcome.amount_micros ELSE outcome.amount_micros END
    FROM wanted slice JOIN billing_outcome outcome ON outcome.at >= slice.began AND outcome.at < slice.till
)
INSERT INTO billing_dailyrevenue (day, thing, market, currency, micros, summed_at)
SELECT day, coalesce(thing, ''), market, currency, sum(micros)::bigint, %(at)s
FROM part GROUP BY 1, 2, 3, 4 HAVING sum(micros) <> 0
"""  # noqa: S608  nothing in it comes from outside


def touch(*, since: datetime, through: datetime) -> None:
    """Note that money moved for this stretch of time. In the transaction that moves it."""
    with connection.cursor() as cursor:
        cursor.execute(TOUCH, [since, through])


@transaction.atomic
def sum_up(*, at: datetime, limit: int = DAYS_MAX) -> int:
    """Work out anew the days that were touched, the newest first and no more than `limit`; return how many.

    Safe to repeat, to run twice at once and to be killed. What is charged meanwhile is left for the next.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ONE_SWEEP_AT_A_TIME])
        cursor.execute(TAKE)
        days: list[date] = [day for (day,) in cursor.fetchall()]
        if not days:
            return 0
        cursor.execute(LEAVE, [days[limit:]])
        # These see all that was committed before, and at least what had written down what was taken above.
        cursor.execute("DELETE FROM billing_dailyrevenue WHERE day = ANY (%s)", [days[:limit]])
        cursor.execute(SUM_UP, {"days": days[:limit], "at": at})
    return len(days[:limit])
