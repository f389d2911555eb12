"""What must hold of what suppliers are owed, in SQL that shares no code with what works it out; see `books`."""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "earnings_are_what_accrued": """
        SELECT format('supplier %%s %%s', supplier_id, currency),
               format('earned %%s and %%s held back of %%s, accrued %%s and %%s of %%s', earned.payout, earned.reserve,
                      earned.charge, accrued.payout, accrued.reserve, accrued.charge)
        FROM (
            SELECT supplier_id, currency, sum(charge_micros) AS charge, sum(payout_micros) AS payout,
                   sum(reserve_micros) AS reserve, sum(unit_milliseconds) AS ms
            FROM billing_earning GROUP BY supplier_id, currency
        ) earned FULL JOIN (
            SELECT supplier_id, currency, sum(charge_micros) AS charge, sum(payout_micros) AS payout,
                   sum(reserve_micros) AS reserve, sum(unit_milliseconds) AS ms
            FROM billing_accrual GROUP BY supplier_id, currency
        ) accrued USING (supplier_id, currency)
        WHERE (earned.charge, earned.payout, earned.reserve, earned.ms)
            IS DISTINCT FROM (accrued.charge, accrued.payout, accrued.reserve, accrued.ms)
    """,
    "earning_moved_its_money": """
        SELECT public_id, format('payout and reserve %%s, fee %%s; moved %%s and %%s', payout_micros + reserve_micros,
                                 fee_micros, coalesce(moved.supplier, 0), coalesce(moved.fee, 0))
        FROM billing_earning earning LEFT JOIN (
            SELECT split_part(key, ':', 2) AS earning,
                   sum(amount * (NOT is_fee)::int) AS supplier, sum(amount * is_fee::int) AS fee
            FROM (
                SELECT transfer.key, transfer.key LIKE '%%:fees' AS is_fee,
                       CASE WHEN source.kind = 'revenue' THEN amount_micros ELSE -amount_micros END AS amount
                FROM billing_transfer transfer JOIN billing_account source ON source.id = transfer.source_id
                WHERE transfer.key LIKE 'accrue:%%'
            ) part GROUP BY earning
        ) moved ON moved.earning = earning.public_id
        WHERE (payout_micros + reserve_micros, fee_micros)
            IS DISTINCT FROM (coalesce(moved.supplier, 0), coalesce(moved.fee, 0))
    """,
    "accrual_is_for_no_more_than_was_charged": """
        SELECT span.public_id, format('charged %%s, accrued %%s', charged_micros, accrued.charge)
        FROM billing_usagespan span JOIN (
            SELECT span_id, sum(charge_micros) AS charge FROM billing_accrual GROUP BY span_id
        ) accrued ON accrued.span_id = span.id
        WHERE span.is_accrued AND accrued.charge > charged_micros
    """,
    "delivery_is_what_was_earned": """
        SELECT delivery.key, format('delivered %%s, earned %%s', delivery.amount_micros, transfer.amount_micros)
        FROM billing_delivery delivery LEFT JOIN billing_transfer transfer ON transfer.key = 'earn:' || delivery.key
        WHERE transfer.amount_micros IS DISTINCT FROM delivery.amount_micros
    """,
    "delivery_accrues_once": """
        SELECT delivery.key, format('earned %%s, accrued %%s', amount_micros, sum(charge_micros))
        FROM billing_delivery delivery JOIN billing_accrual accrual ON accrual.delivery_id = delivery.id
        GROUP BY delivery.id HAVING sum(charge_micros) <> amount_micros
    """,
    "reserve_is_released_once": """
        SELECT earning.public_id, format('released %%s of %%s, moved %%s', released_micros, reserve_micros,
                                 coalesce(transfer.amount_micros, 0))
        FROM billing_earning earning LEFT JOIN billing_transfer transfer
            ON transfer.key = 'release:' || earning.public_id
        WHERE released_micros <> coalesce(transfer.amount_micros, 0) OR released_micros > greatest(reserve_micros, 0)
    """,
}
