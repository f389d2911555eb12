"""Disputes: a bank takes a payment back. The customer owes it again, and gets it back where we win.

What it had paid is owed for its invoices again (`taken_back`), which are asked for by their dunning; what we win pays
them first. Until the customer pays, no card of which a bank took something back is charged by itself.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from billing import accounts, collecting, ledger, moves, notices, rating, receivables, runway, taken_back
from billing.errors import Stranger
from billing.models import Account, Dispute, Notice, Payment, Transfer
from billing.payments import automatic, gateway, paying
from billing.payments.objects import Disputed

State = Dispute.State
MOVES: dict[State, tuple[State, ...]] = {
    State.OPEN: (State.TAKEN, State.WON, State.LOST),
    State.TAKEN: (State.WON, State.LOST),
    State.WON: (),
    State.LOST: (),
}

log = logging.getLogger(__name__)


def look(*, dispute_id: str, at: datetime) -> Dispute:
    """Bring a dispute to where the processor's object is. Network. Raises Stranger for a payment that is not ours.

    A payment of which we have not heard yet that it was paid is looked at first.
    """
    disputed = gateway.dispute(dispute_id)
    if disputed.intent_id:
        paying.learn(intent_id=disputed.intent_id, at=at)
    return apply(disputed, at=at)


@transaction.atomic
def apply(disputed: Disputed, *, at: datetime) -> Dispute:
    """Write down how a dispute stands, and move what the bank took or gave back, each once."""
    payment = _payment_of(disputed)
    payer = accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    row, _ = Dispute.objects.get_or_create(
        processor_id=disputed.id,
        defaults={
            "payment": payment,
            "amount_micros": disputed.amount_micros,
            "reason": disputed.reason,
            "opened_at": at,
            "changed_at": at,
        },
    )
    if disputed.taken_micros and not _has_moved(f"dispute:{row.public_id}:"):
        _take(row, payment, payer, disputed.taken_micros, at=at)
    if disputed.returned_micros and not _has_moved(f"dispute-won:{row.public_id}"):
        _give_back(row, payment, payer, disputed.returned_micros, at=at)
    state = _state_of(disputed)
    if moves.move(row, state, MOVES, changed_at=at):
        log.warning("dispute %s of payment %s: %s", disputed.id, payment.public_id, state)
    row.refresh_from_db()
    return row


def took_back(*, organization: accounts.Organization) -> bool:
    """Return whether a bank took back what was charged to the organization's default card, and we have not won it."""
    taken = Dispute.objects.filter(payment__organization=organization.pk, state__in=(State.TAKEN, State.LOST))
    return taken.filter(payment__card__is_default=True).exists()


def _payment_of(disputed: Disputed) -> Payment:
    by_intent = Q(processor_id=disputed.intent_id) if disputed.intent_id else Q(charge_id=disputed.charge_id)
    found = Payment.objects.select_related("organization").filter(by_intent, ~Q(charge_id="")).first()
    if found is None or found.currency != disputed.currency or disputed.amount_micros > found.amount_micros:
        raise Stranger(f"{disputed.id} disputes none of our payments")
    return found


def _state_of(disputed: Disputed) -> State:
    if disputed.status in {"won", "warning_closed"} or disputed.returned_micros:
        return State.WON
    if disputed.status == "lost":
        return State.LOST
    return State.TAKEN if disputed.taken_micros else State.OPEN


def _has_moved(key: str) -> bool:
    return Transfer.objects.filter(key__startswith=key).exists()


def _take(row: Dispute, payment: Payment, payer: accounts.CustomerAccounts, micros: int, *, at: datetime) -> None:
    """Take what the bank took from the customer's cash; the rest is owed. Promotional credit is no money of a bank."""
    (from_cash,), owed = rating.take_in_turn(micros, [max(0, payer.cash.free_micros)])
    if from_cash:
        taken_back.take(f"dispute:{row.public_id}:{payer.cash.kind}", row, payer.cash, from_cash, at=at)
    again = taken_back.owe(dispute=row, payer=payer, micros=owed, at=at) if owed else []
    runway.refresh(organization=payment.organization, at=at)
    collecting.review(organization=payment.organization, at=at)
    automatic.pause_for_dispute(organization=payment.organization, at=at)
    notices.tell(_news(row, payment, micros, again), at=at)


def _news(row: Dispute, payment: Payment, micros: int, again: Sequence[taken_back.Again]) -> list[notices.News]:
    """Return what the customer is told: each invoice that is owed again, and what else was taken."""
    facts = {"currency": payment.currency, "payment": payment.public_id}
    told = [
        notices.News(
            payment.organization_id, Notice.Kind.INVOICE_OWED_AGAIN, f"taken:{row.public_id}:{one.invoice.public_id}",
            facts | {"left_micros": str(one.micros), "number": one.invoice.number},
        )
        for one in again
    ]  # fmt: skip
    rest = micros - sum(one.micros for one in again)
    if rest:
        said = facts | {"left_micros": str(rest), "number": ""}
        told.append(
            notices.News(payment.organization_id, Notice.Kind.PAYMENT_TAKEN_BACK, f"taken:{row.public_id}", said)
        )
    return told


def _give_back(row: Dispute, payment: Payment, payer: accounts.CustomerAccounts, micros: int, *, at: datetime) -> None:
    key = f"dispute-won:{row.public_id}"
    ledger.transfer(
        key=key,
        source=accounts.platform(Account.Kind.PROCESSOR, payment.currency),
        target=payer.cash,
        amount_micros=micros,
        reason=f"The dispute of {payment.public_id} was won",
        at=at,
    )
    taken_back.pay_again(dispute=row, micros=micros, cause=key, at=at)
    receivables.settle(freed=payer.cash, cause=key, at=at)
    runway.refresh(organization=payment.organization, at=at)
    collecting.review(organization=payment.organization, at=at)
