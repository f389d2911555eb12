"""The audit of the till: everything that can be worked out twice is, by plain SQL that shares no code with the rest.

Each rule is one statement, so it sees one moment of the books even while money
moves. Money is recomputed with PostgreSQL's exact `numeric`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db import connection
from django.utils import timezone

from billing import credit_audit, daily_audit, prepaid_audit, price_audit, recomputing
from billing.invoicing import audit, proof
from billing.models import Account, Charge, Hold, Invoice, Outcome, Transfer, UsageSpan
from billing.outcomes import audit as outcomes_audit
from billing.outcomes import shortfalls
from billing.sla import audit as sla_audit
from billing.suppliers import audit as suppliers_audit
from billing.suppliers import proof as suppliers_proof

# Every rule selects (subject, detail) of what breaks it; %(at)s is the moment of the audit.
RULES: Mapping[str, str] = {
    "balance_is_the_sum_of_transfers": """
        SELECT account.public_id, format('balance %%s, transfers %%s', balance_micros, coalesce(moved.total, 0))
        FROM billing_account account LEFT JOIN (
            SELECT account_id, sum(amount) AS total FROM (
                SELECT target_id AS account_id, amount_micros::numeric AS amount FROM billing_transfer
                UNION ALL SELECT source_id, -amount_micros::numeric FROM billing_transfer
            ) leg GROUP BY account_id
        ) moved ON moved.account_id = account.id
        WHERE account.organization_id IS NOT NULL AND balance_micros <> coalesce(moved.total, 0)
    """,
    "held_is_the_sum_of_open_holds": """
        SELECT account.public_id, format('held %%s, holds %%s', held_micros, coalesce(open.total, 0))
        FROM billing_account account LEFT JOIN (
            SELECT account_id, sum(amount_micros - posted_micros) AS total
            FROM billing_hold WHERE state = 'pending' GROUP BY account_id
        ) open ON open.account_id = account.id
        WHERE held_micros <> coalesce(open.total, 0)
    """,
    "posted_is_the_sum_of_posts": """
        SELECT hold.public_id, format('posted %%s, transfers %%s', posted_micros, coalesce(post.total, 0))
        FROM billing_hold hold LEFT JOIN (
            SELECT hold_id, sum(amount_micros) AS total FROM billing_transfer GROUP BY hold_id
        ) post ON post.hold_id = hold.id
        WHERE posted_micros <> coalesce(post.total, 0)
    """,
    "charge_has_its_transfers": """
        SELECT posting,
               format('%%s charged %%s, transfers %%s', kind, coalesce(charged.total, 0), coalesce(moved.total, 0))
        FROM (
            SELECT posting, part.kind, sum(part.micros) AS total FROM billing_charge CROSS JOIN LATERAL (VALUES
                ('promo', promo_micros), ('cash', cash_micros), ('receivable', owed_micros)
            ) part (kind, micros) GROUP BY posting, part.kind
        ) charged FULL JOIN (
            SELECT regexp_replace(key, ':[^:]*$', '') AS posting, account.kind,
                   sum(CASE WHEN key LIKE 'charge:%%' THEN amount_micros ELSE -amount_micros END) AS total
            FROM billing_transfer JOIN billing_account account ON account.organization_id IS NOT NULL
                AND account.id = CASE WHEN key LIKE 'charge:%%' THEN source_id ELSE target_id END
            WHERE key LIKE 'charge:spn_%%' OR key LIKE 'refund:spn_%%' GROUP BY 1, 2
        ) moved USING (posting, kind)
        WHERE coalesce(charged.total, 0) <> coalesce(moved.total, 0)
    """,
    "transfer_has_its_charge": """
        SELECT transfer.public_id, transfer.key
        FROM billing_transfer transfer
        LEFT JOIN (SELECT DISTINCT posting FROM billing_charge) charge
            ON charge.posting = regexp_replace(transfer.key, ':[^:]*$', '')
        LEFT JOIN billing_adjustmentposting adjustment ON adjustment.public_id = split_part(transfer.key, ':', 2)
        WHERE (transfer.key LIKE 'charge:%%' OR transfer.key LIKE 'refund:%%')
          AND charge.posting IS NULL AND adjustment.id IS NULL
    """,
    "span_is_the_sum_of_its_charges": """
        SELECT span.public_id, format('charged %%s, charges %%s', span.charged_micros, coalesce(taken.total, 0))
        FROM billing_usagespan span LEFT JOIN (
            SELECT span_id, sum(amount_micros) AS total FROM billing_charge GROUP BY span_id
        ) taken ON taken.span_id = span.id
        WHERE span.charged_micros <> coalesce(taken.total, 0)
    """,
    "span_costs_what_it_measured": """
        SELECT public_id, format('charged %%s, use costs %%s', charged_micros, cost) FROM (
            SELECT span.public_id, span.charged_micros, div(
                CASE WHEN span.covered_by = '' THEN 2 ELSE 0 END * price.micros_per_unit_hour::numeric * span.quantity
                  * (1000 * extract(epoch FROM span.charged_through - span.started_at)) + 3600000,
                7200000
            ) AS cost
            FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
            WHERE NOT price.is_floating
        ) rated
        WHERE charged_micros <> cost
    """,
    "span_at_a_floating_price_costs_what_its_points_say": """
        SELECT public_id, format('charged %%s, use costs %%s', charged_micros, cost) FROM (
            SELECT span.public_id, span.charged_micros, div(2 * coalesce(sum(
                span.quantity * point.micros_per_unit_hour::numeric * 1000 * extract(epoch FROM
                    least(span.charged_through, point.ends_at) - greatest(span.started_at, point.starts_at))
            ), 0) + 3600000, 7200000) AS cost
            FROM billing_usagespan span
            JOIN billing_priceversion price ON price.id = span.price_version_id AND price.is_floating
            LEFT JOIN (
                SELECT price_version_id, micros_per_unit_hour, starts_at, coalesce(
                    lead(starts_at) OVER (PARTITION BY price_version_id ORDER BY starts_at), 'infinity'
                ) AS ends_at FROM billing_pricepoint
            ) point ON point.price_version_id = price.id
                AND point.starts_at < span.charged_through AND point.ends_at > span.started_at
            GROUP BY span.id
        ) rated
        WHERE charged_micros <> cost
    """,
    "floating_price_sums_up_its_points": """
        SELECT sku, format('sum %%s at %%s, points say %%s', sum_micro_ms, starts_at, expected) FROM (
            SELECT price.sku, point.starts_at, point.sum_micro_ms, coalesce(sum(lasted) OVER (
                PARTITION BY point.price_version_id ORDER BY point.starts_at ROWS BETWEEN UNBOUNDED PRECEDING
                AND 1 PRECEDING), 0) AS expected
            FROM (
                SELECT *, micros_per_unit_hour * 1000 * extract(epoch FROM
                    lead(starts_at) OVER (PARTITION BY price_version_id ORDER BY starts_at) - starts_at) AS lasted
                FROM billing_pricepoint
            ) point JOIN billing_priceversion price ON price.id = point.price_version_id
        ) summed
        WHERE sum_micro_ms <> expected
    """,
    "floating_price_has_points_from_its_start": """
        SELECT sku, 'no point at its start' FROM billing_priceversion price
        WHERE is_floating AND NOT EXISTS (
            SELECT FROM billing_pricepoint point
            WHERE point.price_version_id = price.id AND point.starts_at = price.effective_from
        )
    """,
    "span_price_was_in_force": """
        SELECT span.public_id, format('starts %%s, price begins %%s', span.started_at, price.effective_from)
        FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
        WHERE price.effective_from > span.started_at
    """,
    "span_price_is_for_its_unit": """
        SELECT span.public_id, format('meter %%s, price per %%s-hour', span.meter, price.unit)
        FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
        WHERE (span.meter, price.unit) NOT IN (('gpu', 'gpu'), ('volume', 'gib'))
    """,
    "spans_do_not_overlap": """
        SELECT public_id, format('starts %%s, the one before ends %%s', started_at, busy_until) FROM (
            SELECT public_id, started_at, max(coalesce(ended_at, 'infinity')) OVER (
                PARTITION BY resource_id, meter ORDER BY started_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS busy_until
            FROM billing_usagespan WHERE ended_at IS NULL OR ended_at > started_at
        ) placed
        WHERE started_at < busy_until
    """,
    "ended_span_is_charged_to_its_end": """
        SELECT public_id, format('ended %%s, charged through %%s', ended_at, charged_through)
        FROM billing_usagespan WHERE charged_through < ended_at
    """,
    "nothing_is_charged_ahead": """
        SELECT public_id, format('charged through %%s', charged_through)
        FROM billing_usagespan WHERE charged_through > greatest(%(at)s, clock_timestamp()) + interval '1 minute'
    """,
    "no_more_is_earned_than_was_paid_ahead": """
        SELECT account.public_id, format('paid ahead %%s, gone %%s', coalesce(came.total, 0), went.total)
        FROM billing_account account
        JOIN (SELECT source_id, sum(amount_micros::numeric) AS total FROM billing_transfer GROUP BY source_id) went
            ON went.source_id = account.id
        LEFT JOIN (SELECT target_id, sum(amount_micros::numeric) AS total FROM billing_transfer GROUP BY target_id) came
            ON came.target_id = account.id
        WHERE account.kind = 'deferred' AND went.total > coalesce(came.total, 0)
    """,
    "runway_burns_what_is_open": """
        SELECT format('organization %%s', organization_id),
               format('burns %%s, open spans %%s', coalesce(burn_micros_per_hour, 0), coalesce(open.total, 0))
        FROM billing_runway FULL JOIN (
            SELECT span.organization_id, sum(span.quantity::numeric * CASE WHEN price.is_floating THEN (
                SELECT micros_per_unit_hour FROM billing_pricepoint
                WHERE price_version_id = price.id ORDER BY starts_at DESC LIMIT 1
            ) ELSE price.micros_per_unit_hour END) AS total
            FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
            WHERE span.ended_at IS NULL AND span.covered_by = '' GROUP BY span.organization_id
        ) open USING (organization_id)
        WHERE coalesce(burn_micros_per_hour, 0) <> coalesce(open.total, 0)
    """,
}
EVERY_RULE: Mapping[str, str] = {
    **RULES,
    **audit.RULES,
    **suppliers_audit.RULES,
    **sla_audit.RULES,
    **price_audit.RULES,
    **credit_audit.RULES,
    **daily_audit.RULES,
    **prepaid_audit.RULES,
    **outcomes_audit.RULES,
    **shortfalls.RULES,
}
COUNTED = (Account, Transfer, Hold, UsageSpan, Charge, Invoice, Outcome)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the books that contradicts something else."""

    rule: str
    subject: str
    detail: str


def check(*, at: datetime) -> list[Finding]:
    """Return every contradiction in the books; an empty list means that they balance."""
    findings = []
    with connection.cursor() as cursor:
        for rule, query in EVERY_RULE.items():
            cursor.execute(query, {"at": at})
            findings += [Finding(rule, subject, detail) for subject, detail in cursor.fetchall()]
    return findings


def recompute(*, at: datetime | None = None) -> list[Finding]:
    """Work out every invoice, what suppliers are owed, their parts of results, and what tiers and commitments make of
    each month a second time; return what differs. Months that were over by `at` (now) must have been closed."""
    found = [Finding("invoice_comes_out_the_same", number, detail) for number, detail in proof.findings()]
    owed = suppliers_proof.findings()
    found += [Finding("accrual_comes_out_the_same", span, detail) for span, detail in owed]
    found += [Finding("sla_comes_out_the_same", month, detail) for month, detail in sla_audit.findings()]
    shared = outcomes_audit.findings()
    found += [Finding("share_of_outcomes_comes_out_the_same", version, detail) for version, detail in shared]
    fell = shortfalls.findings()
    found += [Finding("shortfall_comes_out_the_same", hour, detail) for hour, detail in fell]
    adjusted = recomputing.findings(at=at or timezone.now())
    return found + [Finding("adjustment_comes_out_the_same", name, detail) for name, detail in adjusted]


def counts() -> dict[str, int]:
    """Return how many rows of each kind an audit looks at."""
    return {str(model._meta.verbose_name_plural): model._default_manager.count() for model in COUNTED}
