"""Whether the daily summary says what the ledger says, in SQL that shares no code with what sums it up; see `books`.

All days before the first that is still to be summed up add up, thing by thing,
to what was charged for the time before: the charges of a span that was over by
then, and of one that went on what its price says up to that midnight.
"""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "daily_revenue_adds_up_to_the_charges": """
        WITH seam AS MATERIALIZED (
            SELECT coalesce(date_trunc('day', min(since), 'UTC'), 'infinity') AS at FROM billing_revenuetosum
        ), point AS (
            SELECT price_version_id, micros_per_unit_hour, starts_at, coalesce(
                lead(starts_at) OVER (PARTITION BY price_version_id ORDER BY starts_at), 'infinity'
            ) AS ends_at FROM billing_pricepoint
        ), booked AS (
            SELECT coalesce(span.labels ->> 'offer', '') AS thing,
                CASE span.meter WHEN 'volume' THEN 'storage' ELSE coalesce(span.labels ->> 'market', '') END AS market,
                price.currency,
                CASE WHEN span.charged_through <= seam.at THEN span.charged_micros ELSE round((
                    SELECT sum(span.quantity * cost.price * (1000 * extract(epoch FROM cost.till - cost.since)))
                    FROM (
                        SELECT price.micros_per_unit_hour::numeric AS price, span.started_at AS since, seam.at AS till
                        WHERE NOT price.is_floating
                        UNION ALL
                        SELECT point.micros_per_unit_hour, greatest(span.started_at, point.starts_at),
                            least(seam.at, point.ends_at)
                        FROM point WHERE price.is_floating AND point.price_version_id = price.id
                            AND point.starts_at < seam.at AND point.ends_at > span.started_at
                    ) cost
                ) / 3600000) END AS micros
            FROM seam JOIN billing_usagespan span ON span.started_at < seam.at AND span.covered_by = ''
            JOIN billing_priceversion price ON price.id = span.price_version_id
            UNION ALL
            SELECT split_part(moved.key, ':', 2), 'reserved', account.currency, moved.amount_micros
            FROM seam JOIN billing_transfer moved ON moved.effective_at < seam.at AND moved.key LIKE 'earn:%%'
            JOIN billing_account account ON account.id = moved.target_id AND account.kind = 'revenue'
            WHERE moved.key NOT LIKE 'earn:cost:%%'
            UNION ALL
            SELECT outcome.version, 'outcome', outcome.currency,
                CASE account.kind WHEN 'revenue' THEN moved.amount_micros ELSE -moved.amount_micros END
            FROM seam JOIN billing_transfer moved ON moved.effective_at < seam.at AND moved.key LIKE 'outcome:%%'
            JOIN billing_account account ON account.id = moved.target_id
            JOIN billing_outcome outcome ON outcome.public_id = split_part(moved.key, ':', 2)
            UNION ALL
            SELECT coalesce(split_part(price.sku, '/', 1), ''), 'adjustment', organization.currency,
                posting.amount_micros
            FROM seam JOIN billing_adjustmentposting posting ON posting.through <= seam.at
            JOIN billing_adjustment adjustment ON adjustment.id = posting.adjustment_id
            JOIN marketplace_organization organization ON organization.id = adjustment.organization_id
            LEFT JOIN billing_priceversion price ON price.id = adjustment.price_version_id
        )
        SELECT concat_ws(' ', thing, market, currency),
            format('days say %%s, the books %%s', coalesce(summed.micros, 0), coalesce(charged.micros, 0))
        FROM (SELECT thing, market, currency, sum(micros) AS micros FROM booked GROUP BY 1, 2, 3) charged
        FULL JOIN (
            SELECT thing, market, currency, sum(micros) AS micros FROM billing_dailyrevenue, seam
            WHERE seam.at = 'infinity' OR day < (seam.at AT TIME ZONE 'UTC')::date GROUP BY 1, 2, 3
        ) summed USING (thing, market, currency)
        WHERE coalesce(charged.micros, 0) <> coalesce(summed.micros, 0)
    """,
}
