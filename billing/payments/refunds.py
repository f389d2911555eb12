"""Giving part of a payment back to its card: one person proposes, another decides, then it is sent once.

The money leaves the customer's cash when the second person approves, waits on the platform's `deferred` account until
the processor has sent it, and comes back if it could not. What somebody gives back at the processor itself is booked
once that says so.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from django.db import transaction
from django.db.models import QuerySet, Sum

from billing import accounts, collecting, decisions, ledger, moves, rating, receivables, repeats, runway
from billing.errors import InsufficientFunds, OutcomeUnknown, ProcessorRefused, RefundTooLarge, Stranger
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Account, Dispute, Payment, Refund
from billing.payments import gateway, paying
from billing.payments.objects import PaidBack
from billing.payments.paying import ANSWER_WITHIN, KEY_LIFE, LOOK_AGAIN_LEAST, LOOK_AGAIN_MOST

State = Refund.State
MOVES: Mapping[str, tuple[str, ...]] = {
    State.PROPOSED: (State.APPROVED, State.DECLINED),
    State.APPROVED: (State.SENDING,),
    State.SENDING: (State.UNKNOWN, State.PROCESSING, State.SUCCEEDED, State.FAILED),
    State.UNKNOWN: (State.SENDING, State.PROCESSING, State.SUCCEEDED, State.FAILED),
    State.PROCESSING: (State.SUCCEEDED, State.FAILED),
    # A card may have been closed: then the money comes back days later.
    State.SUCCEEDED: (State.FAILED,),
    State.FAILED: (),
    State.DECLINED: (),
}
TO_LOOK_AT = (State.APPROVED, State.SENDING, State.UNKNOWN, State.PROCESSING)

log = logging.getLogger(__name__)


def left_micros(payment: Payment) -> int:
    """Return what can still be refunded of a payment: less what went back, is proposed, or a bank took."""
    if payment.state != Payment.State.SUCCEEDED:
        return 0
    gone = Refund.objects.filter(payment=payment).exclude(state__in=[State.DECLINED, State.FAILED])
    taken = Dispute.objects.filter(payment=payment).exclude(state=Dispute.State.WON)
    both = [rows.aggregate(total=Sum("amount_micros"))["total"] or 0 for rows in (gone, taken)]
    return max(0, payment.amount_micros - sum(both))


@transaction.atomic
def propose(*, payment: Payment, amount_micros: int, reason: str, by: int, key: UUID, at: datetime) -> Refund:
    """Propose to give part of a payment back, once per key; nothing moves yet. `by` is a person's id."""
    accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    first = repeats.find(Refund, key, payment_id=payment.pk, amount_micros=amount_micros, reason=reason)
    if first is not None:
        return first
    payment.refresh_from_db()
    left = left_micros(payment)
    if not 0 < amount_micros <= left or amount_micros % minor_unit_micros(payment.currency):
        raise RefundTooLarge(asked_micros=amount_micros, left_micros=left, currency=payment.currency)
    return Refund.objects.create(
        payment=payment, amount_micros=amount_micros, reason=reason, proposed_by_id=by, proposed_at=at, key=key
    )


@transaction.atomic
def approve(*, refund: Refund, by: int, at: datetime) -> Refund:
    """Take the money from the customer's cash and let a sweep send it. `by` is another person than the proposer.

    Raises RefundTooLarge where the customer has spent it meanwhile.
    """
    payment = refund.payment
    payer = accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    decisions.decide(refund, State.APPROVED, by=by, at=at, moves=MOVES, look_at=at)
    try:
        ledger.transfer(
            key=f"payback-aside:{refund.public_id}",
            source=payer.cash,
            target=accounts.platform(Account.Kind.DEFERRED, payment.currency),
            amount_micros=refund.amount_micros,
            reason=f"Refund {refund.public_id} of {payment.public_id}",
            at=at,
        )
    except InsufficientFunds as error:
        raise RefundTooLarge(
            asked_micros=refund.amount_micros, left_micros=max(0, payer.cash.free_micros), currency=payment.currency
        ) from error
    runway.refresh(organization=payment.organization, at=at)
    return refund


