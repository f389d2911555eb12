"""What paid for a month's use: where a rebate goes back to, and from where one is taken back.

Promotional credit never becomes cash. So a rebate lifts what is owed and returns
cash only as far as the very use was paid by these, and as credit beyond that;
and what takes a rebate back takes the cash first that it had returned.
"""

from collections.abc import Collection
from dataclasses import dataclass

from django.db import connection

from billing import rating
from billing.accounts import CustomerAccounts
from billing.models import Account, Adjustment
from billing.months import next_month

# What was charged for a version in a month otherwise than from credit. What was owed and credit may have paid since
# does not count: any debt that credit settled since the month began may have been this one. A charge that reaches
# over a month's end counts for the month in which it was made.
CHARGED = """
SELECT asked.id, sum(charge.cash_micros), sum(charge.owed_micros), coalesce((
    SELECT sum(moved.amount_micros) FROM billing_transfer moved
    JOIN billing_account source ON source.id = moved.source_id JOIN billing_account target ON target.id = target_id
    WHERE source.organization_id = asked.organization_id AND source.kind = 'promo' AND target.kind = 'receivable'
      AND NOT moved.key::text LIKE 'charge:%%' AND moved.effective_at >= asked.begins
), 0)
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
    AS asked (id, organization_id, version_id, begins, ends)
JOIN billing_usagespan span ON span.organization_id = asked.organization_id
    AND span.price_version_id = asked.version_id AND span.started_at < asked.ends
    AND coalesce(span.ended_at, 'infinity') > asked.begins
JOIN billing_charge charge ON charge.span_id = span.id AND charge.through > asked.begins
    AND charge.through <= asked.ends
GROUP BY asked.id, asked.organization_id, asked.begins
"""
# What earlier postings of an adjustment took (above zero) or gave back.
POSTED = """
SELECT posting.adjustment_id,
       coalesce(sum(sign(posting.amount_micros) * moved.amount_micros) FILTER (WHERE name = 'cash'), 0),
       coalesce(sum(sign(posting.amount_micros) * moved.amount_micros) FILTER (WHERE name = 'receivable'), 0)
FROM billing_adjustmentposting posting CROSS JOIN (VALUES ('cash'), ('receivable')) AS kind (name)
JOIN billing_transfer moved ON moved.key =
    CASE WHEN posting.amount_micros > 0 THEN 'charge:' ELSE 'refund:' END || posting.public_id || ':' || name
WHERE posting.adjustment_id = ANY(%s) GROUP BY 1
"""


@dataclass(slots=True)
class Paid:
    """What cash paid for the use of an adjustment, and what is or was owed for it and credit did not pay since.

    `posted_cash_micros` is the part of it that the adjustment's own postings took, below zero where they gave back.
    """

    others_micros: int = 0
    posted_cash_micros: int = 0


def paid(rows: Collection[Adjustment]) -> dict[int, Paid]:
    """Return what paid for these, by their ids; two queries. The caller has locked their organizations' accounts."""
    found = {row.pk: Paid() for row in rows}
    charged = [row for row in rows if row.price_version_id is not None]
    with connection.cursor() as cursor:
        cursor.execute(
            CHARGED,
            [
                [row.pk for row in charged],
                [row.organization_id for row in charged],
                [row.price_version_id for row in charged],
                [row.month for row in charged],
                [next_month(row.month) for row in charged],
            ],
        )
        debts = {}
        for key, cash, owed, settled in cursor.fetchall():
            found[key].others_micros = int(cash)
            debts[key] = int(owed), int(settled)
        cursor.execute(POSTED, [list(found)])
        posted = {key: (int(cash), int(owed)) for key, cash, owed in cursor.fetchall()}
    for key, each in found.items():
        (owed, settled), (cash, owed_too) = debts.get(key, (0, 0)), posted.get(key, (0, 0))
        each.posted_cash_micros = cash
        each.others_micros += cash + max(0, owed - settled) + owed_too
    return found


def taken(micros: int, *, payer: CustomerAccounts, paid_by: Paid | None) -> list[tuple[Account, int]]:
    """Return what each account pays: cash that rebates of it returned, then as use is paid. None where no credit is."""
    returned = max(0, -paid_by.posted_cash_micros) if paid_by else 0
    back = min(micros, returned, max(0, payer.cash.free_micros))
    shares, missing = rating.take_in_turn(micros - back, [payer.promo.free_micros, payer.cash.free_micros - back])
    return [(payer.promo, shares[0]), (payer.cash, back + shares[1]), (payer.receivable, missing)]


def given_back(micros: int, *, payer: CustomerAccounts, paid_by: Paid | None) -> list[tuple[Account, int]]:
    """Return what goes back to each account: what is owed, then cash, as far as these paid; the rest as credit."""
    others = micros if paid_by is None else min(micros, max(0, paid_by.others_micros))
    (lifted,), cash = rating.take_in_turn(others, [payer.owed_micros])
    return [(payer.receivable, lifted), (payer.cash, cash), (payer.promo, micros - others)]
