"""The one statement of the close, see `accruing`. It shares no code with `proof`, which works it out in Python."""

# Which card holds from when to when. An offer's own card ends those of all offers there, for good.
CARDS = """
card AS (
    SELECT id, supplier_id, offer, share_bps, fixed_micros, fixed_currency, reserve_bps, reserve_days,
           effective_from AS begins, coalesce(lead(effective_from) OVER following, 'infinity') AS ends
    FROM billing_ratecard WHERE state = 'approved'
    WINDOW following AS (PARTITION BY supplier_id, offer ORDER BY effective_from)
), first_own AS (
    SELECT supplier_id, offer, min(begins) AS begins FROM card WHERE offer <> '' GROUP BY supplier_id, offer
)"""
# What ran and was charged, and from when to when anything about it may be new.
SPANS = """
thing AS MATERIALIZED (
    SELECT span.id AS span_id, supplier.id AS supplier_id, span.labels ->> 'offer' AS offer, price.currency,
           quantity, started_at, charged_through, charged_micros, price.id AS price_id, is_floating,
           micros_per_unit_hour,
           CASE WHEN known.through IS NULL THEN started_at
                ELSE least(known.through, charged_through, known.lent) END AS since,
           greatest(charged_through, known.through) AS until
    FROM billing_usagespan span
    JOIN marketplace_organization supplier ON supplier.public_id = span.labels ->> 'supplier'
    JOIN billing_priceversion price ON price.id = span.price_version_id
    LEFT JOIN LATERAL (
        SELECT max(through) AS through, (
            SELECT min(through) - interval '1 millisecond' FROM billing_lentuse WHERE span_id = span.id
        ) AS lent FROM billing_accrual WHERE span_id = span.id
    ) known ON true
    WHERE NOT span.is_accrued AND span.meter = 'gpu' AND span.covered_by = ''
)"""
# A piece is a span in one month under one card. One that a correction emptied stays, at nothing.
PIECES = """
piece AS (
    SELECT thing.*, card.id AS card_id, share_bps, reserve_bps, reserve_days, month.begins AS month,
           CASE WHEN card.fixed_currency = thing.currency THEN card.fixed_micros END AS fixed_micros,
           least(charged_through, greatest(started_at, card.begins, month.begins)) AS begins,
           least(charged_through, greatest(started_at, card.begins, month.begins,
               least(card.ends, own.begins, month.ends))) AS finishes,
           coalesce(old.unit_milliseconds, 0) AS old_ms, coalesce(old.charge_micros, 0) AS old_charge,
           coalesce(old.payout_micros, 0) AS old_payout, coalesce(old.reserve_micros, 0) AS old_reserve
    FROM thing
    JOIN card ON card.supplier_id = thing.supplier_id AND card.offer IN ('', thing.offer)
    LEFT JOIN first_own own ON card.offer = '' AND own.supplier_id = thing.supplier_id AND own.offer = thing.offer
    CROSS JOIN LATERAL (
        SELECT begins AT TIME ZONE 'UTC' AS begins, (begins + interval '1 month') AT TIME ZONE 'UTC' AS ends
        FROM generate_series(date_trunc('month', since AT TIME ZONE 'UTC'), until AT TIME ZONE 'UTC',
                             interval '1 month') AS begins
    ) month
    LEFT JOIN billing_accrual old
        ON old.span_id = thing.span_id AND old.month = month.begins AND old.card_id = card.id
    WHERE old.id IS NOT NULL OR greatest(started_at, card.begins, month.begins)
        < least(charged_through, card.ends, own.begins, month.ends)
)"""
# What the span had cost at a moment, rounded as when it is charged; where it was charged through, that.
COST = """
CASE WHEN {at} <= started_at THEN 0 WHEN {at} >= charged_through THEN charged_micros
ELSE least(charged_micros, div(2 * quantity * (CASE WHEN is_floating THEN {sum_at} - {sum_before}
    ELSE micros_per_unit_hour::numeric * round(1000 * extract(epoch FROM {at} - started_at)) END) + 3600000, 7200000))
END"""
SUM = """(
    SELECT sum_micro_ms + point.micros_per_unit_hour * round(1000 * extract(epoch FROM {at} - starts_at))
    FROM billing_pricepoint point WHERE price_version_id = price_id AND starts_at <= {at}
    ORDER BY starts_at DESC LIMIT 1
)"""


def _cost(at: str) -> str:
    return COST.format(at=at, sum_at=SUM.format(at=at), sum_before=SUM.format(at="started_at"))


