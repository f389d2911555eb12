"""What must hold of what was paid ahead and its invoices, in SQL that shares no code with the rest; see `books`."""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "what_was_paid_ahead_is_an_item": """
        SELECT key, format('item %%s, of it credit %%s; moved %%s, of it credit %%s',
                           item.amount_micros, item.promo_micros, moved.amount, moved.promo)
        FROM (SELECT key, amount_micros, promo_micros FROM billing_prepaiditem
              WHERE kind <> 'resold' AND outcome_id IS NULL) item
        FULL JOIN (
            SELECT key, sum(amount) AS amount, coalesce(sum(amount) FILTER (WHERE kind = 'promo'), 0) AS promo
            FROM (
                SELECT split_part(key, ':', 1) || ':' || split_part(key, ':', 2) AS key, payer.kind,
                       amount_micros AS amount
                FROM billing_transfer transfer JOIN billing_account payer ON payer.id = transfer.source_id
                WHERE key LIKE 'prepay:%%' OR key LIKE 'trade:%%'
                UNION ALL
                SELECT regexp_replace(key, ':[^:]*:[^:]*$', ''), payee.kind, -amount_micros
                FROM billing_transfer transfer JOIN billing_account payee ON payee.id = transfer.target_id
                WHERE key LIKE 'unpay:%%'
            ) leg GROUP BY key
        ) moved USING (key)
        WHERE (item.amount_micros, item.promo_micros) IS DISTINCT FROM (moved.amount, moved.promo)
    """,
    "what_is_given_back_for_resold_hours_was_paid": """
        SELECT item.key, format('item %%s, paid to the seller %%s', item.amount_micros, coalesce(moved.total, 0))
        FROM billing_prepaiditem item LEFT JOIN (
            SELECT regexp_replace(key, ':[^:]*$', '') AS key, sum(amount_micros) AS total
            FROM billing_transfer WHERE key LIKE 'sale:%%' GROUP BY 1
        ) moved ON moved.key = item.key
        WHERE item.kind = 'resold' AND -item.amount_micros > coalesce(moved.total, 0)
    """,
    "prepaid_line_is_its_item": """
        SELECT line.key,
               format('items %%s, line %%s of %%s', sum(item.amount_micros), line.exact_micros, invoice.number)
        FROM billing_invoiceprepaid done
        JOIN billing_prepaiditem item ON item.id = done.item_id
        JOIN billing_invoiceline line ON line.id = done.line_id
        JOIN billing_invoice invoice ON invoice.id = line.invoice_id
        GROUP BY line.id, invoice.id
        HAVING line.exact_micros <> sum(item.amount_micros) * CASE invoice.kind WHEN 'invoice' THEN 1 ELSE -1 END
            OR bool_or(invoice.organization_id <> item.organization_id OR invoice.currency <> item.currency
                OR invoice.kind = 'invoice' AND item.at >= invoice.period_end)
    """,
}
