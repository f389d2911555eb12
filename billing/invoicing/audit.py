"""What must hold of invoices, in SQL that shares no code with what issues them; see `books`."""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "invoice_numbers_have_no_gap": """
        SELECT series.prefix, format('next %%s, given %%s', next_number, coalesce(given.count, 0))
        FROM billing_invoiceseries series LEFT JOIN (
            SELECT series_id, count(*), min(sequence) AS first, max(sequence) AS last
            FROM billing_invoice GROUP BY series_id
        ) given ON given.series_id = series.id
        WHERE next_number <> coalesce(given.count, 0) + 1
           OR given.last <> given.count OR given.first <> 1
    """,
    "invoice_is_the_sum_of_its_lines": """
        SELECT number, format('subtotal %%s, lines %%s', subtotal_micros, coalesce(line.amount, 0))
        FROM billing_invoice invoice LEFT JOIN (
            SELECT invoice_id, sum(amount_micros) AS amount, sum(exact_micros) AS exact
            FROM billing_invoiceline GROUP BY invoice_id
        ) line ON line.invoice_id = invoice.id
        WHERE subtotal_micros <> coalesce(line.amount, 0) OR exact_micros <> coalesce(line.exact, 0)
    """,
    "invoice_line_is_the_sum_of_its_items": """
        SELECT invoice.number || ' ' || line.key,
               format('exact %%s, items %%s', line.exact_micros,
                      coalesce(item.micros, adjusted.amount_micros, prepaid.amount_micros, 0))
        FROM billing_invoiceline line JOIN billing_invoice invoice ON invoice.id = line.invoice_id LEFT JOIN (
            SELECT line_id, sum(amount_micros) AS micros, sum(unit_milliseconds) AS ms
            FROM billing_invoiceitem GROUP BY line_id
        ) item ON item.line_id = line.id
        LEFT JOIN billing_invoiceadjustment adjusted ON adjusted.line_id = line.id
        LEFT JOIN (
            SELECT line_id, sum(amount_micros) AS amount_micros FROM billing_invoiceprepaid done
            JOIN billing_prepaiditem item ON item.id = done.item_id GROUP BY line_id
        ) prepaid ON prepaid.line_id = line.id
        CROSS JOIN LATERAL (SELECT CASE invoice.kind WHEN 'invoice' THEN 1 ELSE -1 END AS sign) way
        WHERE (invoice.kind = 'invoice' OR item.line_id IS NOT NULL OR prepaid.line_id IS NOT NULL) AND (
            way.sign * line.exact_micros <> coalesce(item.micros, 0)
                + coalesce(adjusted.amount_micros, 0) + coalesce(prepaid.amount_micros, 0)
            OR way.sign * line.unit_milliseconds <> coalesce(item.ms, 0)
        )
    """,
    "span_is_invoiced_once": """
        SELECT span.public_id, format('invoiced %%s, items %%s', invoiced_micros, coalesce(item.micros, 0))
        FROM billing_usagespan span LEFT JOIN (
            SELECT span_id, sum(amount_micros) AS micros FROM billing_invoiceitem GROUP BY span_id
        ) item ON item.span_id = span.id
        WHERE invoiced_micros <> coalesce(item.micros, 0)
    """,
    "invoice_moved_its_money": """
        SELECT number, format('tax and rounding %%s, transfers %%s', expected, coalesce(moved, 0)) FROM (
            -- What a person proposed to take back moved with its note; all else went back by itself before.
            SELECT invoice.number, CASE WHEN EXISTS (
                SELECT FROM billing_creditproposal WHERE credit_note_id = invoice.id
            ) THEN -total_micros ELSE CASE invoice.kind WHEN 'invoice' THEN 1 ELSE -1 END
                * (total_micros - (exact_micros - exact_promo_micros)) END AS expected, (
                SELECT sum(CASE WHEN source.organization_id IS NULL THEN -amount_micros ELSE amount_micros END)
                FROM billing_transfer transfer JOIN billing_account source ON source.id = transfer.source_id
                WHERE key IN (
                    'invoice:' || invoice.public_id || ':rounding:cash',
                    'invoice:' || invoice.public_id || ':rounding:receivable',
                    'invoice:' || invoice.public_id || ':tax:cash',
                    'invoice:' || invoice.public_id || ':tax:receivable',
                    'invoice:' || invoice.public_id || ':net:cash',
                    'invoice:' || invoice.public_id || ':net:receivable'
                )
            ) AS moved
            FROM billing_invoice invoice
        ) booked
        WHERE expected <> coalesce(moved, 0)
    """,
    "invoice_is_credited_no_more_than_it_asked": """
        SELECT invoice.number, format('net %%s tax %%s, credited %%s and %%s', invoice.net_micros, invoice.tax_micros,
                                      note.net, note.tax)
        FROM billing_invoice invoice JOIN (
            SELECT credited_id, sum(net_micros) AS net, sum(tax_micros) AS tax
            FROM billing_invoice WHERE credited_id IS NOT NULL GROUP BY credited_id
        ) note ON note.credited_id = invoice.id
        WHERE note.net > invoice.net_micros OR note.tax > invoice.tax_micros
           OR (note.net = invoice.net_micros AND note.tax <> invoice.tax_micros)
    """,
    "invoices_of_an_organization_follow_each_other": """
        SELECT number, format('begins %%s, the one before ends %%s', period_start, ends) FROM (
            SELECT number, period_start, max(period_end) OVER (
                PARTITION BY organization_id ORDER BY period_end ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS ends
            FROM billing_invoice WHERE kind = 'invoice'
        ) placed
        WHERE period_start < ends
    """,
}