@transaction.atomic
def decline(*, refund: Refund, by: int, at: datetime) -> None:
    """Refund nothing; whoever proposed may take the proposal back in this way too."""
    accounts.lock(organization_id=refund.payment.organization_id, currency=refund.payment.currency)
    decisions.decide(refund, State.DECLINED, by=by, at=at, moves=MOVES)


def rows() -> QuerySet[Refund]:
    """Return all refunds with what is shown of them, the newest first."""
    return Refund.objects.select_related("payment__organization", "proposed_by", "decided_by").order_by("-pk")


def look(*, refund_id: int, at: datetime) -> Refund:
    """Send a refund that was approved, or look what became of it. Network."""
    refund = rows().get(pk=refund_id)
    if refund.state == State.APPROVED:
        return _send(refund, at=at)
    if refund.state == State.SENDING:
        assert refund.sent_at is not None
        if at < refund.sent_at + ANSWER_WITHIN:
            return refund
        _move(refund, State.UNKNOWN)
    Refund.objects.filter(pk=refund.pk).update(look_at=at + LOOK_AGAIN_MOST)
    if refund.processor_id:
        return apply(refund, gateway.refunded(refund.processor_id), at=at)
    found = gateway.find_refund(intent_id=refund.payment.processor_id, key=refund.processor_key)
    if found is not None:
        return apply(refund, found, at=at)
    assert refund.sent_at is not None
    if at >= refund.sent_at + KEY_LIFE:
        _fail(refund, "It never reached the processor.", at=at)
        return refund
    return _send(refund, at=at)


def look_due(*, at: datetime, limit: int = 20) -> int:
    """Send what is approved and look at what is open and due; return how many."""
    if not gateway.is_there():
        return 0
    due = Refund.objects.filter(look_at__lte=at, state__in=TO_LOOK_AT).order_by("look_at")[:limit]
    looked = 0
    for refund in due:
        try:
            looked += look(refund_id=refund.pk, at=at) is not None
        except (OutcomeUnknown, ProcessorRefused, Stranger) as error:
            log.warning("refund %s was not looked at: %s", refund.public_id, error)
    return looked


def of_key(key: str) -> Refund:
    """Return the refund to which an object of the processor belongs, or raise Stranger."""
    purpose, _, public_id = key.partition(":")
    found = rows().filter(public_id=public_id).first()
    if purpose != "payback" or found is None:
        raise Stranger("it belongs to none of our refunds")
    return found


def apply(refund: Refund, made: PaidBack, *, at: datetime) -> Refund:
    """Bring a refund to where the processor's object is; money moves once each way."""
    ours = (refund.processor_key, refund.payment.processor_id, refund.payment.currency, refund.amount_micros)
    if ours != (made.key, made.intent_id, made.currency, made.amount_micros):
        log.error("refund %s is not what the processor has as %s", refund.public_id, made.id)
        raise Stranger(f"{made.id} is not what {refund.public_id} asked for")
    Refund.objects.filter(pk=refund.pk, processor_id="").update(processor_id=made.id)
    if made.status == "succeeded":
        _succeed(refund, at=at)
    elif made.status in {"failed", "canceled"}:
        _fail(refund, made.failure_text or made.status, at=at)
    else:
        _move(refund, State.PROCESSING, look_at=at + LOOK_AGAIN_MOST)
    return rows().get(pk=refund.pk)


def look_at_found(*, made: PaidBack, at: datetime) -> Refund:
    """Book what was given back at the processor by nobody here. Network. Raises Stranger where it is none of ours."""
    paying.learn(intent_id=made.intent_id, at=at)
    return _found(made, at=at)


