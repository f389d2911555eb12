"""Taking money for use, in sets: what is due of many spans of many organizations is one batch of a few statements."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Sum

from billing import accounts, floating, invoice_payments, ledger, rating, receivables
from billing.batches import in_parts
from billing.models import Account, Charge, Transfer, UsageCorrection, UsageSpan

# What is not charged yet is known to the runway, so the period only decides how fresh balances look.
CHARGE_EVERY = timedelta(seconds=60)
# So many spans at once: organizations wait for a batch in which they are, and this is a fraction of a second.
BATCH = 5_000
SWEEP = 2_000

log = logging.getLogger(__name__)

# Spans in the order in which they are charged, and who pays: who waits longest first, and of many all at once.
DUE = """
SELECT organization_id, id FROM billing_usagespan
WHERE NOT is_charged AND (ended_at IS NOT NULL OR charged_through <= %(before)s)
  AND organization_id %% %(parts)s = %(part)s
ORDER BY charged_through, organization_id, id LIMIT %(limit)s
"""

# The charges of a set of spans. `due` is what each costs from its start less what was charged, in the order of paying;
# `own` what their resources' holds pay of it, hold after hold: the overlap of two lines of sums; `taken` what of the
# rest comes from credit, then cash, and what is owed. The sums of an organization are returned, to be moved.
CHARGE = """
WITH due AS MATERIALIZED (
    SELECT id, organization_id, since, through, ended_at, whole_micros, whole_micros - charged_micros AS micros,
           currency, public_id, resource_id, resource_name,
           'charge:' || public_id || ':' || to_char(through AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS.MS')
               || %(key_end)s::text AS key
    FROM (
        SELECT span.id, organization_id, charged_through AS since, meter.through, meter.ended_at, charged_micros,
               price.currency, span.public_id, resource_id, resource_name,
               div(2 * span.quantity * CASE
                   WHEN price.is_floating THEN coalesce(last.upto, 0) - coalesce(first.upto, 0)
                   WHEN span.covered_by <> '' THEN 0
                   ELSE price.micros_per_unit_hour * round(1000 * extract(epoch FROM meter.through - span.started_at))
               END + 3600000, 7200000)::bigint AS whole_micros
        FROM billing_usagespan span
        JOIN billing_priceversion price ON price.id = span.price_version_id
        CROSS JOIN LATERAL (
            SELECT ended_at, least(%(through)s::timestamptz, ended_at) AS through FROM (
                SELECT coalesce(%(corrected)s::timestamptz, span.ended_at, %(ended_at)s::timestamptz) AS ended_at
            ) closed
        ) meter
        LEFT JOIN LATERAL (
            SELECT sum_micro_ms
                + micros_per_unit_hour * round(1000 * extract(epoch FROM span.started_at - starts_at)) AS upto
            FROM billing_pricepoint
            WHERE price.is_floating AND price_version_id = price.id AND starts_at <= span.started_at
            ORDER BY starts_at DESC LIMIT 1
        ) first ON true
        LEFT JOIN LATERAL (
            SELECT sum_micro_ms
                + micros_per_unit_hour * round(1000 * extract(epoch FROM meter.through - starts_at)) AS upto
            FROM billing_pricepoint
            WHERE price.is_floating AND price_version_id = price.id AND starts_at <= meter.through
            ORDER BY starts_at DESC LIMIT 1
        ) last ON true
        WHERE span.id = ANY(%(spans)s::bigint[])
          AND (meter.through > span.charged_through OR meter.through = meter.ended_at)
        OFFSET 0  -- so that each is rated once, and not once for each column that says what it costs
    ) rated
), advanced AS (
    UPDATE billing_usagespan span
    SET ended_at = due.ended_at, charged_micros = due.whole_micros, charged_through = due.through
    FROM due WHERE span.id = due.id
), touched AS (
    INSERT INTO billing_revenuetosum (since, through)
    SELECT min(least(since, through)), max(greatest(since, through)) FROM due HAVING count(*) > 0
), payer AS MATERIALIZED (
    SELECT organization_id, currency, max(id) FILTER (WHERE kind = 'promo') AS promo_id,
           max(id) FILTER (WHERE kind = 'cash') AS cash_id, max(id) FILTER (WHERE kind = 'receivable') AS receivable_id,
           greatest(0, max(balance_micros - held_micros) FILTER (WHERE kind = 'promo')) AS promo_free,
           greatest(0, max(balance_micros - held_micros) FILTER (WHERE kind = 'cash')) AS cash_free
    FROM billing_account
    WHERE kind IN ('promo', 'cash', 'receivable')
      AND organization_id = ANY(ARRAY(SELECT DISTINCT organization_id FROM due))
    GROUP BY organization_id, currency
), pending AS MATERIALIZED (
    SELECT hold.id, hold.public_id, hold.account_id, hold.resource_id, kind, organization_id, currency,
           amount_micros - posted_micros AS micros,
           sum(amount_micros - posted_micros) OVER (
               PARTITION BY organization_id, currency, hold.resource_id ORDER BY hold.id
           ) AS upto
    FROM billing_hold hold JOIN billing_account account ON account.id = hold.account_id
    WHERE state = 'pending' AND kind IN ('promo', 'cash', 'receivable')
      AND hold.resource_id = ANY(ARRAY(SELECT resource_id FROM due WHERE micros > 0))
), own AS MATERIALIZED (
    SELECT need.id, organization_id, currency, need.resource_name, need.through,
           hold.id AS hold_id, hold.public_id, hold.account_id, hold.kind,
           least(need.upto, hold.upto) - greatest(need.upto - need.micros, hold.upto - hold.micros) AS micros
    FROM (
        SELECT *, sum(micros) OVER (PARTITION BY organization_id, currency, resource_id ORDER BY since, id) AS upto
        FROM due WHERE micros > 0 AND resource_id IN (SELECT resource_id FROM pending)
    ) need
    JOIN pending hold USING (organization_id, currency, resource_id)
    WHERE need.upto > hold.upto - hold.micros AND hold.upto > need.upto - need.micros
), taken AS MATERIALIZED (
    SELECT promo_id, turn, id, since, through, micros, key, posting, resource_name, held_promo, held_cash, held_owed,
           least(upto, promo_free) - least(upto - rest, promo_free) AS promo_micros,
           greatest(0, least(upto - promo_free, cash_free))
               - greatest(0, least(upto - rest - promo_free, cash_free)) AS cash_micros,
           greatest(0, upto - promo_free - cash_free)
               - greatest(0, upto - rest - promo_free - cash_free) AS owed_micros
    FROM (
        SELECT *, row_number() OVER in_turn AS turn, first_value(key) OVER in_turn AS posting,
               (sum(rest) OVER in_turn)::bigint AS upto
        FROM (
            SELECT due.*, coalesce(promo, 0) AS held_promo, coalesce(cash, 0) AS held_cash,
                   coalesce(owed, 0) AS held_owed,
                   due.micros - coalesce(promo, 0) - coalesce(cash, 0) - coalesce(owed, 0) AS rest
            FROM due LEFT JOIN (
                SELECT id, (sum(micros) FILTER (WHERE kind = 'promo'))::bigint AS promo,
                       (sum(micros) FILTER (WHERE kind = 'cash'))::bigint AS cash,
                       (sum(micros) FILTER (WHERE kind = 'receivable'))::bigint AS owed
                FROM own GROUP BY id
            ) held USING (id)
            WHERE due.micros > 0
            OFFSET 0  -- joined before payers, whose number PostgreSQL guesses too low, so by hash
        ) without_holds JOIN payer USING (organization_id, currency)
        WINDOW in_turn AS (PARTITION BY promo_id ORDER BY since, id ROWS UNBOUNDED PRECEDING)
    ) summed
), charged AS (
    INSERT INTO billing_charge
        (key, posting, span_id, through, amount_micros, promo_micros, cash_micros, owed_micros, correction_id)
    SELECT key, posting, id, through, micros, held_promo + promo_micros, held_cash + cash_micros,
           held_owed + owed_micros, %(correction)s::bigint
    FROM taken ORDER BY since, id
), posted AS (
    SELECT payer.*, posting, charges, through, promo, cash, owed,
           CASE WHEN charges = 1 THEN 'Use of ' || first_name
                ELSE format('Use of %%s and %%s more', first_name, charges - 1) END AS reason
    FROM (
        SELECT promo_id, count(*) AS charges, max(through) AS through, max(posting) FILTER (WHERE turn = 1) AS posting,
               max(resource_name) FILTER (WHERE turn = 1) AS first_name,
               sum(promo_micros) AS promo, sum(cash_micros) AS cash, sum(owed_micros) AS owed
        FROM taken GROUP BY promo_id
    ) summed JOIN payer USING (promo_id)
)
SELECT organization_id, currency, posting, account_id, hold_id, part, micros::bigint, charges, reason, through, span_id
FROM (
    SELECT 0 AS turn, organization_id, currency, posting, NULL::bigint AS account_id, NULL::bigint AS hold_id,
           NULL AS part, 0::numeric AS micros, charges, NULL AS reason, through, NULL::bigint AS span_id
    FROM posted
    UNION ALL
    SELECT 1, organization_id, currency, NULL, account_id, hold_id, public_id, sum(micros), 0,
           'Use of ' || max(resource_name), max(through), NULL
    FROM own GROUP BY organization_id, currency, account_id, hold_id, public_id
    UNION ALL
    SELECT leg.turn, organization_id, currency, NULL, leg.account_id, NULL, leg.part, leg.micros, 0, reason, through,
           NULL
    FROM posted CROSS JOIN LATERAL (VALUES
        (2, 'promo', promo_id, promo), (3, 'cash', cash_id, cash), (4, 'receivable', receivable_id, owed)
    ) leg (turn, part, account_id, micros)
    WHERE leg.micros > 0
    UNION ALL
    SELECT 5, organization_id, currency, NULL, NULL, NULL, NULL, micros, 1, NULL, through, id
    FROM due WHERE micros < 0
) leg ORDER BY organization_id, currency, turn, hold_id
"""


class _Leg(NamedTuple):
    """What an organization pays from one account or hold. Its first says under which key, and counts its charges.

    Micros below zero are what a span's charges were too high by.
    """

    organization_id: int
    currency: str
    posting: str | None
    account_id: int
    hold_id: int | None
    part: str
    micros: int
    charges: int
    reason: str
    through: datetime
    span_id: int


def charge_due(*, at: datetime, limit: int = SWEEP, part: int = 0, parts: int = 1) -> int:
    """Charge what has run for a while or has ended, longest waiting first; return how many charges were made.

    The limit bounds the ledger's growth: with more spans than one sweep takes,
    each is charged a little less often. A batch that cannot be charged is tried
    in halves, so that in the end only the span that is to blame is left out.

    Of several parts each charges organizations of its own and takes its share of
    the limit, so that they run side by side and none waits for another.
    """
    share = -(-limit // parts)
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"before": at - CHARGE_EVERY, "limit": share, "part": part, "parts": parts})
        due = sorted(cursor.fetchall())
    batches = (due[begin : begin + BATCH] for begin in range(0, len(due), BATCH))
    return sum(sum(in_parts(batch, lambda part: _charge_batch(part, at), leave=_leave)) for batch in batches)


def charge_span(*, span: UsageSpan, through: datetime) -> int:
    """Take what the span cost until `through` and was not taken yet; return how many charges that made.

    Repeated and concurrent calls charge once: the organization's accounts are
    locked before the span is read, and the keys are made of span and moment.
    """
    return _charge_batch([(span.organization_id, span.pk)], through)


def charge_locked(spans: Collection[int], *, through: datetime, ended_at: datetime | None = None) -> int:
    """Charge spans, by their ids, whose payers' accounts are locked; return how many charges that made.

    Each pays from its resource's own holds, then promotional credit, then cash;
    the rest is owed. Those that are open end at `ended_at`, if that is given.
    Where that is before what was charged, the difference is given back.
    """
    return _charge(spans, through=through, ended_at=ended_at)


def correct_locked(correction: UsageCorrection) -> int:
    """Let a span have ended when a correction says, and move the difference; the payer's accounts are locked.

    Return how many charges that made: one, or none where the difference costs nothing.
    """
    return _charge([correction.span_id], through=correction.ended_at, correction=correction)


def _charge(
    spans: Collection[int],
    *,
    through: datetime,
    ended_at: datetime | None = None,
    correction: UsageCorrection | None = None,
) -> int:
    floating.keep_all_still(spans)
    how: dict[str, Any] = {
        "spans": list(spans),
        "through": rating.whole_millisecond(through),
        "ended_at": ended_at,
        "corrected": correction.ended_at if correction else None,
        "correction": correction.pk if correction else None,
        "key_end": f":{correction.public_id}" if correction else "",
    }
    with connection.cursor() as cursor:
        cursor.execute(CHARGE, how)
        legs = [_Leg(*row) for row in cursor.fetchall()]
    ledger.move_all(_moves(legs))
    for leg in legs:
        if leg.micros < 0:
            _give_back(leg, correction)
    return sum(leg.charges for leg in legs)


def _leave(due: tuple[int, int]) -> None:
    log.exception("span %s was not charged", UsageSpan.objects.get(pk=due[1]).public_id)


@transaction.atomic
def _charge_batch(batch: Sequence[tuple[int, int]], at: datetime) -> int:
    """Charge spans that come as pairs of an organization's id and their own."""
    accounts.lock_all({organization_id for organization_id, _ in batch})
    return charge_locked([span_id for _, span_id in batch], through=at)


def _moves(legs: Sequence[_Leg]) -> list[Transfer]:
    currencies = {leg.currency for leg in legs}
    revenue = {currency: accounts.platform(Account.Kind.REVENUE, currency) for currency in currencies}
    moves, posting = [], None
    for leg in legs:
        posting = leg.posting or posting
        if leg.micros > 0:
            moves.append(
                Transfer(
                    key=f"{posting}:{leg.part}",
                    source_id=leg.account_id,
                    target=revenue[leg.currency],
                    amount_micros=leg.micros,
                    reason=leg.reason[:200],
                    hold_id=leg.hold_id,
                    effective_at=leg.through,
                )
            )
    return moves


def _give_back(leg: _Leg, correction: UsageCorrection | None) -> None:
    """Give money back to what paid for the span, in the opposite order: what it still owes, then cash, then credit.

    What was owed once counts for the account that has paid it since, and what
    neither cash nor credit paid returns as credit, so that nothing becomes cash
    which was not; what was given up of its invoices makes their loss less. The
    money then pays what is owed for other use.
    """
    span = UsageSpan.objects.get(pk=leg.span_id)
    payer = accounts.lock(organization_id=span.organization_id, currency=leg.currency)
    taken = span.charges.aggregate(promo=Sum("promo_micros"), cash=Sum("cash_micros"), owed=Sum("owed_micros"))
    paid_micros = Counter({payer.promo.pk: taken["promo"], payer.cash.pk: taken["cash"]})
    if taken["owed"]:
        paid_micros.update(receivables.paid_since(span=span, receivable=payer.receivable))
    targets = (payer.receivable, payer.cash, payer.promo)
    shares, rest = rating.take_in_turn(-leg.micros, [paid_micros[target.pk] for target in targets])
    given_up = invoice_payments.given_up(span) if rest else []
    lost = min(rest, sum(row.lost_micros for row in given_up))
    shares = [shares[0], shares[1] + lost, shares[2] + rest - lost]
    key = f"refund:{span.public_id}" + (f":{correction.public_id}" if correction else "")
    charge = Charge.objects.create(
        key=key,
        posting=key,
        correction=correction,
        span=span,
        through=leg.through,
        amount_micros=leg.micros,
        promo_micros=-shares[2],
        cash_micros=-shares[1],
        owed_micros=-shares[0],
    )
    revenue = accounts.platform(Account.Kind.REVENUE, leg.currency)
    for target, share in zip(targets, shares, strict=True):
        if share:
            ledger.transfer(
                key=f"{charge.posting}:{target.kind}",
                source=revenue,
                target=target,
                amount_micros=share,
                reason=f"Correction for {span.resource_name}"[:200],
                at=leg.through,
            )
    for row in given_up:
        cause = f"{charge.key}:{row.invoice.public_id}"
        lost -= invoice_payments.recover(invoice=row.invoice, most_micros=lost, cause=cause, at=leg.through)
    receivables.settle(freed=payer.cash, cause=charge.key, at=leg.through)
