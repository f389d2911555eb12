"""Payments by card: ordered in a transaction, sent outside of one, and what became of them.

    created -> sending -> needs_action, processing -> succeeded, failed or cancelled
                  |
               unknown: no answer, or a worker that died; resolved by looking

The row is committed in `sending` before the call, with its id as idempotency key. Whoever finds it there later looks
for the processor's object with that key. If there is none the same call is sent again with the same key, which the
processor executes once; never after `KEY_LIFE`, because then it may have forgotten the key.

An invoice is charged once: before a charge is sent, whatever else would pay the same invoice once its customer
confirms it is cancelled at the processor, and so is what waits for its customer when the invoice was paid otherwise.
A cancellation that comes too late is resolved by looking: that payment is paid, the other is not sent. Money that
came twice all the same (a transfer by bank that crossed it) is the customer's: it pays what else is owed, the rest is
cash, and goes back by a refund where they ask for one.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from billing import accounts, collecting, invoice_payments, ledger, moves, notices, receivables, runway
from billing.errors import BadAmount, KeyReused, NoCard, NoProcessor, OutcomeUnknown, ProcessorRefused, Stranger
from billing.invoicing.rounding import LEAST_UNITS, minor_unit_micros
from billing.models import Account, Card, Notice, Payment
from billing.models.payments import OPEN_STATES
from billing.notices import News
from billing.payments import customers, gateway
from billing.payments.objects import Hosted, Intent

State = Payment.State
MOVES: dict[State, tuple[State, ...]] = {
    State.CREATED: (State.SENDING, State.SUCCEEDED, State.FAILED, State.CANCELLED),
    State.SENDING: (
        State.UNKNOWN, State.NEEDS_ACTION, State.PROCESSING, State.SUCCEEDED, State.FAILED, State.CANCELLED,
    ),
    State.UNKNOWN: (
        State.SENDING, State.NEEDS_ACTION, State.PROCESSING, State.SUCCEEDED, State.FAILED, State.CANCELLED,
    ),
    State.NEEDS_ACTION: (State.PROCESSING, State.SUCCEEDED, State.FAILED, State.CANCELLED),
    State.PROCESSING: (State.SUCCEEDED, State.FAILED, State.CANCELLED),
    # Money that came is ours to book, whatever we had believed before (also after a database was restored).
    State.FAILED: (State.SUCCEEDED,),
    State.CANCELLED: (State.SUCCEEDED,),
    State.SUCCEEDED: (),
}  # fmt: skip
LEAST_TOP_UP_UNITS, MOST_UNITS = 500, 10_000_000  # minor units
# The processor remembers a key for 24 hours.
KEY_LIFE = timedelta(hours=23)
ANSWER_WITHIN = timedelta(minutes=2)
LOOK_AGAIN_LEAST, LOOK_AGAIN_MOST = timedelta(seconds=10), timedelta(hours=1)
ATTENDED_WITHIN = timedelta(days=7)

log = logging.getLogger(__name__)


def charge(
    *,
    organization: accounts.Organization,
    amount_micros: int,
    purpose: Payment.Purpose,
    key: str,
    at: datetime,
    card: Card | None = None,
    reference: str = "",
) -> Payment:
    """Order a charge of a saved card, the default one if none is named, while its owner is away. Once per key."""
    if card is None:
        card = Card.objects.filter(organization_id=organization.pk, is_default=True).first()
    if card is None or card.removed_at is not None:
        raise NoCard("there is no card that can be charged")
    order = Payment(purpose=purpose, key=key, card=card, reference=reference, created_at=at)
    return _ordered(order, organization, amount_micros, least=LEAST_UNITS)


def top_up(
    *, organization: accounts.Organization, amount_micros: int, key: str, at: datetime, card: Card | None = None
) -> Payment:
    """Order a top-up by a customer who is there, once per key: with this card, or one that they give the processor."""
    if card is not None and card.removed_at is not None:
        raise NoCard("this card was removed")
    order = Payment(purpose=Payment.Purpose.TOP_UP, key=key, card=card, is_on_session=True, created_at=at)
    return _ordered(order, organization, amount_micros, least=LEAST_TOP_UP_UNITS)


@transaction.atomic
def _ordered(order: Payment, organization: accounts.Organization, amount_micros: int, *, least: int) -> Payment:
    if not gateway.is_there():
        raise NoProcessor("no keys of the card processor were given")
    if order.card is not None and order.card.organization_id != organization.pk:
        raise NoCard("this is another organization's card")
    unit = minor_unit_micros(organization.currency)
    if not least * unit <= amount_micros <= MOST_UNITS * unit or amount_micros % unit:
        raise BadAmount(least_micros=least * unit, most_micros=MOST_UNITS * unit, currency=organization.currency)
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    order.organization_id = organization.pk
    order.amount_micros, order.currency = amount_micros, organization.currency
    order.look_at = order.created_at
    first = Payment.objects.filter(key=order.key).first()
    if first is None:
        order.save(force_insert=True)
        return order
    same = ("organization_id", "amount_micros", "purpose", "reference", "card_id")
    if any(getattr(first, name) != getattr(order, name) for name in same):
        raise KeyReused(order.key)
    return first


def send(*, payment_id: int, at: datetime) -> Payment:
    """Send a payment that was not sent yet, and write down the answer. Network. Whoever comes second does nothing."""
    payment = _read(payment_id)
    if payment.state != State.CREATED:
        return payment
    try:
        if not _is_its_turn(payment, at=at):
            return _read(payment_id)
        customer = customers.customer_id(payment.organization)
    except OutcomeUnknown as error:
        log.warning("payment %s waits: %s", payment.public_id, error)
        _look_later(payment, at=at)
        return payment
    except ProcessorRefused as refusal:
        return _refused(payment, refusal, at=at)
    if not move(payment, State.SENDING, at=at, sent_at=at, look_at=at + ANSWER_WITHIN):
        return _read(payment_id)
    return _call(payment, customer, at=at)


def look(*, payment_id: int, at: datetime) -> Payment:
    """Look what became of a payment, and send it again where it never arrived and its key is still remembered."""
    payment = _read(payment_id)
    if payment.state == State.CREATED:
        return send(payment_id=payment_id, at=at)
    if not payment.is_open:
        return payment
    if payment.state == State.SENDING:
        assert payment.sent_at is not None
        if at < payment.sent_at + ANSWER_WITHIN and at < (payment.look_at or at):
            return payment  # its sender may still be waiting for the answer
        move(payment, State.UNKNOWN, at=at, look_at=at)
    _look_later(payment, at=at)
    try:
        return _looked(_read(payment_id), at=at)
    except (OutcomeUnknown, ProcessorRefused) as error:
        log.warning("payment %s could not be looked at: %s", payment.public_id, error)
        return _read(payment_id)


def look_due(*, at: datetime, limit: int = 50) -> int:
    """Send what waits and look at what is open and due; return how many. Each on its own, so none stops the others."""
    if not gateway.is_there():
        return 0
    due = Payment.objects.filter(look_at__lte=at).order_by("look_at").values_list("pk", flat=True)[:limit]
    return sum(_tried(look, payment_id=key, at=at) for key in due)


def continue_url(*, payment: Payment, at: datetime) -> str:
    """Return where the customer finishes a payment that needs them; empty where nothing is left to do. Network.

    One for an invoice that was paid otherwise meanwhile is ended instead.
    """
    if payment.state != State.NEEDS_ACTION:
        return ""
    if not _is_wanted(payment):
        cancel(payment=payment, at=at)
        return ""
    if payment.session_id:
        page = gateway.hosted(payment.session_id)
        apply_hosted(payment, page, at=at)
        return page.url if page.status == "open" else ""
    made = gateway.intent(payment.processor_id)
    if made.status in {"requires_payment_method", "requires_confirmation"} and payment.card is not None:
        made = gateway.confirm(intent_id=made.id, card_id=payment.card.processor_id, return_url=page_of(payment))
    apply_intent(payment, made, at=at)
    return made.continue_url


def cancel(*, payment: Payment, at: datetime) -> Payment:
    """End a payment that waits for its customer. Where it was paid at the same moment, it is paid. Network."""
    if payment.state == State.CREATED:
        move(payment, State.CANCELLED, at=at)
    elif payment.session_id:
        apply_hosted(payment, gateway.close_hosted(payment.session_id), at=at)
    elif payment.state == State.NEEDS_ACTION:
        try:
            made = gateway.cancel(payment.processor_id)
        except ProcessorRefused as refusal:
            log.warning("payment %s was not cancelled: %s", payment.public_id, refusal)
            made = gateway.intent(payment.processor_id)
        apply_intent(payment, made, at=at)
    return _read(payment.pk)


def _is_wanted(payment: Payment) -> bool:
    """Return whether as much as a payment brings is still to be paid of its invoice; of a top-up, that it is."""
    if payment.purpose != Payment.Purpose.INVOICE:
        return True
    left = invoice_payments.chargeable_micros(payment.reference, payment.organization)
    return left is None or left >= payment.amount_micros


def _is_its_turn(payment: Payment, *, at: datetime) -> bool:
    """End what else would pay the same invoice once its customer confirms it; return whether nothing else can pay now.

    What was confirmed at the same moment is paid, and then this one is cancelled; until that is known it waits.
    """
    if payment.purpose != Payment.Purpose.INVOICE or not payment.reference:
        return True
    others = Payment.objects.select_related("organization", "card").filter(
        organization=payment.organization_id, purpose=payment.purpose, reference=payment.reference,
        state__in=(State.NEEDS_ACTION, State.PROCESSING),
    )  # fmt: skip
    if any(cancel(payment=other, at=at).is_open for other in others.exclude(pk=payment.pk)):
        _look_later(payment, at=at)
        return False
    if not _is_wanted(payment):
        cancel(payment=payment, at=at)
        return False
    return True


def page_of(payment: Payment) -> str:
    """Return the address of a payment's page, to which the processor sends its customer back."""
    return f"{settings.PUBLIC_URL}/payments/{payment.public_id}"


