"""What must hold of money for results, in SQL that shares no code with what moves it; see `books`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor

from billing.models import Outcome, OutcomeShare

RULES: Mapping[str, str] = {
    "outcome_moved_its_money": """
        SELECT public_id, format('%%s %%s micros, of it credit %%s; moved %%s and %%s', outcome.kind, amount_micros,
                                 promo_micros, coalesce(moved.amount, 0), coalesce(moved.promo, 0))
        FROM billing_outcome outcome LEFT JOIN (
            SELECT split_part(key, ':', 2) AS outcome, sum(amount_micros) AS amount,
                   sum(amount_micros) FILTER (WHERE key LIKE '%%:promo') AS promo
            FROM billing_transfer WHERE key LIKE 'outcome:%%' GROUP BY 1
        ) moved ON moved.outcome = outcome.public_id
        WHERE (amount_micros, promo_micros) IS DISTINCT FROM (coalesce(moved.amount, 0), coalesce(moved.promo, 0))
    """,
    "outcome_moved_money_the_right_way": """
        SELECT transfer.public_id, transfer.key
        FROM billing_transfer transfer
        JOIN billing_account source ON source.id = transfer.source_id
        JOIN billing_account target ON target.id = transfer.target_id
        LEFT JOIN billing_outcome outcome ON outcome.public_id = split_part(transfer.key, ':', 2)
        WHERE transfer.key LIKE 'outcome:%%' AND (
            outcome.id IS NULL
            OR CASE outcome.kind WHEN 'reversed' THEN source.kind ELSE target.kind END <> 'revenue'
            OR CASE outcome.kind WHEN 'reversed' THEN target.organization_id ELSE source.organization_id END
                IS DISTINCT FROM outcome.organization_id
        )
    """,
    "outcome_is_an_item": """
        SELECT public_id, format('%%s %%s micros, item %%s', outcome.kind, outcome.amount_micros, item.amount_micros)
        FROM billing_outcome outcome LEFT JOIN billing_prepaiditem item ON item.outcome_id = outcome.id
        CROSS JOIN LATERAL (SELECT CASE outcome.kind WHEN 'reversed' THEN -1 ELSE 1 END AS way) sign
        WHERE (coalesce(item.amount_micros, 0), coalesce(item.promo_micros, 0))
                <> (way * outcome.amount_micros, way * outcome.promo_micros)
           OR item.organization_id <> outcome.organization_id OR item.kind <> outcome.kind
    """,
    "outcome_costs_what_its_arithmetic_says": """
        SELECT public_id, format('asked %%s, %%s x %%s x %%s bps per %%s', asked_micros, quantity, micros_per_unit, bps,
                                 per)
        FROM billing_outcome
        WHERE kind <> 'reversed' AND asked_micros <> div(
            2 * quantity::numeric * micros_per_unit * bps + per::numeric * 10000, 2 * per::numeric * 10000)
    """,
    "outcome_is_given_back_no_more_than_it_cost": """
        SELECT paid.public_id, format('cost %%s, of it credit %%s; given back %%s and %%s', paid.amount_micros,
                                      paid.promo_micros, back.amount, back.promo)
        FROM billing_outcome paid JOIN (
            SELECT of_id, sum(amount_micros) AS amount, sum(promo_micros) AS promo
            FROM billing_outcome WHERE of_id IS NOT NULL GROUP BY of_id
        ) back ON back.of_id = paid.id
        WHERE back.amount > paid.amount_micros OR back.promo > paid.promo_micros
    """,
    "subject_is_paid_once": """
        SELECT min(public_id), format('%%s of %%s is paid %%s times', subject, version, count(*))
        FROM billing_outcome outcome
        WHERE kind = 'outcome' AND amount_micros > coalesce((
            SELECT sum(amount_micros) FROM billing_outcome back WHERE back.of_id = outcome.id), 0)
        GROUP BY organization_id, version, subject HAVING count(*) > 1
    """,
    "escrow_is_what_it_gave_out_and_has_left": """
        SELECT resource_id, format('%%s set aside; posted %%s (%%s), voided %%s (%%s), holds keep %%s', amount_micros,
                                   posted_micros, posted, voided_micros, voided, kept)
        FROM (
            SELECT escrow.*, coalesce((SELECT sum(amount_micros) FROM billing_outcome outcome
                       WHERE outcome.escrow_id = escrow.id), 0) AS posted,
                   coalesce((SELECT sum(amount_micros) FROM billing_escrowrelease back
                       WHERE back.escrow_id = escrow.id), 0) AS voided,
                   coalesce((SELECT sum(hold.amount_micros - hold.posted_micros) FROM billing_hold hold
                       WHERE hold.resource_id = escrow.resource_id AND hold.state = 'pending'), 0) AS kept
            FROM billing_escrow escrow
        ) counted
        WHERE (posted_micros, voided_micros) <> (posted, voided) OR amount_micros <> posted + voided + kept
    """,
    "hold_of_an_escrow_has_one": """
        SELECT hold.public_id, hold.key FROM billing_hold hold
        LEFT JOIN billing_escrow escrow ON escrow.resource_id = hold.resource_id AND escrow.state = 'open'
        WHERE hold.purpose = 'escrow' AND hold.state = 'pending' AND escrow.id IS NULL
    """,
    "outcomes_of_a_period_are_counted": """
        SELECT concat_ws(' ', version, organization_id, starts_at),
               format('counted %%s, outcomes %%s', coalesce(period.micros, 0), coalesce(summed.micros, 0))
        FROM billing_outcomeperiod period FULL JOIN (
            SELECT version, organization_id, period AS starts_at,
                   sum(CASE kind WHEN 'reversed' THEN -amount_micros ELSE amount_micros END) AS micros
            FROM billing_outcome WHERE period IS NOT NULL GROUP BY 1, 2, 3
        ) summed USING (version, organization_id, starts_at)
        WHERE coalesce(period.micros, 0) <> coalesce(summed.micros, 0)
    """,
    "suppliers_part_of_outcomes_was_moved": """
        SELECT share.version, format('supplier %%s: share %%s, adjustment %%s', share.supplier_id, share.amount_micros,
                                     adjustment.amount_micros)
        FROM billing_outcomeshare share
        LEFT JOIN billing_supplieradjustment adjustment ON adjustment.id = share.adjustment_id
        WHERE share.amount_micros <> coalesce(adjustment.amount_micros, 0)
           OR adjustment.supplier_id <> share.supplier_id OR adjustment.currency <> share.currency
           OR adjustment.kind <> 'outcome'
    """,
    "totals_of_a_version_are_what_was_shared_out_and_booked": """
        SELECT version, format('brought %%s, outcomes %%s; cost %%s, booked %%s', coalesce(total.brought_micros, 0),
                               coalesce(outcomes.brought, 0), coalesce(total.cost_micros, 0), coalesce(booked.cost, 0))
        FROM billing_outcometotal total FULL JOIN (
            SELECT version, currency,
                   sum(CASE kind WHEN 'reversed' THEN -amount_micros ELSE amount_micros END) AS brought
            FROM billing_outcome WHERE sharing_id IS NOT NULL GROUP BY 1, 2
        ) outcomes USING (version, currency) FULL JOIN (
            SELECT version, currency, sum(amount_micros) AS cost
            FROM billing_outcomecost WHERE version <> '' GROUP BY 1, 2
        ) booked USING (version, currency)
        WHERE (coalesce(total.brought_micros, 0), coalesce(total.cost_micros, 0))
            <> (coalesce(outcomes.brought, 0), coalesce(booked.cost, 0))
    """,
    "what_results_took_was_booked": """
        SELECT span.public_id, format('cost %%s, moved %%s', cost.amount_micros, coalesce(transfer.amount_micros, 0))
        FROM billing_outcomecost cost JOIN billing_usagespan span ON span.id = cost.span_id
        LEFT JOIN billing_transfer transfer ON transfer.key = 'earn:cost:' || span.public_id
        WHERE cost.amount_micros <> coalesce(transfer.amount_micros, 0) OR span.covered_by <> cost.resource_id
           OR span.ended_at IS NULL
    """,
}
Whose = tuple[int, str, str]


def findings() -> Iterator[tuple[str, str]]:
    """Work out suppliers' parts of all outcomes that were shared out anew; tell what comes out otherwise."""
    expected: dict[Whose, int] = defaultdict(int)
    paid = Outcome.objects.filter(of=None, sharing__isnull=False).prefetch_related("reversals")
    for one in paid.order_by("pk").iterator(chunk_size=500):
        back = sum(each.amount_micros for each in one.reversals.all() if each.sharing_id)
        for supplier, micros in _parts(one.amount_micros - back, one.shares):
            expected[supplier, one.version, one.currency] += micros
    written: dict[Whose, int] = defaultdict(int)
    for share in OutcomeShare.objects.order_by("pk").iterator(chunk_size=500):
        written[share.supplier_id, share.version, share.currency] += share.amount_micros
    for whose in sorted(expected.keys() | written.keys()):
        if expected[whose] != written[whose]:
            yield whose[1], f"supplier {whose[0]} has {written[whose]}, comes out as {expected[whose]}"


def _parts(micros: int, shares: list[tuple[int | None, int]]) -> list[tuple[int, int]]:
    """Each supplier's part: its exact one or less than a micro beside it, what is over to the largest rest."""
    exact = [Fraction(micros * bps, 10_000) for _, bps in shares]
    whole = [floor(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda n: whole[n] - exact[n])
    for n in order[: micros - sum(whole)]:
        whole[n] += 1
    return [(owner, part) for (owner, _), part in zip(shares, whole, strict=True) if owner is not None]
