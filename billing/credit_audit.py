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
    "invoice_is_paid_by_name_from_what_came": """
        SELECT payment.transfer_key, format('named %%s, transferred %%s', payment.amount_micros,
                                            coalesce(transfer.amount_micros, 0))
        FROM billing_invoicepayment payment
        LEFT JOIN billing_transfer transfer ON transfer.key = payment.transfer_key
        WHERE abs(payment.amount_micros) > coalesce(transfer.amount_micros, 0)
    """,
    "written_off_is_what_was_moved": """
        SELECT invoice.number, format('written off %%s, moved %%s', written_off_micros, coalesce(moved.total, 0))
        FROM billing_collection collection JOIN billing_invoice invoice ON invoice.id = collection.invoice_id
        LEFT JOIN (
            SELECT key, sum(amount_micros) AS total FROM billing_transfer WHERE key LIKE 'write-off:%%' GROUP BY key
        ) moved ON moved.key = 'write-off:' || invoice.public_id
        WHERE written_off_micros <> coalesce(moved.total, 0)
    """,
    "recovered_is_what_came_of_what_was_written_off": """
        SELECT organization.public_id, format('recovered %%s, came %%s', total, coalesce(moved.micros, 0))
        FROM (
            SELECT organization_id, sum(recovered_micros) AS total FROM billing_collection GROUP BY organization_id
        ) kept JOIN marketplace_organization organization ON organization.id = organization_id
        LEFT JOIN (
            SELECT organization_id, sum(micros) AS micros FROM (
                SELECT payer.organization_id, amount_micros AS micros
                FROM billing_transfer JOIN billing_account payer ON payer.id = source_id WHERE key LIKE 'recover:%%'
                UNION ALL
                SELECT payment.organization_id, -transfer.amount_micros
                FROM billing_transfer transfer
                JOIN billing_dispute dispute ON dispute.public_id = split_part(transfer.key, ':', 2)
                JOIN billing_payment payment ON payment.id = dispute.payment_id
                WHERE transfer.key LIKE 'dispute:%%:bad_debt'
            ) each GROUP BY organization_id
        ) moved ON moved.organization_id = kept.organization_id
        WHERE total <> coalesce(moved.micros, 0)
    """,
    "sanction_is_what_unpaid_invoices_brought": """
        SELECT account.public_id, format('sanction %%s, events %%s', sanction, coalesce(most.action, ''))
        FROM billing_account account LEFT JOIN LATERAL (
            SELECT action FROM (
            SELECT step.action, collection.organization_id FROM billing_dunningevent event
            JOIN billing_dunningstep step ON step.id = event.step_id
            JOIN billing_collection collection ON collection.invoice_id = event.invoice_id
            WHERE collection.state IN ('past_due', 'uncollectible')
              AND step.action IN ('restrict', 'stop_spot', 'stop_on_demand')
            UNION ALL
            SELECT sanction, organization_id FROM billing_takendebt WHERE look_at IS NOT NULL AND sanction <> ''
            ) brought WHERE brought.organization_id = account.organization_id
            ORDER BY array_position(ARRAY['stop_on_demand', 'stop_spot', 'restrict'], action::text) LIMIT 1
        ) most ON true
        WHERE account.kind = 'receivable' AND sanction <> coalesce(most.action, '')
          AND account.currency = (SELECT currency FROM marketplace_organization WHERE id = account.organization_id)
    """,
    "taken_debt_is_of_what_a_bank_took": """
        SELECT dispute.public_id, format('owed for nothing %%s, transferred %%s', debt.due_micros,
                                         coalesce(transfer.amount_micros, 0))
        FROM billing_takendebt debt JOIN billing_dispute dispute ON dispute.id = debt.dispute_id
        LEFT JOIN billing_transfer transfer ON transfer.key = format('dispute:%%s:receivable', dispute.public_id)
        WHERE debt.due_micros > coalesce(transfer.amount_micros, 0)
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