def apply_intent(payment: Payment, made: Intent, *, at: datetime) -> Payment:
    """Bring a payment to where the processor's object is; money moves once. Raises Stranger for what is not its own."""
    _refuse_stranger(payment, made)
    state = _state_of(payment, made)
    facts = {"processor_id": made.id, "charge_id": made.charge_id}
    if state == State.FAILED:
        facts |= {"failure_code": made.failure_code[:64], "failure_text": made.failure_text[:300]}
    _arrive(payment, state, at=at, **facts)
    return _read(payment.pk)


def apply_hosted(payment: Payment, page: Hosted, *, at: datetime) -> Payment:
    """Bring a payment to where the processor's page for it is."""
    if page.key != payment.processor_key or page.customer_id != customers.known_id(payment.organization_id):
        raise Stranger(f"{page.id} is not the page of {payment.public_id}")
    if page.intent_id:
        return apply_intent(payment, gateway.intent(page.intent_id), at=at)
    state = State.CANCELLED if page.status == "expired" else State.NEEDS_ACTION
    _arrive(payment, state, at=at, session_id=page.id)
    return _read(payment.pk)


def learn(*, intent_id: str, at: datetime) -> None:
    """Look at the payment that this object of the processor is, unless we have heard that it was paid. Network.

    What happens to a payment later may be told before. Raises Stranger for what is none of ours.
    """
    if not Payment.objects.filter(processor_id=intent_id).exclude(charge_id="").exists():
        made = gateway.intent(intent_id)
        apply_intent(of_key(made.key), made, at=at)


