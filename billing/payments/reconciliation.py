"""Daily: the processor's statement against our ledger, in both directions, line by line.

Every transfer of ours from or to the account `processor` begins with two words (`payment:<id>`) that the processor's
objects carry in their metadata. Both sides are summed by these words; where they differ there is a case, which says by
how much, and which is closed once both agree. So the difference of the totals is always the sum of the open cases and
of what is on its way. Nothing is ever booked to make a difference disappear; only two things are learned from the
statement itself: what the processor kept as its fee, and what went to our bank or came from there.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Max, Min, QuerySet, Sum

from billing import accounts, ledger
from billing.errors import OutcomeUnknown
from billing.models import Account, BalanceEntry, BalanceReading, Dispute, Payment, Payout, ReconciliationCase, Refund
from billing.payments import gateway
from billing.payments.objects import StatementLine

# The statement is read again this far back: lines are dated by the processor's clock.
OVERLAP = timedelta(days=3)
# The processor writes its statement when it moves money; what is younger than this may not have been read yet.
ON_ITS_WAY = timedelta(minutes=10)
FEE_TYPES = ("stripe_fee", "stripe_fx_fee", "tax_fee")
# What lines begin with that go to our bank, or come from there so that suppliers can be paid; and back.
BANK_TYPES = ("payout", "topup")

# Both sides by the first two words of their keys: (key, ours, theirs, when we moved it last).
COMPARE = """
WITH ours AS (
    SELECT split_part(key, ':', 1) || ':' || split_part(key, ':', 2) AS key,
           sum(CASE WHEN source_id = %(processor)s THEN amount_micros ELSE -amount_micros END) AS micros,
           max(created_at) AS moved_at
    FROM billing_transfer WHERE source_id = %(processor)s OR target_id = %(processor)s GROUP BY 1
), theirs AS (
    SELECT key, sum(micros) AS micros FROM (
        SELECT CASE WHEN our_key = '' THEN 'processor:' || processor_id
                    ELSE split_part(our_key, ':', 1) || ':' || split_part(our_key, ':', 2) END AS key,
               amount_micros AS micros FROM billing_balanceentry WHERE currency = %(currency)s
        UNION ALL
        SELECT 'processor-fee:' || processor_id, -fee_micros FROM billing_balanceentry
        WHERE currency = %(currency)s AND fee_micros <> 0
    ) line GROUP BY key
)
SELECT coalesce(ours.key, theirs.key), coalesce(ours.micros, 0)::bigint, coalesce(theirs.micros, 0)::bigint, moved_at
FROM ours FULL JOIN theirs ON theirs.key = ours.key
WHERE coalesce(ours.micros, 0) <> coalesce(theirs.micros, 0)
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What both sides say of one currency, in micros. `difference` is what the ledger has more."""

    currency: str
    ledger_micros: int
    processor_micros: int
    on_its_way_micros: int
    cases_micros: int

    @property
    def difference_micros(self) -> int:
        return self.ledger_micros - self.processor_micros

    @property
    def unexplained_micros(self) -> int:
        return self.difference_micros - self.on_its_way_micros - self.cases_micros


def run(*, at: datetime) -> int:
    """Read the statement and compare both sides; return how many cases are open. Network.

    A statement that is not read to its end yet is compared with nothing: the next call goes on with it.
    """
    if gateway.is_there():
        read(at=at)
        if is_reading():
            return cases().count()
    for currency in currencies():
        compare(currency=currency, at=at)
    return cases().count()


def is_reading() -> bool:
    """Return whether the statement was begun and not read to its end yet."""
    return gateway.is_there() and BalanceReading.objects.exists()


def read(*, at: datetime, seconds: int = 35) -> int:
    """Take over what is new in the processor's statement, and what it kept or sent to our bank. Network.

    Each page is kept at once, with how far that is: stopped after some time, or killed, the next call goes on there.
    Returns how many lines were new.
    """
    deadline = time.monotonic() + seconds
    reading, fresh, has_more = _reading(at), 0, True
    while has_more:
        lines, has_more = gateway.statement(since=reading.since, after=reading.after)
        if has_more and not lines:
            raise OutcomeUnknown("the processor's statement does not end")
        fresh += _keep_page(lines, reading)
        if time.monotonic() >= deadline:
            break
    if not has_more:
        reading.delete()
        _name_what_was_unknown()
    return fresh


def _reading(at: datetime) -> BalanceReading:
    """Return how far the reading is that was begun, or begin one, some days before the newest line that is known."""
    found = BalanceReading.objects.first()
    if found is None:
        known_until = BalanceEntry.objects.aggregate(latest=Max("created_at"))["latest"]
        began = Payment.objects.aggregate(first=Min("created_at"))["first"]
        since = (known_until or began or at) - OVERLAP
        BalanceReading.objects.bulk_create([BalanceReading(since=since)], ignore_conflicts=True)
        found = BalanceReading.objects.get()
    return found


@transaction.atomic
def _keep_page(lines: Sequence[StatementLine], reading: BalanceReading) -> int:
    ids = [line.id for line in lines]
    known = set(BalanceEntry.objects.filter(processor_id__in=ids).values_list("processor_id", flat=True))
    fresh = [line for line in reversed(lines) if line.id not in known]
    for line in fresh:
        _keep(line)
    if ids:
        reading.after = ids[-1]
        BalanceReading.objects.filter(pk=reading.pk).update(after=reading.after)
    return len(fresh)


def _name_what_was_unknown() -> None:
    for entry in BalanceEntry.objects.filter(our_key="").exclude(amount_micros=0):
        # What it belongs to may have become known after it was read.
        BalanceEntry.objects.filter(pk=entry.pk).update(our_key=_known_key(entry.source_id, entry.amount_micros))


def compare(*, currency: str, at: datetime) -> None:
    """Open a case for each key on which both sides differ, and close those on which they agree again."""
    found = {
        key: (ours, theirs) for key, ours, theirs, moved_at in _differences(currency) if not _is_young(moved_at, at)
    }
    with transaction.atomic():
        open_cases = {case.our_key: case for case in cases().filter(currency=currency).select_for_update()}
        for key, case in open_cases.items():
            if key not in found:
                ReconciliationCase.objects.filter(pk=case.pk).update(closed_at=at)
            elif found[key] != (case.ledger_micros, case.processor_micros):
                ours, theirs = found[key]
                ReconciliationCase.objects.filter(pk=case.pk).update(ledger_micros=ours, processor_micros=theirs)
        ReconciliationCase.objects.bulk_create(
            [
                ReconciliationCase(
                    currency=currency, our_key=key, ledger_micros=ours, processor_micros=theirs, found_at=at
                )
                for key, (ours, theirs) in found.items()
                if key not in open_cases
            ],
            ignore_conflicts=True,
        )


def cases() -> QuerySet[ReconciliationCase]:
    """Return what is open, the oldest first."""
    return ReconciliationCase.objects.filter(closed_at=None).order_by("found_at", "pk")


def comparisons(*, at: datetime) -> list[Comparison]:
    """Return how both sides stand now, by currency."""
    return [_comparison(currency, at=at) for currency in currencies()]


def currencies() -> list[str]:
    """Return the currencies in which anything went through the processor."""
    ours = Account.objects.filter(organization=None, kind=Account.Kind.PROCESSOR).values_list("currency", flat=True)
    return sorted({*ours, *BalanceEntry.objects.values_list("currency", flat=True).distinct()})


def _comparison(currency: str, *, at: datetime) -> Comparison:
    sums = BalanceEntry.objects.filter(currency=currency).aggregate(came=Sum("amount_micros"), fees=Sum("fee_micros"))
    open_cases = list(cases().filter(currency=currency))
    differences = _differences(currency)
    young = sum(ours - theirs for _, ours, theirs, moved_at in differences if _is_young(moved_at, at))
    return Comparison(
        currency=currency,
        ledger_micros=-accounts.balance_micros(accounts.platform(Account.Kind.PROCESSOR, currency)),
        processor_micros=(sums["came"] or 0) - (sums["fees"] or 0),
        on_its_way_micros=young,
        cases_micros=sum(case.difference_micros for case in open_cases),
    )


def _differences(currency: str) -> Iterable[tuple[str, int, int, datetime | None]]:
    processor = accounts.platform(Account.Kind.PROCESSOR, currency)
    with connection.cursor() as cursor:
        cursor.execute(COMPARE, {"processor": processor.pk, "currency": currency})
        found: list[tuple[str, int, int, datetime | None]] = cursor.fetchall()
    return found


def _is_young(moved_at: datetime | None, at: datetime) -> bool:
    return moved_at is not None and moved_at > at - ON_ITS_WAY


@transaction.atomic
def _keep(line: StatementLine) -> None:
    """Keep a line once, and book what only the statement knows."""
    is_fee = line.type in FEE_TYPES
    entry, is_new = BalanceEntry.objects.get_or_create(
        processor_id=line.id,
        defaults={
            "type": line.type[:40],
            "source_id": line.source_id[:100],
            "our_key": "" if is_fee else _our_key(line),
            # A line that is nothing but a fee reads like any other: nothing came in, and the fee went.
            "amount_micros": 0 if is_fee else line.amount_micros,
            "fee_micros": line.fee_micros - line.amount_micros if is_fee else line.fee_micros,
            "currency": line.currency,
            "created_at": line.at,
        },
    )
    if not is_new:
        return
    if entry.fee_micros:
        _book(f"processor-fee:{entry.processor_id}", Account.Kind.FEES, entry.fee_micros, line, "Fee of the processor")
    if line.type.startswith(BANK_TYPES):
        way = "From the processor to our bank" if entry.amount_micros < 0 else "From our bank to the processor"
        _book(entry.our_key, Account.Kind.BANK, -entry.amount_micros, line, way)


def _book(key: str, kind: Account.Kind, out_micros: int, line: StatementLine, reason: str) -> None:
    """Move what left the balance at the processor (or came back, below zero) between it and another account of ours."""
    processor, other = accounts.platform(Account.Kind.PROCESSOR, line.currency), accounts.platform(kind, line.currency)
    source, target = (other, processor) if out_micros > 0 else (processor, other)
    if out_micros:
        ledger.transfer(key=key, source=source, target=target, amount_micros=abs(out_micros), reason=reason, at=line.at)


def _our_key(line: StatementLine) -> str:
    """Return the first two words of what moved the same money in our ledger; empty where nothing of ours did."""
    if line.type.startswith(BANK_TYPES):
        return f"bank:{line.id}"
    if line.key:
        failed = line.type in {"refund_failure", "payment_refund_failure"}
        return line.key.replace("payback:", "payback-failed:", 1) if failed else line.key
    if line.transfer_id:
        # Who takes a transfer back at the processor itself writes no key of ours to that.
        payout = Payout.objects.filter(processor_id=line.transfer_id).first()
        return payout.reversal_key if payout else ""
    return _known_key(line.source_id, line.amount_micros)


def _known_key(source_id: str, amount_micros: int) -> str:
    """Return what moved the money of a dispute, refund or charge of ours, by the id that we keep of it."""
    if not source_id:
        return ""
    dispute = Dispute.objects.filter(processor_id=source_id).first()
    if dispute is not None:
        return f"{'dispute' if amount_micros < 0 else 'dispute-won'}:{dispute.public_id}"
    refund = Refund.objects.filter(processor_id=source_id).first()
    if refund is not None:
        return f"{'payback' if amount_micros < 0 else 'payback-failed'}:{refund.public_id}"
    payment = Payment.objects.filter(charge_id=source_id).first()
    return payment.processor_key if payment else ""