@transaction.atomic
def _found(made: PaidBack, *, at: datetime) -> Refund:
    """Take it from the customer's cash, once; what is not there is owed. One that came back is the customer's again."""
    paid = Payment.objects.select_related("organization").filter(processor_id=made.intent_id, currency=made.currency)
    payment = paid.filter(state=Payment.State.SUCCEEDED, amount_micros__gte=made.amount_micros).first()
    if payment is None:
        raise Stranger(f"{made.id} gives back none of our payments")
    payer = accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    known = rows().filter(processor_id=made.id).first()
    if known is not None or made.status != "succeeded":
        if known is None:
            raise Stranger(f"{made.id} gave back nothing: {made.status}")
        if made.status in {"failed", "canceled"}:
            _fail(known, made.failure_text or made.status, at=at)
        return known
    refund = Refund.objects.create(
        payment=payment, amount_micros=made.amount_micros, reason="Made at the processor", state=State.SUCCEEDED,
        key=uuid5(NAMESPACE_URL, made.id), processor_id=made.id, proposed_at=at, found_at=at,
    )  # fmt: skip
    (cash,), owed = rating.take_in_turn(refund.amount_micros, [max(0, payer.cash.free_micros)])
    for source, micros in ((payer.cash, cash), (payer.receivable, owed)):
        if micros:
            ledger.transfer(
                key=f"{refund.processor_key}:{source.kind}",
                source=source,
                target=accounts.platform(Account.Kind.PROCESSOR, payment.currency),
                amount_micros=micros,
                reason=f"Refund {refund.public_id} of {payment.public_id}",
                at=at,
            )
    runway.refresh(organization=payment.organization, at=at)
    collecting.review(organization=payment.organization, at=at)
    log.error("refund %s of payment %s was made at the processor", refund.public_id, payment.public_id)
    return refund


def _send(refund: Refund, *, at: datetime) -> Refund:
    sent_at = refund.sent_at or at
    if not _move(refund, State.SENDING, sent_at=sent_at, look_at=at + ANSWER_WITHIN):
        return refund
    try:
        made = gateway.refund(
            key=refund.processor_key,
            intent_id=refund.payment.processor_id,
            amount_micros=refund.amount_micros,
            currency=refund.payment.currency,
        )
    except OutcomeUnknown as error:
        log.warning("refund %s: %s", refund.public_id, error)
        _move(refund, State.UNKNOWN, look_at=at + LOOK_AGAIN_LEAST)
        return refund
    except ProcessorRefused as refusal:
        _fail(refund, str(refusal), at=at)
        return refund
    return apply(refund, made, at=at)


@transaction.atomic
def _succeed(refund: Refund, *, at: datetime) -> None:
    payment = refund.payment
    accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    if _move(refund, State.SUCCEEDED, look_at=None):
        ledger.transfer(
            key=refund.processor_key,
            source=accounts.platform(Account.Kind.DEFERRED, payment.currency),
            target=accounts.platform(Account.Kind.PROCESSOR, payment.currency),
            amount_micros=refund.amount_micros,
            reason=f"Refund {refund.public_id} of {payment.public_id}",
            at=at,
        )


@transaction.atomic
def _fail(refund: Refund, why: str, *, at: datetime) -> None:
    """Give the money back to the customer's cash, from where it is now."""
    payment = refund.payment
    payer = accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    was_sent = Refund.objects.filter(pk=refund.pk, state=State.SUCCEEDED).exists()
    if not _move(refund, State.FAILED, failure_text=why[:300], look_at=None):
        return
    source = Account.Kind.PROCESSOR if was_sent else Account.Kind.DEFERRED
    key = f"payback-failed:{refund.public_id}" if was_sent else f"payback-kept:{refund.public_id}"
    ledger.transfer(
        key=key,
        source=accounts.platform(source, payment.currency),
        target=payer.cash,
        amount_micros=refund.amount_micros,
        reason=f"Refund {refund.public_id} could not be paid",
        at=at,
    )
    receivables.settle(freed=payer.cash, cause=key, at=at)
    runway.refresh(organization=payment.organization, at=at)


def _move(refund: Refund, state: State, **facts: object) -> bool:
    if not moves.move(refund, state, MOVES, **facts):
        return False
    refund.refresh_from_db(fields=["state", "sent_at", "look_at", "failure_text", "processor_id"])
    log.info("refund %s: %s", refund.public_id, state)
    return True
