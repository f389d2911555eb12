"""What must hold of tiers, commitments and what they move, in SQL that shares no code with the rest; see `books`."""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "adjustment_is_the_sum_of_its_postings": """
        SELECT adjustment.public_id, format('amount %%s, postings %%s', amount_micros, coalesce(posting.micros, 0))
        FROM billing_adjustment adjustment LEFT JOIN (
            SELECT adjustment_id, sum(amount_micros) AS micros FROM billing_adjustmentposting GROUP BY adjustment_id
        ) posting ON posting.adjustment_id = adjustment.id
        WHERE amount_micros <> coalesce(posting.micros, 0)
    """,
    "adjustment_posting_has_its_transfers": """
        SELECT posting.public_id, format('posted %%s, transfers %%s', posting.amount_micros, coalesce(moved.total, 0))
        FROM billing_adjustmentposting posting LEFT JOIN (
            SELECT split_part(key, ':', 2) AS public_id,
                   sum(CASE WHEN key LIKE 'charge:%%' THEN amount_micros ELSE -amount_micros END) AS total
            FROM billing_transfer WHERE key LIKE 'charge:apo_%%' OR key LIKE 'refund:apo_%%' GROUP BY 1
        ) moved ON moved.public_id = posting.public_id
        WHERE posting.amount_micros <> coalesce(moved.total, 0)
    """,
    "adjustment_is_of_its_own_parts": """
        SELECT public_id, format('rated %%s, of it committed %%s, minimum %%s', rated_micros, committed_micros,
                                 minimum_micros)
        FROM billing_adjustment
        WHERE rated_micros < committed_micros + minimum_micros OR minimum_micros < 0 OR committed_micros < 0
    """,
    "adjustment_is_invoiced_once": """
        SELECT adjustment.public_id, format('invoiced %%s, lines %%s', invoiced_micros, coalesce(line.micros, 0))
        FROM billing_adjustment adjustment LEFT JOIN (
            SELECT adjustment_id, sum(amount_micros) AS micros FROM billing_invoiceadjustment GROUP BY adjustment_id
        ) line ON line.adjustment_id = adjustment.id
        WHERE invoiced_micros <> coalesce(line.micros, 0)
    """,
    "commitment_is_drawn_by_its_adjustments": """
        SELECT commitment.public_id, format('drawn %%s, left over %%s, adjustments %%s and %%s', drawn_micros,
                                            breakage_micros, coalesce(used.micros, 0), coalesce(used.over, 0))
        FROM billing_commitment commitment LEFT JOIN (
            SELECT commitment_id, sum(committed_micros) AS micros, sum(covered_unit_milliseconds) AS ms,
                   sum(rated_micros) FILTER (WHERE price_version_id IS NULL) AS over
            FROM billing_adjustment WHERE commitment_id IS NOT NULL GROUP BY commitment_id
        ) used ON used.commitment_id = commitment.id
        WHERE drawn_micros <> coalesce(used.micros, 0) OR breakage_micros <> coalesce(used.over, 0)
           OR drawn_unit_milliseconds <> coalesce(used.ms, 0)
    """,
    "commitment_that_is_over_was_paid_whole": """
        SELECT public_id, format('promised %%s, used and left over %%s', committed_micros,
                                 drawn_micros + breakage_micros)
        FROM billing_commitment
        WHERE state = 'agreed' AND ends_at < %(at)s - interval '1 day'
          AND committed_micros <> drawn_micros + breakage_micros
    """,
    "price_list_published_what_it_says": """
        SELECT price.public_id, format('list %%s %%s says otherwise', list.currency, list.number)
        FROM billing_priceversion price JOIN billing_pricelist list ON list.id = price.price_list_id
        LEFT JOIN billing_pricelistitem item ON item.price_list_id = list.id AND item.sku = price.sku
        WHERE price.withdrawn_at IS NULL
          AND (price.currency, price.effective_from, price.model, price.micros_per_unit_hour, price.tiers,
               price.minimum_micros, price.unit)
            IS DISTINCT FROM (list.currency, list.effective_from, item.model, item.micros_per_unit_hour, item.tiers,
               item.minimum_micros, item.unit)
    """,
    "price_that_was_withdrawn_never_held": """
        SELECT price.public_id, format('used by %%s', span.public_id)
        FROM billing_priceversion price JOIN billing_usagespan span ON span.price_version_id = price.id
        WHERE price.withdrawn_at IS NOT NULL
    """,
    "price_list_holds_from_its_moment_on": """
        SELECT format('list %%s %%s', list.currency, list.number),
               format('%%s: it says %%s micros from %%s on, and %%s holds', item.sku, item.micros_per_unit_hour,
                      list.effective_from, coalesce(price.public_id, 'nothing'))
        FROM billing_pricelist list JOIN billing_pricelistitem item ON item.price_list_id = list.id
        LEFT JOIN LATERAL (
            SELECT * FROM billing_priceversion version
            WHERE version.sku = item.sku AND version.currency = list.currency
              AND version.effective_from <= list.effective_from AND version.withdrawn_at IS NULL
            ORDER BY version.effective_from DESC LIMIT 1
        ) price ON true
        WHERE list.state = 'scheduled'
          AND (price.model, price.micros_per_unit_hour, price.tiers, price.minimum_micros, price.unit)
              IS DISTINCT FROM
              (item.model, item.micros_per_unit_hour, item.tiers, item.minimum_micros, item.unit)
    """,
}
