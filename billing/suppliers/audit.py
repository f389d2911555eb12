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
    "reserve_is_what_earnings_hold_back": """
        SELECT account.public_id, format('balance %%s, earnings hold %%s', balance_micros, coalesce(held.total, 0))
        FROM billing_account account LEFT JOIN (
            SELECT supplier_id, currency, sum(reserve_micros - taken_micros) AS total
            FROM billing_earning WHERE released_at IS NULL AND reserve_micros > 0 GROUP BY supplier_id, currency
        ) held ON held.supplier_id = account.organization_id AND held.currency = account.currency
        WHERE account.kind = 'reserve' AND balance_micros <> coalesce(held.total, 0)
    """,
    "lent_use_was_paid_to_its_holders": """
        SELECT lent.key, format('noted %%s, paid %%s', lent.amount_micros, coalesce(paid.total, 0))
        FROM billing_lentuse lent LEFT JOIN (
            SELECT regexp_replace(key, '^lend:(.*):[^:]*:[^:]*$', '\\1') AS key, sum(amount_micros) AS total
            FROM billing_transfer WHERE key LIKE 'lend:%%' GROUP BY 1
        ) paid USING (key)
        WHERE lent.amount_micros <> coalesce(paid.total, 0)
    """,
    "statement_numbers_have_no_gap": """
        SELECT prefix, format('next %%s, given %%s', next_number, coalesce(given.count, 0))
        FROM billing_statementseries series LEFT JOIN (
            SELECT series_id, count(*), min(sequence) AS first, max(sequence) AS last
            FROM billing_supplierstatement GROUP BY series_id
        ) given ON given.series_id = series.id
        WHERE next_number <> coalesce(given.count, 0) + 1 OR given.last <> given.count OR given.first <> 1
    """,
    "statement_is_the_sum_of_its_lines": """
        SELECT number, format('payout %%s, lines %%s', statement.payout_micros, coalesce(line.payout, 0))
        FROM billing_supplierstatement statement LEFT JOIN (
            SELECT statement_id, sum(unit_milliseconds) AS ms, sum(charge_micros) AS charge,
                   sum(payout_micros) AS payout, sum(reserve_micros) AS reserve, sum(adjustment_micros) AS adjusted
            FROM billing_statementline GROUP BY statement_id
        ) line ON line.statement_id = statement.id
        WHERE (unit_milliseconds, charge_micros, payout_micros, reserve_micros, adjustment_micros) IS DISTINCT FROM
            (coalesce(line.ms, 0), coalesce(line.charge, 0), coalesce(line.payout, 0), coalesce(line.reserve, 0),
             coalesce(line.adjusted, 0))
    """,
    "statement_line_is_the_sum_of_its_items": """
        SELECT statement.number || ' ' || key, format('payout %%s, items %%s', line.payout_micros, item.payout)
        FROM billing_statementline line JOIN billing_supplierstatement statement ON statement.id = line.statement_id
        LEFT JOIN (
            SELECT line_id, sum(unit_milliseconds) AS ms, sum(charge_micros) AS charge,
                   sum(payout_micros) AS payout, sum(reserve_micros) AS reserve
            FROM billing_statementitem GROUP BY line_id
        ) item ON item.line_id = line.id
        WHERE (line.unit_milliseconds, line.charge_micros, line.payout_micros, line.reserve_micros) IS DISTINCT FROM
            (coalesce(item.ms, 0), coalesce(item.charge, 0), coalesce(item.payout, 0), coalesce(item.reserve, 0))
    """,
    "accrual_is_stated_once": """
        SELECT format('accrual %%s', accrual.id), format('stated %%s, items %%s', stated_payout_micros, item.payout)
        FROM billing_accrual accrual LEFT JOIN (
            SELECT accrual_id, sum(unit_milliseconds) AS ms, sum(charge_micros) AS charge,
                   sum(payout_micros) AS payout, sum(reserve_micros) AS reserve
            FROM billing_statementitem GROUP BY accrual_id
        ) item ON item.accrual_id = accrual.id
        WHERE (stated_milliseconds, stated_charge_micros, stated_payout_micros, stated_reserve_micros)
            IS DISTINCT FROM (coalesce(item.ms, 0), coalesce(item.charge, 0), coalesce(item.payout, 0),
                              coalesce(item.reserve, 0))
    """,
    "statements_of_a_supplier_follow_each_other": """
        SELECT number, format('opens with %%s, the one before closed with %%s', opening_micros, closed) FROM (
            SELECT number, opening_micros, period_start, coalesce(lag(closing_micros) OVER earlier, 0) AS closed,
                   coalesce(lag(period_end) OVER earlier, period_start) AS ended
            FROM billing_supplierstatement WINDOW earlier AS (PARTITION BY supplier_id, currency ORDER BY id)
        ) placed WHERE opening_micros <> closed OR period_start <> ended
    """,
    "supplier_has_what_was_earned_and_not_paid_out": """
        SELECT format('supplier %%s %%s', organization_id, currency), format('balance %%s, comes out as %%s', has, owed)
        FROM (
            SELECT organization_id, currency, sum(balance_micros) AS has, coalesce((
                SELECT sum(payout_micros + reserve_micros) FROM billing_accrual accrual
                WHERE accrual.supplier_id = organization_id AND accrual.currency = account.currency), 0) + coalesce((
                SELECT sum(amount_micros) FROM billing_supplieradjustment adjustment
                WHERE adjustment.supplier_id = organization_id AND adjustment.currency = account.currency
                  AND state = 'approved'), 0) - coalesce((
                SELECT sum(amount_micros) FROM billing_payout payout
                WHERE payout.supplier_id = organization_id AND payout.currency = account.currency
                  AND state IN ('paid', 'reversing')), 0) AS owed
            FROM billing_account account WHERE kind IN ('payable', 'reserve') GROUP BY organization_id, currency
        ) balance WHERE has <> owed
    """,
    "payout_moved_its_money": """
        SELECT payout.public_id, format('%%s micros, %%s; sent %%s, back %%s', payout.amount_micros, state,
                                        coalesce(sent.amount_micros, 0), coalesce(back.amount_micros, 0))
        FROM billing_payout payout
        LEFT JOIN billing_transfer sent ON sent.key = 'payout:' || payout.public_id
        LEFT JOIN billing_transfer back ON back.key = 'payout:' || payout.public_id || ':reversal'
        WHERE CASE WHEN state IN ('paid', 'reversing', 'reversed') THEN payout.amount_micros ELSE 0 END
                <> coalesce(sent.amount_micros, 0)
           OR CASE WHEN state = 'reversed' THEN payout.amount_micros ELSE 0 END <> coalesce(back.amount_micros, 0)
    """,
}
