"""What must hold of credit, in SQL that shares no code with what gives it; see `books`."""

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "expired_credit_was_taken_back": """
        SELECT credit.public_id, format('expired %%s, transfers %%s', expired_micros, coalesce(moved.total, 0))
        FROM billing_creditgrant credit LEFT JOIN (
            SELECT split_part(key, ':', 2) AS public_id, sum(amount_micros) AS total
            FROM billing_transfer WHERE key LIKE 'expire:%%' GROUP BY split_part(key, ':', 2)
        ) moved ON moved.public_id = credit.public_id
        WHERE expired_micros <> coalesce(moved.total, 0)
    """,
    "grant_moved_its_credit": """
        SELECT credit.public_id, format('granted %%s, transferred %%s', credit.amount_micros, transfer.amount_micros)
        FROM billing_creditgrant credit JOIN billing_transfer transfer ON transfer.key = credit.cause
        WHERE credit.amount_micros <> transfer.amount_micros OR transfer.target_id <> credit.account_id
    """,
    "credit_limit_was_approved": """
        SELECT account.public_id, format('limit %%s, approved %%s', credit_limit_micros, coalesce(line.limit_micros, 0))
        FROM billing_account account JOIN marketplace_organization owner
            ON owner.id = account.organization_id AND owner.currency = account.currency
        LEFT JOIN LATERAL (
            SELECT limit_micros FROM billing_creditline
            WHERE organization_id = account.organization_id AND state = 'approved'
            ORDER BY decided_at DESC, id DESC LIMIT 1
        ) line ON true
        WHERE account.kind = 'receivable' AND credit_limit_micros <> coalesce(line.limit_micros, 0)
    """,
}
