"""Bringing what was charged to what it costs: tiers, minimums and commitments, in sets, as often as anybody likes.

Charges take each span at its version's base rate, every minute. Here the whole
of a month until now is worked out anew (`tiers.rate`) and what it differs from
the charges, less what was moved before, moves once. So late and corrected use
needs no rule of its own, and neither does a volume tier that turns back.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import partial

from django.db import connection, transaction

from billing import accounts, commitments, daily, ledger, rating, rebates, runway, tiers
from billing.accounts import CustomerAccounts
from billing.batches import in_parts
from billing.models import Account, Adjustment, AdjustmentPosting, Commitment, PriceVersion, Transfer, UsageSpan
from billing.months import month_of, next_month
from billing.rating import MILLISECOND

BATCH = 200
BULK = 2000

log = logging.getLogger(__name__)

ADJUSTS = "(price.model <> 'flat' OR price.minimum_micros > 0)"
# Who uses something that is not simply its base rate, and who has a commitment that was not over then; first who was
# never worked out, or was the longest ago.
DUE = f"""
SELECT due.organization_id FROM (
    SELECT span.organization_id FROM billing_usagespan span
    JOIN billing_priceversion price ON price.id = span.price_version_id
    WHERE {ADJUSTS} AND (span.charged_through > %(since)s OR span.ended_at IS NULL)
    UNION SELECT organization_id FROM billing_commitment WHERE state = 'agreed' AND ends_at > %(since)s
    UNION SELECT organization_id FROM billing_adjustment WHERE month >= %(since)s
) due
LEFT JOIN billing_adjustment known ON known.organization_id = due.organization_id AND known.month >= %(since)s
GROUP BY due.organization_id ORDER BY max(known.evaluated_at) NULLS FIRST, due.organization_id
"""  # noqa: S608  our own text
# What each used of a version in each month, and what charges take for it: each span rounded from its start, as they do.
USED = f"""
SELECT span.organization_id, price.id, month.begins, sum(quantity::numeric * part.ms), sum(
    div(2 * price.micros_per_unit_hour::numeric * quantity * (part.ms_before + part.ms) + 3600000, 7200000)
    - div(2 * price.micros_per_unit_hour::numeric * quantity * part.ms_before + 3600000, 7200000))
FROM billing_usagespan span
JOIN billing_priceversion price ON price.id = span.price_version_id
JOIN unnest(%(begins)s::timestamptz[], %(ends)s::timestamptz[]) AS month (begins, ends)
    ON span.started_at < month.ends AND coalesce(span.ended_at, 'infinity') > month.begins
CROSS JOIN LATERAL (SELECT
    round(1000 * extract(epoch FROM greatest(month.begins, span.started_at) - span.started_at)) AS ms_before,
    round(1000 * extract(epoch FROM least(month.ends, coalesce(span.ended_at, month.ends))
        - greatest(month.begins, span.started_at))) AS ms
) part
WHERE span.organization_id = ANY(%(organizations)s) AND NOT price.is_floating AND span.covered_by = ''
  AND (span.charged_through > %(since)s OR span.ended_at IS NULL)
  AND ({ADJUSTS} OR EXISTS (
      SELECT FROM billing_commitmentprice agreed
      WHERE agreed.organization_id = span.organization_id AND agreed.sku = price.sku AND agreed.is_agreed
        AND agreed.starts_at <= month.begins AND agreed.ends_at > month.begins
  ))
GROUP BY 1, 2, 3
"""  # noqa: S608  our own text
# Months that are over and were never worked out to their end, such as while nothing swept: the oldest of each customer.
UNFINISHED = """
SELECT organization_id, min(month) FROM billing_adjustment
WHERE price_version_id IS NOT NULL AND month < %(until)s
  AND through < (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
GROUP BY organization_id ORDER BY min(month), organization_id LIMIT %(limit)s
"""
UPDATE = """
UPDATE billing_adjustment SET (
    commitment_id, through, unit_milliseconds, covered_unit_milliseconds, base_micros, committed_micros,
    minimum_micros, rated_micros, amount_micros, evaluated_at
) = (
    new.commitment, new.through, new.unit_ms, new.covered_ms, new.base, new.committed, new.minimum, new.rated,
    new.rated - new.base, now()
)
FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
            %s::bigint[], %s::bigint[])
    AS new (id, commitment, through, unit_ms, covered_ms, base, committed, minimum, rated)