def of_key(key: str) -> Payment:
    """Return the payment to which an object of the processor belongs, or raise Stranger."""
    purpose, _, public_id = key.partition(":")
    found = Payment.objects.select_related("organization", "card").filter(public_id=public_id).first()
    if purpose != "payment" or found is None:
        raise Stranger("it belongs to none of our payments")
    return found


@transaction.atomic
def move(payment: Payment, state: State, *, at: datetime, **facts: object) -> bool:
    """Move a payment if the map allows it from where it is; with success its money moves. Return whether it did."""
    payer = accounts.lock(organization_id=payment.organization_id, currency=payment.currency)
    written: dict[str, object] = {} if state in OPEN_STATES else {"look_at": None, "finished_at": at}
    if state == State.SUCCEEDED:
        written |= {"failure_code": "", "failure_text": ""}
    if not moves.move(payment, state, MOVES, **(written | facts)):
        return False
    if state == State.SUCCEEDED:
        _book(payment, payer, at=at)
    if state == State.NEEDS_ACTION and payment.purpose == Payment.Purpose.AUTOMATIC:
        _tell(payment, at=at)
    log.info("payment %s: %s", payment.public_id, state)
    payment.refresh_from_db()
    return True


def _tell(payment: Payment, *, at: datetime) -> None:
    """Tell whoever was not there that their bank waits for them; dunning tells it of charges for invoices."""
    facts = {"left_micros": str(payment.amount_micros), "currency": payment.currency, "page": page_of(payment)}
    key = f"needs_action:{payment.public_id}"
    notices.tell([News(payment.organization_id, Notice.Kind.PAYMENT_NEEDS_YOU, key, facts)], at=at)


