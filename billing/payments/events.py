"""What the processor tells us: stored once by its id, then handled by looking at the object that it is about.

An event only says where to look, so it does not matter in which order, how often or how late events come, and an event
that never came is found by `fetch_missed`.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from billing.errors import OutcomeUnknown, ProcessorRefused, Stranger
from billing.models import Payment, PayoutAccount, ProcessorCustomer, ProcessorEvent, Refund
from billing.payments import cards, disputes, gateway, paying, refunds
from billing.payments.objects import Event
from billing.suppliers import connecting, payouts

LOOK_BACK = timedelta(hours=36)
TRIES_MAX = 50
NOT_OURS = "nothing of ours follows from it"

log = logging.getLogger(__name__)


def receive(*, event: Event, at: datetime) -> bool:
    """Keep an event, once by its id; return whether it is new. Its signature was verified by `gateway`."""
    row = ProcessorEvent(
        event_id=event.id[:100],
        type=event.type[:80],
        object_id=event.object_id[:100],
        payload=dict(event.facts),
        created_at=event.at,
        received_at=at,
        look_at=at,
    )
    before = ProcessorEvent.objects.filter(event_id=row.event_id).exists()
    ProcessorEvent.objects.bulk_create([row], ignore_conflicts=True)
    return not before


def handle(*, event_id: str, at: datetime) -> str:
    """Look at what an event is about, and return what came of it. Network. Handling it again changes nothing."""
    event = ProcessorEvent.objects.get(event_id=event_id)
    try:
        outcome = _handled(event, at=at)
    except (Stranger, ProcessorRefused) as refusal:
        outcome = f"refused: {refusal}"[:300]
        log.error("event %s (%s) was refused: %s", event.event_id, event.type, refusal)
    except OutcomeUnknown as error:
        _later(event, str(error), at=at)
        return ""
    ProcessorEvent.objects.filter(pk=event.pk).update(handled_at=at, outcome=outcome, look_at=None)
    return outcome


def handle_due(*, at: datetime, limit: int = 50) -> int:
    """Handle what came and was not handled, the oldest first; return how many."""
    if not gateway.is_there():
        return 0
    due = ProcessorEvent.objects.filter(handled_at=None, look_at__lte=at).order_by("look_at", "pk")[:limit]
    handled = 0
    for event in due:
        try:
            handled += bool(handle(event_id=event.event_id, at=at))
        except Exception as error:  # one event that fails must not keep the others from it
            log.exception("event %s was not handled", event.event_id)
            _later(event, repr(error), at=at)
    return handled


def fetch_missed(*, at: datetime) -> int:
    """Ask the processor what happened lately, and keep what no webhook told us; return how many. Network."""
    return sum(receive(event=event, at=at) for event in gateway.events(since=at - LOOK_BACK))


def _handled(event: ProcessorEvent, *, at: datetime) -> str:
    # What happened within a supplier's own account names that account beside its object.
    about = {"account": event.payload.get("account"), **event.payload["data"]["object"]}
    handler = next((verb for prefix, verb in HANDLERS.items() if event.type.startswith(prefix)), None)
    return handler(event.object_id, about, at) if handler else NOT_OURS


def _intent(intent_id: str, about: Mapping[str, Any], at: datetime) -> str:
    made = gateway.intent(intent_id)
    return _said(paying.apply_intent(paying.of_key(made.key), made, at=at))


def _session(session_id: str, about: Mapping[str, Any], at: datetime) -> str:
    page = gateway.hosted(session_id)
    if page.key.startswith("setup:"):
        return _cards("", {"customer": page.customer_id}, at)
    payment = paying.apply_hosted(paying.of_key(page.key), page, at=at)
    cards.refresh(organization=payment.organization, at=at)
    return _said(payment)


def _cards(card_id: str, about: Mapping[str, Any], at: datetime) -> str:
    """Look at an organization's cards again. One that was removed names nobody any more, but we know whose it was."""
    customer = str(about.get("customer") or "")
    known = ProcessorCustomer.objects.select_related("organization")
    row = (
        known.filter(processor_id=customer).first()
        if customer
        else known.filter(organization__cards__processor_id=card_id).first()
    )
    if row is None:
        raise Stranger("it belongs to none of our customers")
    cards.refresh(organization=row.organization, at=at)
    return "looked at the cards"


def _refund(refund_id: str, about: Mapping[str, Any], at: datetime) -> str:
    made = gateway.refunded(refund_id)
    if made.key:
        refund = refunds.apply(refunds.of_key(made.key), made, at=at)
    else:
        refund = refunds.look_at_found(made=made, at=at)
    return f"{refund.public_id} is {refund.state}"


def _dispute(dispute_id: str, about: Mapping[str, Any], at: datetime) -> str:
    dispute = disputes.look(dispute_id=dispute_id, at=at)
    return f"{dispute.public_id} is {dispute.state}"


def _refunds_of(charge_id: str, about: Mapping[str, Any], at: datetime) -> str:
    payment = Payment.objects.filter(charge_id=charge_id).exclude(charge_id="").first()
    if payment is None:
        raise Stranger("it belongs to none of our payments")
    for refund in Refund.objects.filter(payment=payment, state__in=refunds.TO_LOOK_AT):
        refunds.look(refund_id=refund.pk, at=at)
    return f"looked at the refunds of {payment.public_id}"


def _account(account_id: str, about: Mapping[str, Any], at: datetime) -> str:
    """Look at a supplier's account again: it is the object, or where its object is."""
    wanted = account_id if account_id.startswith("acct_") else str(about.get("account") or "")
    account = PayoutAccount.objects.filter(processor_id=wanted).exclude(processor_id="").first()
    if account is None:
        raise Stranger("it belongs to none of our suppliers")
    connecting.look(account=account, at=at)
    return f"{account.public_id} {'can' if account.can_be_paid else 'cannot'} be paid"


def _transfer(transfer_id: str, about: Mapping[str, Any], at: datetime) -> str:
    payout = payouts.look_at_transfer(transfer_id=transfer_id, at=at)
    return f"{payout.public_id} is {payout.state}"


def _to_a_bank(payout_id: str, about: Mapping[str, Any], at: datetime) -> str:
    """What goes to a supplier's bank may have shown that it cannot; what goes to ours is on the daily statement."""
    return _account(payout_id, about, at) if about.get("account") else "it comes with the daily statement"


def _said(payment: Payment) -> str:
    return f"{payment.public_id} is {payment.state}"


def _later(event: ProcessorEvent, why: str, *, at: datetime) -> None:
    """Try again, more and more rarely; after many tries leave it to people, who see it in the console."""
    pause = timedelta(seconds=min(10 * 2**event.tries, 3600))
    ProcessorEvent.objects.filter(pk=event.pk).update(
        tries=event.tries + 1, outcome=why[:300], look_at=at + pause if event.tries < TRIES_MAX else None
    )


# What an event's type begins with, and who looks at its object.
HANDLERS: Mapping[str, Callable[[str, Mapping[str, Any], datetime], str]] = {
    "payment_intent.": _intent,
    "checkout.session.": _session,
    "setup_intent.": _cards,
    "payment_method.": _cards,
    "refund.": _refund,
    "charge.dispute.": _dispute,
    "charge.refunded": _refunds_of,
    "account.": _account,
    "transfer.": _transfer,
    "payout.": _to_a_bank,
}