WHERE billing_adjustment.id = new.id
"""


@dataclass(slots=True)
class _Customer:
    """Everything of one organization that is worked out together."""

    payer: CustomerAccounts
    has_credit: bool
    uses: list[tiers.Use] = field(default_factory=list)
    promises: list[tiers.Promise] = field(default_factory=list)
    stored: dict[tuple[int, datetime], Adjustment] = field(default_factory=dict)
    breakages: dict[int, Adjustment] = field(default_factory=dict)


def post_due(*, at: datetime, seconds: int = 40) -> int:
    """Bring the bills of everybody up to date who does not pay base rates alone; return how many amounts moved.

    Safe to repeat, to run twice at once and to be killed: a batch is posted whole or not at all. With whom it fails is
    left, so that the others have theirs. For whom the time does not suffice comes first in the next sweep. A month that
    was not worked out to its end in time is, however old it is.
    """
    deadline = time.monotonic() + seconds
    posted = 0
    since = window_start(at)
    due = _due(since=since)
    while time.monotonic() < deadline and due:
        posted += sum(in_parts(due[:BATCH], lambda part: _post(part, since=since, at=at), leave=_leave))
        due = due[BATCH:]
    for key, month in unfinished(until=since, limit=BATCH):
        if time.monotonic() < deadline:
            posted += sum(in_parts([key], partial(_post, since=month, at=at), leave=_leave))
    return posted


def unfinished(*, until: datetime, limit: int) -> list[tuple[int, datetime]]:
    """Return whose bills of a month before `until` wait for what tiers or commitments make of it, and since when."""
    with connection.cursor() as cursor:
        cursor.execute(UNFINISHED, {"until": until, "limit": limit})
        return [(key, month) for key, month in cursor.fetchall()]


@transaction.atomic
def _post(organization_ids: Sequence[int], *, since: datetime, at: datetime) -> int:
    return bring_up_to_date(accounts.lock_many(organization_ids), since=since, at=at)


def _leave(organization_id: int) -> None:
    log.exception("what tiers and commitments make of the use of organization %s was not posted", organization_id)


def window_start(at: datetime) -> datetime:
    """Return from which month on use may still change: the one before that of `at`."""
    return month_of(month_of(at) - MILLISECOND)


def parts_of_base(spans: Collection[UsageSpan], *, month: datetime) -> dict[tuple[int, int], Fraction]:
    """Return which part of their base rates the use of these spans cost in a month, as far as it was posted. One query.

    By organization and price version, where it is not all of it. What was
    missing to a minimum is paid for no use, and left out.
    """
    rows = Adjustment.objects.filter(
        organization__in={span.organization_id for span in spans},
        price_version__in={span.price_version_id for span in spans},
        month=month,
        base_micros__gt=0,
    ).values_list("organization_id", "price_version_id", "rated_micros", "minimum_micros", "base_micros")
    return {
        (organization_id, version_id): Fraction(max(0, rated - minimum), base)
        for organization_id, version_id, rated, minimum, base in rows
        if version_id is not None
    }


def bring_up_to_date(payers: Mapping[int, CustomerAccounts], *, since: datetime, at: datetime) -> int:
    """Post what the months from `since` until `at` differ from what was charged and posted; return how many amounts.

    The caller has locked these accounts, whose balances are kept up in memory too.
    """
    through = rating.whole_millisecond(at)
    customers = _read(payers, since=since, through=through)
    changed: list[Adjustment] = []
    drawn: list[Commitment] = []
    for key, customer in customers.items():
        rated, by_promise = tiers.rate(customer.uses, customer.promises)
        changed += _rated(key, customer, rated, through)
        drawn += _drawn(key, customer, by_promise, changed, through)
    return _write(customers, changed, drawn, at=at)


def _due(*, since: datetime) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"since": since})
        return [key for (key,) in cursor.fetchall()]


def _read(payers: Mapping[int, CustomerAccounts], *, since: datetime, through: datetime) -> dict[int, _Customer]:
    promos = [payer.promo.pk for payer in payers.values()]
    credited = set(Transfer.objects.filter(target__in=promos).values_list("target", flat=True).distinct())
    customers = {key: _Customer(payer, has_credit=payer.promo.pk in credited) for key, payer in payers.items()}
    begins = _months(since, through)
    ends = {begin: min(next_month(begin), through) for begin in begins}
    with connection.cursor() as cursor:
        cursor.execute(
            USED, {"organizations": list(payers), "begins": begins, "ends": list(ends.values()), "since": since}
        )
        used = {(key, version, month): (int(ms), int(base)) for key, version, month, ms, base in cursor.fetchall()}
    for row in Adjustment.objects.filter(organization__in=payers, month__gte=since, month__lt=through):
        if row.price_version_id is not None:
            customers[row.organization_id].stored[row.price_version_id, row.month] = row
            used.setdefault((row.organization_id, row.price_version_id, row.month), (0, 0))
    versions = PriceVersion.objects.in_bulk({version for _, version, _ in used})
    for (key, version_id, month), (unit_ms, base_micros) in used.items():
        version = versions[version_id]
        customers[key].uses.append(
            tiers.Use(
                price_version_id=version_id,
                sku=version.sku,
                effective_from=version.effective_from,
                terms=tiers.terms(version),
                month=month,
                is_over=next_month(month) <= through,
                unit_ms=unit_ms,
                base_micros=base_micros,
            )
        )
    _read_promises(customers, since=since)
    return customers


def _read_promises(customers: Mapping[int, _Customer], *, since: datetime) -> None:
    """Read the commitments that were not over at `since`, with what was drawn of them before."""
    found = list(commitments.agreed(customers, since=since))
    before: dict[int, list[tuple[str, int]]] = defaultdict(list)
    breakages = {}
    for row in Adjustment.objects.filter(commitment__in=found).select_related("price_version"):
        if row.price_version is None:
            breakages[row.commitment_id] = row
        elif row.month < since:
            before[row.commitment_id or 0].append((row.price_version.sku, row.covered_unit_milliseconds))
    for commitment in found:
        agreed = {price.sku: price.micros_per_unit_hour for price in commitment.prices.all()}
        is_spend = commitment.kind == Commitment.Kind.SPEND
        size = commitment.committed_micros if is_spend else commitment.committed_unit_hours
        customer = customers[commitment.organization_id]
        customer.promises.append(
            tiers.Promise(
                key=commitment.pk,
                is_spend=is_spend,
                size=size * rating.MILLISECONDS_PER_HOUR,
                prices=agreed,
                starts_at=commitment.starts_at,
                ends_at=commitment.ends_at,
                committed_micros=commitment.committed_micros,
                unit_ms_before=sum(unit_ms for _, unit_ms in before[commitment.pk]),
                product_before=sum(agreed[sku] * unit_ms for sku, unit_ms in before[commitment.pk]),
            )
        )
        if commitment.pk in breakages:
            customer.breakages[commitment.pk] = breakages[commitment.pk]


def _months(since: datetime, through: datetime) -> list[datetime]:
    months = []
    while since < through:
        months.append(since)
        since = next_month(since)
    return months


def _rated(key: int, customer: _Customer, found: Iterable[tiers.Rated], through: datetime) -> list[Adjustment]:
    rows = []
    for rated in found:
        use = rated.use
        row = customer.stored.get((use.price_version_id, use.month)) or Adjustment(
            organization_id=key, price_version_id=use.price_version_id, month=use.month
        )
        row.commitment_id = rated.promise_key if rated.covered_unit_ms else None
        row.through = min(through, next_month(use.month))
        row.unit_milliseconds = use.unit_ms
        row.covered_unit_milliseconds = rated.covered_unit_ms
        row.base_micros = use.base_micros
        row.committed_micros = rated.committed_micros
        row.minimum_micros = rated.minimum_micros
        row.rated_micros = rated.rated_micros
        rows.append(row)
    return rows


def _drawn(
    key: int, customer: _Customer, by_promise: Mapping[int, tiers.Drawn], changed: list[Adjustment], through: datetime
) -> list[Commitment]:
    """Return the commitments with what was drawn of them; what a term left over is added to what changed."""
    rows = []
    for promise in customer.promises:
        drawn = by_promise[promise.key]
        drawn_micros = rating.rounded_micros(drawn.product)
        left_over = promise.committed_micros - drawn_micros if promise.ends_at <= through else 0
        row = customer.breakages.get(promise.key)
        if left_over or row is not None:
            row = row or Adjustment(organization_id=key, commitment_id=promise.key)
            row.month = month_of(promise.ends_at - MILLISECOND)
            row.through = promise.ends_at
            row.rated_micros = left_over
            changed.append(row)
        rows.append(
            Commitment(
                pk=promise.key,
                drawn_micros=drawn_micros,
                drawn_unit_milliseconds=drawn.unit_ms,
                breakage_micros=left_over,
            )
        )
    return rows


def _write(
    customers: Mapping[int, _Customer], changed: list[Adjustment], drawn: list[Commitment], *, at: datetime
) -> int:
    """Write down what changed and move the money; a handful of statements, however many rows there are."""
    due = []
    for row in changed:
        before_micros = row.amount_micros
        row.amount_micros = row.rated_micros - row.base_micros
        if row.amount_micros != before_micros:
            due.append((row, row.amount_micros - before_micros))
    _save(changed)
    Commitment.objects.bulk_update(
        drawn, ["drawn_micros", "drawn_unit_milliseconds", "breakage_micros"], batch_size=BATCH
    )
    postings = [
        AdjustmentPosting(
            adjustment=row,
            through=row.through,
            unit_milliseconds=row.unit_milliseconds,
            rated_micros=row.rated_micros,
            base_micros=row.base_micros,
            amount_micros=micros,
        )
        for row, micros in due
    ]
    AdjustmentPosting.objects.bulk_create(postings, batch_size=BULK)
    revenue = {
        currency: accounts.platform(Account.Kind.REVENUE, currency)
        for currency in {customers[row.organization_id].payer.cash.currency for row, _ in due}
    }
    paid = rebates.paid([row for row, _ in due if customers[row.organization_id].has_credit])
    moves = [
        move
        for posting in postings
        for move in _moves(
            posting, customers[posting.adjustment.organization_id].payer, revenue, paid.get(posting.adjustment_id), at
        )
    ]
    if moves:
        daily.touch(since=min(row.through for row, _ in due) - MILLISECOND, through=max(row.through for row, _ in due))
        ledger.move_all(moves)
        runway.shift(moves)
    return len(postings)


def _save(changed: Collection[Adjustment]) -> None:
    known = [row for row in changed if row.pk is not None]
    Adjustment.objects.bulk_create([row for row in changed if row.pk is None], batch_size=BULK)
    with connection.cursor() as cursor:
        cursor.execute(
            UPDATE,
            [
                [row.pk for row in known],
                [row.commitment_id for row in known],
                [row.through for row in known],
                [row.unit_milliseconds for row in known],
                [row.covered_unit_milliseconds for row in known],
                [row.base_micros for row in known],
                [row.committed_micros for row in known],
                [row.minimum_micros for row in known],
                [row.rated_micros for row in known],
            ],
        )


def _moves(
    posting: AdjustmentPosting,
    payer: CustomerAccounts,
    revenue: Mapping[str, Account],
    paid: rebates.Paid | None,
    at: datetime,
) -> list[Transfer]:
    """Return the transfers of a posting; credit that came back then pays what is owed for other use."""
    micros, earned = posting.amount_micros, revenue[payer.cash.currency]
    is_charge = micros > 0
    share_out = rebates.taken if is_charge else rebates.given_back
    key = f"{'charge' if is_charge else 'refund'}:{posting.public_id}"
    reason = f"Tiers and commitments of {posting.adjustment.month:%Y-%m}"
    found = [
        _moved(f"{key}:{account.kind}", *((account, earned) if is_charge else (earned, account)), share, reason)
        for account, share in share_out(abs(micros), payer=payer, paid_by=paid)
        if share
    ]
    debt = 0 if is_charge else min(payer.owed_micros, max(0, payer.promo.free_micros))
    if debt:
        found.append(_moved(f"settle:{key}:promo", payer.promo, payer.receivable, debt, "Payment of what was owed"))
    for move in found:
        move.effective_at = at
    return found


def _moved(key: str, source: Account, target: Account, micros: int, reason: str) -> Transfer:
    """Return a transfer, with the balances in memory as they are after it."""
    for account, change in ((source, -micros), (target, micros)):
        if not account.is_platform:
            account.balance_micros += change
    return Transfer(key=key, source=source, target=target, amount_micros=micros, reason=reason)