def _book(payment: Payment, payer: accounts.CustomerAccounts, *, at: datetime) -> None:
    ledger.transfer(
        key=payment.processor_key,
        source=accounts.platform(Account.Kind.PROCESSOR, payment.currency),
        target=payer.cash,
        amount_micros=payment.amount_micros,
        reason=f"{payment.get_purpose_display()} {payment.public_id}",
        at=at,
    )
    if payment.purpose == Payment.Purpose.INVOICE:
        invoice_payments.pay_named(
            payment.reference, payment.organization, payment.amount_micros, payment.processor_key, at
        )
    receivables.settle(freed=payer.cash, cause=payment.processor_key, at=at)
    runway.refresh(organization=payment.organization, at=at)
    collecting.review(organization=payment.organization, at=at)


def _call(payment: Payment, customer: str, *, at: datetime) -> Payment:
    """Make the one call of a payment that is in `sending`."""
    try:
        if payment.card is None:
            page = gateway.hosted_payment(
                key=payment.processor_key,
                customer_id=customer,
                amount_micros=payment.amount_micros,
                currency=payment.currency,
                text=payment.get_purpose_display(),
                done_url=page_of(payment),
                back_url=page_of(payment),
            )
            return apply_hosted(payment, page, at=at)
        made = gateway.pay(
            key=payment.processor_key,
            customer_id=customer,
            card_id=payment.card.processor_id,
            amount_micros=payment.amount_micros,
            currency=payment.currency,
            return_url=page_of(payment) if payment.is_on_session else "",
        )
        return apply_intent(payment, made, at=at)
    except OutcomeUnknown as error:
        log.warning("payment %s: %s", payment.public_id, error)
        move(payment, State.UNKNOWN, at=at, look_at=at + LOOK_AGAIN_LEAST)
        return _read(payment.pk)
    except ProcessorRefused as refusal:
        return _refused(payment, refusal, at=at)