# Of a piece is left out what was lent: a reservation earned these hours, and its holder was paid for them.
# Beside the pieces: hours that were paid ahead and delivered, each under the card by which it began.
PRICED = f"""
priced AS (
    SELECT span_id, NULL::bigint AS delivery_id, supplier_id, offer, currency, card_id, share_bps, reserve_bps,
           reserve_days, fixed_micros, month, begins, finishes,
           greatest(0, quantity * round(1000 * extract(epoch FROM finishes - begins)) - lent.ms)::bigint AS ms,
           greatest(0, {_cost("finishes")} - {_cost("begins")} - lent.micros)::bigint AS charge,
           old_ms, old_charge, old_payout, old_reserve
    FROM piece CROSS JOIN LATERAL (
        SELECT coalesce(sum(unit_milliseconds), 0) AS ms, coalesce(sum(amount_micros), 0) AS micros
        FROM billing_lentuse used WHERE used.span_id = piece.span_id AND through > begins AND through <= finishes
    ) lent
    UNION ALL
    SELECT NULL, delivery.id, delivery.supplier_id, delivery.offer, delivery.currency, held.id, share_bps, reserve_bps,
           reserve_days, CASE WHEN held.fixed_currency = delivery.currency THEN held.fixed_micros END,
           date_trunc('month', starts_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', starts_at, ends_at,
           delivery.unit_milliseconds, amount_micros, 0, 0, 0, 0
    FROM billing_delivery delivery JOIN LATERAL (
        SELECT * FROM card WHERE card.supplier_id = delivery.supplier_id AND card.offer IN ('', delivery.offer)
            AND begins <= delivery.starts_at ORDER BY card.offer DESC, begins DESC LIMIT 1
    ) held ON true
    WHERE NOT is_accrued
)"""  # noqa: S608  our own text
# By largest remainder: the whole parts of three weights of 10^8 together, then one more to the largest rests.
SHARED = """
weighed AS (
    SELECT priced.*, CASE WHEN fixed_micros IS NULL THEN charge
               ELSE div(2 * fixed_micros::numeric * ms + 3600000, 7200000) END::numeric AS total,
           CASE WHEN fixed_micros IS NULL THEN share_bps ELSE 10000 END::numeric AS gross_bps
    FROM priced
), parted AS (
    SELECT *, total * gross_bps * (10000 - reserve_bps) AS p, total * gross_bps * reserve_bps AS r,
           total * (10000 - gross_bps) * 10000 AS f
    FROM weighed
), rested AS (
    SELECT *, mod(p, 100000000) AS pr, mod(r, 100000000) AS rr, mod(f, 100000000) AS fr,
           total - div(p, 100000000) - div(r, 100000000) - div(f, 100000000) AS over
    FROM parted
), shared AS (
    SELECT *, (div(p, 100000000) + ((rr > pr)::int + (fr > pr)::int < over)::int)::bigint AS payout,
           (div(r, 100000000) + ((pr >= rr)::int + (fr > rr)::int < over)::int)::bigint AS reserve
    FROM rested
), changed AS (
    SELECT * FROM shared
    WHERE (ms, charge, payout, reserve) IS DISTINCT FROM (old_ms, old_charge, old_payout, old_reserve)
)"""
WRITTEN = """
written AS (
    INSERT INTO billing_accrual AS accrual (span_id, delivery_id, card_id, supplier_id, offer, currency, month,
        starts_at, through, unit_milliseconds, charge_micros, payout_micros, reserve_micros, fee_micros)
    SELECT span_id, delivery_id, card_id, supplier_id, offer, currency, month, begins, finishes, ms, charge, payout,
           reserve, charge - payout - reserve FROM changed
    ON CONFLICT (span_id, month, card_id) WHERE span_id IS NOT NULL DO UPDATE SET
        starts_at = excluded.starts_at, through = excluded.through, unit_milliseconds = excluded.unit_milliseconds,
        charge_micros = excluded.charge_micros, payout_micros = excluded.payout_micros,
        reserve_micros = excluded.reserve_micros, fee_micros = excluded.fee_micros
), over_spans AS (
    -- Whoever holds a row is not waited for, so that nobody can wait for us in turn: it is found again.
    SELECT id FROM billing_usagespan
    WHERE NOT is_accrued AND ended_at IS NOT NULL AND charged_through >= ended_at
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), closed_spans AS (
    UPDATE billing_usagespan span SET is_accrued = true FROM over_spans WHERE span.id = over_spans.id
), closed_deliveries AS (
    UPDATE billing_delivery SET is_accrued = true WHERE NOT is_accrued
)"""
ACCRUE = f"""
WITH {CARDS}, {SPANS}, {PIECES}, {PRICED}, {SHARED}, {WRITTEN}
SELECT supplier_id, currency, reserve_days, sum(ms - old_ms)::bigint, sum(charge - old_charge)::bigint,
       sum(payout - old_payout)::bigint, sum(reserve - old_reserve)::bigint
FROM changed GROUP BY supplier_id, currency, reserve_days ORDER BY supplier_id, currency, reserve_days
"""  # noqa: S608  our own text
