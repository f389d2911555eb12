"""Payouts: ordered by the calendar, sent outside of transactions, and what became of them.

    created -> sending -> paid -> reversing -> reversed: asked for here, or found to be so at the processor
                  |  \\-> failed
               unknown: no answer, or a worker that died; resolved by looking

The row is in `sending` before the call, with its id as idempotency key. Whoever finds it there later looks for the
processor's transfer with that key; if there is none, the same call is made again with the same key, which the
processor executes once, and never after `KEY_LIFE`, when it may have forgotten the key.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet, Sum

from billing import accounts, ledger, moves
from billing.errors import AlreadyDecided, OutcomeUnknown, ProcessorRefused, SecondPersonNeeded, Stranger
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Account, Payout, PayoutAccount, SupplierStatement
from billing.payments import gateway
from billing.payments.objects import Transferred
from billing.payments.paying import ANSWER_WITHIN, KEY_LIFE
from billing.suppliers import connecting, purses, schedule

State = Payout.State
MOVES: dict[State, tuple[State, ...]] = {
    State.CREATED: (State.SENDING, State.CANCELLED),
    State.SENDING: (State.UNKNOWN, State.PAID, State.FAILED),
    State.UNKNOWN: (State.SENDING, State.PAID, State.FAILED),
    State.PAID: (State.REVERSING, State.REVERSED),
    State.REVERSING: (State.REVERSED, State.PAID),
    # Money that arrived is ours to book, whatever we had believed before.
    State.FAILED: (State.PAID,),
    State.CANCELLED: (),
    State.REVERSED: (),
}
OPEN = (State.CREATED, State.SENDING, State.UNKNOWN, State.REVERSING)
LOOK_AGAIN = timedelta(minutes=10)
# How long after each refusal the same day of the calendar is tried again; from the last one on, always so long.
TRY_AGAIN = (timedelta(hours=1), timedelta(hours=4), timedelta(hours=24))

log = logging.getLogger(__name__)


def order_due(*, at: datetime) -> int:
    """Order what the calendar says is due, of everybody who can be paid; return how many payouts."""
    ready = PayoutAccount.objects.filter(can_be_paid=True, held_at=None).exclude(processor_id="")
    ordered = 0
    for account in ready.order_by("pk"):
        for currency in sorted(purses.of(account.supplier_id)):
            ordered += order(account=account, currency=currency, at=at) is not None
    return ordered


@transaction.atomic
def order(*, account: PayoutAccount, currency: str, at: datetime) -> Payout | None:
    """Order a payout of what the last statement by then says and is still there, once per day of the calendar.

    None below the minimum, without a statement, where one is under way, or soon after one was refused. What is below
    zero is carried forward.
    """
    purse = purses.lock([(account.supplier_id, currency)])[account.supplier_id, currency]
    mine = {"supplier": account.supplier_id, "currency": currency}
    slot = schedule.slot(at)
    last = SupplierStatement.objects.filter(**mine, issued_at__lt=schedule.end_of(slot)).order_by("-pk").first()
    taken = Payout.objects.filter(**mine).exclude(state__in=(State.FAILED, State.CANCELLED))
    if last is None or taken.filter(slot=slot).exists() or taken.filter(state__in=OPEN).exists():
        return None
    if _is_refused(Payout.objects.filter(**mine, slot=slot), at=at):
        return None
    unit = minor_unit_micros(currency)
    micros = min(purse.payable.balance_micros, last.due_micros - _paid_since(last)) // unit * unit
    if micros < schedule.minimum_micros(currency):
        return None
    return Payout.objects.create(
        supplier_id=account.supplier_id,
        account=account,
        statement=last,
        currency=currency,
        amount_micros=micros,
        slot=slot,
        created_at=at,
        look_at=at,
    )


def _is_refused(found: QuerySet[Payout], *, at: datetime) -> bool:
    """Return whether one of these was refused so lately that it is not tried again yet."""
    ended = found.filter(state=State.FAILED).order_by("-finished_at").values_list("finished_at", flat=True)
    refusals = [moment for moment in ended if moment is not None]
    return bool(refusals) and at < refusals[0] + TRY_AGAIN[min(len(refusals), len(TRY_AGAIN)) - 1]


def _paid_since(statement: SupplierStatement) -> int:
    """What was sent after a statement was issued: by it, or by one before."""
    mine = Payout.objects.filter(supplier=statement.supplier_id, currency=statement.currency, state=State.PAID)
    later = mine.filter(finished_at__gte=statement.issued_at)
    return later.aggregate(total=Sum("amount_micros"))["total"] or 0


def look_due(*, at: datetime, limit: int = 50) -> int:
    """Send what waits and look at what is open and due; return how many. None of them stops the others."""
    if not gateway.is_there():
        return 0
    due = Payout.objects.filter(look_at__lte=at).exclude(state=State.CREATED, account__held_at__isnull=False)
    keys = list(due.order_by("look_at").values_list("pk", flat=True)[:limit])
    for key in keys:
        try:
            look(payout_id=key, at=at)
        except Exception:
            log.exception("payout %s was not looked at", key)
    return len(keys)


def look(*, payout_id: int, at: datetime) -> Payout:
    """Send a payout unless they are held back, or look what became of it. Network. Who comes second does nothing."""
    payout = _read(payout_id)
    if payout.state == State.CREATED:
        if payout.account.held_at is None and move(
            payout, State.SENDING, at=at, sent_at=at, look_at=at + ANSWER_WITHIN
        ):
            return _call(payout, at=at)
    elif payout.state == State.SENDING and payout.look_at is not None and payout.look_at <= at:
        move(payout, State.UNKNOWN, at=at, look_at=at)
    if payout.state == State.UNKNOWN:
        return _looked(payout, at=at)
    if payout.state == State.REVERSING:
        return _reverse(payout, at=at)
    return payout


@transaction.atomic
def move(payout: Payout, state: State, *, at: datetime, **facts: object) -> bool:
    """Move a payout if the map allows it from where it is; its money moves with it. Return whether it did."""
    purse = purses.lock([(payout.supplier_id, payout.currency)])[payout.supplier_id, payout.currency]
    before = State(payout.state)
    written: dict[str, object] = {} if state in OPEN else {"look_at": None, "finished_at": at}
    if (before, state) == (State.REVERSING, State.PAID):
        del written["finished_at"]  # its money went when it went
    # Only from where it was seen: what moves depends on that.
    seen = {before: MOVES[before]}
    if not moves.move(payout, state, seen, **(written | facts)):
        payout.refresh_from_db()
        return False
    processor = accounts.platform(Account.Kind.PROCESSOR, payout.currency)
    if state == State.PAID and before != State.REVERSING:
        _book(payout, payout.processor_key, purse.payable, processor, at=at)
    elif state == State.REVERSED:
        _book(payout, payout.reversal_key, processor, purse.payable, at=at)
    payout.refresh_from_db()
    log.info("payout %s: %s", payout.public_id, state)
    return True


def look_at_transfer(*, transfer_id: str, at: datetime) -> Payout:
    """Look at a transfer of which the processor told us, and move its payout there. Network.

    What was taken back whole at the processor, and by nobody here, is ours to book; but nothing more goes to that
    supplier until a person lets it. Raises Stranger for what is none of ours.
    """
    made = gateway.transferred(transfer_id)
    word, _, public_id = made.key.partition(":")
    found = Payout.objects.filter(public_id=public_id, amount_micros=made.amount_micros, currency=made.currency)
    payout = found.select_related("account", "statement", "supplier").first() if word == "payout" else None
    if payout is None:
        raise Stranger("it belongs to none of our payouts")
    if State.PAID in MOVES[State(payout.state)] and payout.state != State.REVERSING:
        move(payout, State.PAID, at=at, processor_id=made.id, failure="")
    if made.reversed_micros >= payout.amount_micros:
        _found_reversed(payout, at=at)
    return payout


@transaction.atomic
def _found_reversed(payout: Payout, *, at: datetime) -> None:
    was_asked = payout.state == State.REVERSING
    facts: dict[str, object] = {} if was_asked else {"reversal_found_at": at, "failure": "Taken back at the processor."}
    if State.REVERSED in MOVES[State(payout.state)] and move(payout, State.REVERSED, at=at, **facts) and not was_asked:
        if payout.account.held_at is None:
            connecting.hold(account=payout.account, is_held=True, at=at)
        log.error("payout %s was taken back at the processor; its supplier's payouts are held", payout.public_id)


def cancel(*, payout: Payout, at: datetime) -> None:
    """Call off a payout that was not sent yet."""
    if not move(payout, State.CANCELLED, at=at):
        raise AlreadyDecided("it was sent already")


@transaction.atomic
def propose_reversal(*, payout: Payout, by: int) -> None:
    """Ask for a payout to be taken back; somebody else approves."""
    rows = Payout.objects.filter(pk=payout.pk, state=State.PAID, reversal_proposed_by=None)
    if not rows.update(reversal_proposed_by=by):
        raise AlreadyDecided("it cannot be taken back, or somebody has proposed that")
    payout.refresh_from_db()


def approve_reversal(*, payout: Payout, by: int, at: datetime) -> None:
    """Let a payout be taken back, by another person than the one who asked for it. A sweep does it."""
    if payout.reversal_proposed_by_id in {None, by}:
        raise SecondPersonNeeded("one person proposes this and another approves it")
    if not move(payout, State.REVERSING, at=at, reversal_approved_by_id=by, look_at=at):
        raise AlreadyDecided("it is not paid out, or taken back already")


def _call(payout: Payout, *, at: datetime) -> Payout:
    return _answered(
        payout,
        lambda: gateway.transfer(
            key=payout.processor_key,
            account_id=payout.account.processor_id,
            amount_micros=payout.amount_micros,
            currency=payout.currency,
            group=payout.statement.public_id,
        ),
        at=at,
    )


def _answered(payout: Payout, call: Callable[[], Transferred | None], *, at: datetime) -> Payout:
    """Make a call and write down what came of it: paid, refused, or not known yet."""
    try:
        made = call()
    except OutcomeUnknown as error:
        log.warning("payout %s: %s", payout.public_id, error)
        move(payout, State.UNKNOWN, at=at, look_at=at + LOOK_AGAIN)
    except ProcessorRefused as refusal:
        move(payout, State.FAILED, at=at, failure=str(refusal)[:300])
    else:
        if made is not None:
            assert (made.key, made.amount_micros) == (payout.processor_key, payout.amount_micros), "it is not ours"
            move(payout, State.PAID, at=at, processor_id=made.id, failure="")
    return payout


def _looked(payout: Payout, *, at: datetime) -> Payout:
    """Look for a payout of which nobody knows; send it again where it never arrived and its key still counts."""
    Payout.objects.filter(pk=payout.pk).update(look_at=at + LOOK_AGAIN)
    try:
        made = gateway.find_transfer(account_id=payout.account.processor_id, key=payout.processor_key)
    except (OutcomeUnknown, ProcessorRefused) as error:
        log.warning("payout %s could not be looked at: %s", payout.public_id, error)
        return payout
    if made is not None:
        return _answered(payout, lambda: made, at=at)
    assert payout.sent_at is not None
    if at >= payout.sent_at + KEY_LIFE:
        move(payout, State.FAILED, at=at, failure="It never reached the processor.")
    elif move(payout, State.SENDING, at=at, look_at=at + ANSWER_WITHIN):
        return _call(payout, at=at)
    return payout


def _reverse(payout: Payout, *, at: datetime) -> Payout:
    """Take a payout back; look first whether that has happened already."""
    Payout.objects.filter(pk=payout.pk).update(look_at=at + LOOK_AGAIN)
    try:
        if gateway.transferred(payout.processor_id).reversed_micros < payout.amount_micros:
            gateway.reverse_transfer(
                key=payout.reversal_key,
                transfer_id=payout.processor_id,
                amount_micros=payout.amount_micros,
                currency=payout.currency,
            )
        move(payout, State.REVERSED, at=at)
    except OutcomeUnknown as error:
        log.warning("reversal of payout %s: %s", payout.public_id, error)
    except ProcessorRefused as refusal:
        nobody = {"reversal_proposed_by": None, "reversal_approved_by": None}
        move(payout, State.PAID, at=at, failure=str(refusal)[:300], **nobody)
    return payout


def _book(payout: Payout, key: str, source: Account, target: Account, *, at: datetime) -> None:
    ledger.transfer(
        key=key,
        source=source,
        target=target,
        amount_micros=payout.amount_micros,
        reason=f"Payout {payout.public_id}",
        at=at,
    )


def _read(payout_id: int) -> Payout:
    return Payout.objects.select_related("account", "statement", "supplier").get(pk=payout_id)