def _looked(payment: Payment, *, at: datetime) -> Payment:
    customer = customers.known_id(payment.organization_id)
    if payment.processor_id:
        payment = apply_intent(payment, gateway.intent(payment.processor_id), at=at)
    elif payment.session_id:
        payment = apply_hosted(payment, gateway.hosted(payment.session_id), at=at)
    elif made := gateway.find_intent(customer_id=customer, key=payment.processor_key):
        payment = apply_intent(payment, made, at=at)
    elif payment.card is None and (page := gateway.find_hosted(customer_id=customer, key=payment.processor_key)):
        payment = apply_hosted(payment, page, at=at)
    elif payment.state == State.UNKNOWN:
        payment = _never_arrived(payment, customer, at=at)
    if payment.state != State.NEEDS_ACTION:
        return payment
    if at > payment.created_at + ATTENDED_WITHIN or not _is_wanted(payment):
        return cancel(payment=payment, at=at)
    return payment


def _never_arrived(payment: Payment, customer: str, *, at: datetime) -> Payment:
    """The processor knows no object with this key: send it again while the key counts, give up afterwards."""
    assert payment.sent_at is not None
    if at >= payment.sent_at + KEY_LIFE:
        move(payment, State.FAILED, at=at, failure_code="never_arrived", failure_text="It never reached the processor.")
        return payment
    if not move(payment, State.SENDING, at=at, look_at=at + ANSWER_WITHIN):
        return _read(payment.pk)
    return _call(payment, customer, at=at)


def _arrive(payment: Payment, state: State, *, at: datetime, **facts: object) -> None:
    """Move to a state that the processor reported; where it is there already, or beyond, only learn its ids."""
    look_at = at + LOOK_AGAIN_MOST if state in OPEN_STATES else None
    if not move(payment, state, at=at, **({"look_at": look_at} | facts)):
        ids = {name: value for name, value in facts.items() if name.endswith("_id") and value}
        Payment.objects.filter(pk=payment.pk).update(**ids)


def _state_of(payment: Payment, made: Intent) -> State:
    if made.status == "succeeded":
        return State.SUCCEEDED
    if made.status == "canceled":
        return State.CANCELLED
    if made.status in {"processing", "requires_capture"}:
        return State.PROCESSING
    # On the processor's page the customer may try another card until they leave.
    is_at_hosted_page = payment.card_id is None
    is_declined = made.status == "requires_payment_method" and made.failure_code not in {"", "authentication_required"}
    return State.FAILED if is_declined and not is_at_hosted_page else State.NEEDS_ACTION


def _refuse_stranger(payment: Payment, made: Intent) -> None:
    ours = (payment.processor_key, customers.known_id(payment.organization_id), payment.currency, payment.amount_micros)
    theirs = (made.key, made.customer_id, made.currency, made.amount_micros)
    is_short = made.status == "succeeded" and made.received_micros != payment.amount_micros
    if ours != theirs or is_short or (payment.processor_id and payment.processor_id != made.id):
        log.error("payment %s is not what the processor has as %s", payment.public_id, made.id)
        raise Stranger(f"{made.id} is not what {payment.public_id} asked for")


def _refused(payment: Payment, refusal: ProcessorRefused, *, at: datetime) -> Payment:
    move(payment, State.FAILED, at=at, failure_code=refusal.code[:64], failure_text=str(refusal)[:300])
    return _read(payment.pk)


def _look_later(payment: Payment, *, at: datetime) -> None:
    """Look again after as long as it has been open, so that an outage costs few calls."""
    waited = at - (payment.sent_at or payment.created_at)
    pause = min(max(waited, LOOK_AGAIN_LEAST), LOOK_AGAIN_MOST)
    Payment.objects.filter(pk=payment.pk, state__in=OPEN_STATES).update(look_at=at + pause)


def _tried(verb: Callable[..., object], **order: object) -> bool:
    try:
        verb(**order)
    except Exception:  # one payment that fails must not keep the others from it
        log.exception("a payment was not looked at: %s", order)
        return False
    return True


def _read(payment_id: int) -> Payment:
    return Payment.objects.select_related("organization", "card").get(pk=payment_id)
