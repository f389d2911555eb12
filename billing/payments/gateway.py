"""The card processor as we use it: every call that leaves this machine, and nothing else.

Nothing here touches the database, and a call within a transaction is refused.
Amounts are micros of a currency and become the processor's minor units here.
Every call that changes something takes `key`, our row's id with its purpose,
as idempotency key: within 24 hours the processor answers the same call with
its first answer. Every object it makes carries the same key in its metadata
(`KEY`), by which `reconciliation` finds what belongs to it in our ledger.

Raises ProcessorRefused where the processor said no and did nothing,
OutcomeUnknown where nobody can know whether it did, and NoProcessor where no
keys were given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import stripe
from django.conf import settings
from django.db import transaction

from billing.errors import BadSignature, NoProcessor, OutcomeUnknown, ProcessorRefused
from billing.payments.objects import (
    KEY,
    ConnectAccount,
    Disputed,
    Event,
    Hosted,
    Intent,
    PaidBack,
    SavedCard,
    StatementLine,
    Transferred,
    account_of,
    card_of,
    dispute_of,
    event_of,
    hosted_of,
    intent_of,
    line_of,
    minor_units,
    refund_of,
    transfer_of,
    unix_seconds,
)

if TYPE_CHECKING:
    from stripe.params import BalanceTransactionListParams, TransferCreateParams

TIMEOUT_S = 20
SIGNATURE_AGE_MAX_S = 300
PAGE = 100
PAGES_MAX = 1000


def is_there() -> bool:
    """Return whether cards can be used here at all."""
    return bool(settings.STRIPE_API_KEY)


def customer(*, key: str, name: str) -> str:
    """Make a customer and return its id."""
    with _said():
        made = _client().v1.customers.create({"name": name, "metadata": {KEY: key}}, {"idempotency_key": key})
    return str(made.id)


def hosted_setup(*, key: str, customer_id: str, currency: str, done_url: str, back_url: str) -> Hosted:
    """Open the processor's own page on which a customer saves a card; no card data ever reaches us."""
    with _said():
        made = _client().v1.checkout.sessions.create(
            {
                "mode": "setup",
                "customer": customer_id,
                "currency": currency.lower(),
                "allowed_payment_method_types": ["card"],
                "success_url": done_url,
                "cancel_url": back_url,
                "client_reference_id": key,
                "metadata": {KEY: key},
                "setup_intent_data": {"metadata": {KEY: key}},
            },
            {"idempotency_key": key},
        )
    return hosted_of(made.to_dict())


def hosted_payment(
    *,
    key: str,
    customer_id: str,
    amount_micros: int,
    currency: str,
    text: str,
    done_url: str,
    back_url: str,
) -> Hosted:
    """Open the processor's own page on which a customer pays with a new card, which is kept."""
    with _said():
        made = _client().v1.checkout.sessions.create(
            {
                "mode": "payment",
                "customer": customer_id,
                "allowed_payment_method_types": ["card"],
                "line_items": [
                    {
                        "quantity": 1,
                        "price_data": {
                            "currency": currency.lower(),
                            "unit_amount": minor_units(amount_micros, currency),
                            "product_data": {"name": text},
                        },
                    }
                ],
                "payment_intent_data": {"metadata": {KEY: key}, "setup_future_usage": "off_session"},
                "success_url": done_url,
                "cancel_url": back_url,
                "client_reference_id": key,
                "metadata": {KEY: key},
            },
            {"idempotency_key": key},
        )
    return hosted_of(made.to_dict())


def hosted(session_id: str) -> Hosted:
    """Return what became of a page of the processor's."""
    with _said():
        return hosted_of(_client().v1.checkout.sessions.retrieve(session_id).to_dict())


def close_hosted(session_id: str) -> Hosted:
    """Close a page of the processor's, so that nobody pays on it any more."""
    with _said():
        return hosted_of(_client().v1.checkout.sessions.expire(session_id).to_dict())


def find_hosted(*, customer_id: str, key: str) -> Hosted | None:
    """Return the page that was opened with this key, if there is one."""
    with _said():
        found = _client().v1.checkout.sessions.list({"customer": customer_id, "limit": PAGE})
        for session in _pages(found):
            if session.get("client_reference_id") == key:
                return hosted_of(session)
    return None


def cards(customer_id: str) -> list[SavedCard]:
    """Return the cards that the processor keeps for a customer."""
    with _said():
        found = _client().v1.customers.payment_methods.list(customer_id, {"type": "card", "limit": PAGE})
        return [card_of(method) for method in _pages(found)]


def remove_card(card_id: str) -> None:
    """Let the processor forget a card. What it has forgotten already is no refusal."""
    try:
        with _said():
            _client().v1.payment_methods.detach(card_id)
    except ProcessorRefused as refusal:
        if refusal.code not in {"resource_missing", "payment_method_unexpected_state", "not_attached"}:
            raise


def pay(*, key: str, customer_id: str, card_id: str, amount_micros: int, currency: str, return_url: str = "") -> Intent:
    """Charge a saved card. With `return_url` the customer is there and may have to prove who they are.

    A card that is declined is an answer, not an error: see `Intent.failure_code`.
    """
    try:
        with _said():
            made = _create_intent(
                key=key,
                customer_id=customer_id,
                card_id=card_id,
                amount=minor_units(amount_micros, currency),
                currency=currency,
                return_url=return_url,
            )
    except Declined as declined:
        return declined.intent
    return intent_of(made.to_dict())


def _create_intent(
    *, key: str, customer_id: str, card_id: str, amount: int, currency: str, return_url: str
) -> stripe.PaymentIntent:
    intents, options = _client().v1.payment_intents, _options(key)
    if return_url:
        return intents.create(
            {
                "amount": amount,
                "currency": currency.lower(),
                "customer": customer_id,
                "payment_method": card_id,
                "allowed_payment_method_types": ["card"],
                "metadata": {KEY: key},
                "confirm": True,
                "return_url": return_url,
            },
            options,
        )
    return intents.create(
        {
            "amount": amount,
            "currency": currency.lower(),
            "customer": customer_id,
            "payment_method": card_id,
            "allowed_payment_method_types": ["card"],
            "metadata": {KEY: key},
            "confirm": True,
            "off_session": True,
        },
        options,
    )


def intent(intent_id: str) -> Intent:
    """Return what became of a payment."""
    with _said():
        return intent_of(_client().v1.payment_intents.retrieve(intent_id).to_dict())


def find_intent(*, customer_id: str, key: str) -> Intent | None:
    """Return the payment that was made with this key, if the processor knows one."""
    with _said():
        found = _client().v1.payment_intents.list({"customer": customer_id, "limit": PAGE})
        for made in _pages(found):
            if (made.get("metadata") or {}).get(KEY) == key:
                return intent_of(made)
    return None


def confirm(*, intent_id: str, card_id: str, return_url: str) -> Intent:
    """Try a payment again while the customer is there; the answer says where they prove who they are."""
    try:
        with _said():
            made = _client().v1.payment_intents.confirm(
                intent_id, {"payment_method": card_id, "return_url": return_url}
            )
    except Declined as declined:
        return declined.intent
    return intent_of(made.to_dict())


def cancel(intent_id: str) -> Intent:
    """End a payment that nobody wants any more; ProcessorRefused once it is too late."""
    with _said():
        return intent_of(_client().v1.payment_intents.cancel(intent_id).to_dict())


def refund(*, key: str, intent_id: str, amount_micros: int, currency: str) -> PaidBack:
    """Give part of a payment back to its card."""
    with _said():
        made = _client().v1.refunds.create(
            {"payment_intent": intent_id, "amount": minor_units(amount_micros, currency), "metadata": {KEY: key}},
            {"idempotency_key": key},
        )
    return refund_of(made.to_dict())


def refunded(refund_id: str) -> PaidBack:
    """Return what became of a refund."""
    with _said():
        return refund_of(_client().v1.refunds.retrieve(refund_id).to_dict())


def find_refund(*, intent_id: str, key: str) -> PaidBack | None:
    """Return the refund that was made with this key, if the processor knows one."""
    with _said():
        found = _client().v1.refunds.list({"payment_intent": intent_id, "limit": PAGE})
        for made in _pages(found):
            if (made.get("metadata") or {}).get(KEY) == key:
                return refund_of(made)
    return None


def dispute(dispute_id: str) -> Disputed:
    """Return how a dispute stands."""
    with _said():
        return dispute_of(_client().v1.disputes.retrieve(dispute_id).to_dict())


def connect_account(*, key: str, country: str, email: str) -> ConnectAccount:
    """Make an account through which a supplier is paid; they give the processor their papers by `onboarding_url`."""
    with _said():
        made = _client().v1.accounts.create(
            {
                "country": country,
                "email": email,
                "capabilities": {"transfers": {"requested": True}},
                "controller": {
                    "fees": {"payer": "application"},
                    "losses": {"payments": "application"},
                    "requirement_collection": "stripe",
                    "stripe_dashboard": {"type": "express"},
                },
                "metadata": {KEY: key},
            },
            {"idempotency_key": key},
        )
    return account_of(made.to_dict())


def connected_account(account_id: str) -> ConnectAccount:
    """Return how far a supplier's account is."""
    with _said():
        return account_of(_client().v1.accounts.retrieve(account_id).to_dict())


def onboarding_url(*, account_id: str, refresh_url: str, return_url: str) -> str:
    """Return the address at which a supplier gives the processor their papers; it works once and for minutes."""
    with _said():
        made = _client().v1.account_links.create(
            {
                "account": account_id,
                "type": "account_onboarding",
                "refresh_url": refresh_url,
                "return_url": return_url,
            }
        )
    return str(made.url)


def transfer(*, key: str, account_id: str, amount_micros: int, currency: str, group: str = "") -> Transferred:
    """Move money from our balance to a supplier's account, once per key. `group` is the id of their statement."""
    params: TransferCreateParams = {
        "amount": minor_units(amount_micros, currency),
        "currency": currency.lower(),
        "destination": account_id,
        "metadata": {KEY: key},
    }
    if group:
        params["transfer_group"] = group
    with _said():
        return transfer_of(_client().v1.transfers.create(params, {"idempotency_key": key}).to_dict())


def transferred(transfer_id: str) -> Transferred:
    """Return what became of a transfer."""
    with _said():
        return transfer_of(_client().v1.transfers.retrieve(transfer_id).to_dict())


def find_transfer(*, account_id: str, key: str) -> Transferred | None:
    """Return the transfer that was made with this key, if the processor knows one."""
    with _said():
        found = _client().v1.transfers.list({"destination": account_id, "limit": PAGE})
        for made in _pages(found):
            if (made.get("metadata") or {}).get(KEY) == key:
                return transfer_of(made)
    return None


def reverse_transfer(*, key: str, transfer_id: str, amount_micros: int, currency: str) -> str:
    """Take part of a transfer back, once per key; return the reversal's id. Refused if the account has less."""
    with _said():
        made = _client().v1.transfers.reversals.create(
            transfer_id,
            {"amount": minor_units(amount_micros, currency), "metadata": {KEY: key}},
            {"idempotency_key": key},
        )
    return str(made.id)


def statement(*, since: datetime, after: str = "") -> tuple[list[StatementLine], bool]:
    """Return a page of the lines of our balance at the processor since a moment, and whether there are more.

    The newest come first; `after` is the id of the last line of the page before.
    """
    params: BalanceTransactionListParams = {
        "created": {"gte": unix_seconds(since)},
        "limit": PAGE,
        "expand": ["data.source"],
    }
    if after:
        params["starting_after"] = after
    with _said():
        found = _client().v1.balance_transactions.list(params)
        return [line_of(made.to_dict()) for made in found.data], bool(found.has_more)


def events(*, since: datetime) -> Iterator[Event]:
    """Yield what happened at the processor since a moment, newest first: for what no webhook told us."""
    with _said():
        found = _client().v1.events.list({"created": {"gte": unix_seconds(since)}, "limit": PAGE})
        for made in _pages(found):
            yield event_of(made)


def signed_event(*, body: bytes, signature: str) -> Event:
    """Return what a webhook says, or raise BadSignature: forged, stale, or in no form of the processor's.

    It is signed with any of our secrets: what happens in suppliers' accounts comes from an endpoint of its own.
    """
    refusals = []
    for secret in settings.STRIPE_WEBHOOK_SECRET.split(","):
        try:
            made = stripe.Webhook.construct_event(
                body, signature, secret.strip(), SIGNATURE_AGE_MAX_S, api_key=settings.STRIPE_API_KEY
            )
            return event_of(made.to_dict())
        except stripe.SignatureVerificationError as error:
            refusals.append(str(error)[:300])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSignature(str(error)[:300]) from error
    raise BadSignature(refusals[0])


class Declined(ProcessorRefused):
    """A card was declined; `intent` is the payment as it stands now."""

    def __init__(self, intent: Intent, text: str, *, code: str) -> None:
        super().__init__(text, code=code)
        self.intent = intent


@contextmanager
def _said() -> Iterator[None]:
    """Turn the SDK's errors into ours: what is surely not done, and what may be."""
    try:
        yield
    except stripe.CardError as error:
        facts = _error_of(error)
        text, code = str(error.user_message or error), str(error.code or "card_declined")
        if facts.get("payment_intent"):
            raise Declined(intent_of(facts["payment_intent"]), text, code=code) from error
        raise ProcessorRefused(text, code=code) from error
    except stripe.InvalidRequestError as error:
        raise ProcessorRefused(str(error.user_message or error), code=str(error.code or "")) from error
    except stripe.StripeError as error:
        raise OutcomeUnknown(f"{type(error).__name__}: {str(error)[:200]}") from error


def _error_of(error: stripe.CardError) -> Mapping[str, Any]:
    body = error.json_body
    return body["error"] if isinstance(body, dict) and isinstance(body.get("error"), dict) else {}


def _options(key: str) -> "stripe.RequestOptions":
    return {"idempotency_key": key}


def _pages(found: "stripe.ListObject[Any]") -> Iterator[dict[str, Any]]:
    """Yield the objects of a list and of the pages that follow it, as plain dictionaries."""
    for number, item in enumerate(found.auto_paging_iter()):
        if number >= PAGE * PAGES_MAX:
            raise OutcomeUnknown("the processor's list does not end")
        yield item.to_dict()


def transport() -> "stripe.HTTPClient":
    """Return what carries our calls; tests put the bundled processor in its place."""
    return stripe.RequestsClient(timeout=TIMEOUT_S)


def _client() -> stripe.StripeClient:
    with transaction.atomic(durable=True):
        pass  # refuses to be within a transaction: nobody holds locks while the processor thinks
    if not is_there():
        raise NoProcessor("no keys of the card processor were given: set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET")
    return _client_of(settings.STRIPE_API_KEY, settings.STRIPE_API_BASE, transport)


@lru_cache(maxsize=4)
def _client_of(api_key: str, api_base: str, carrier: Any) -> stripe.StripeClient:
    """One client, and so one pool of connections, for each set of keys. It never repeats a call by itself."""
    return stripe.StripeClient(
        api_key,
        http_client=carrier(),
        max_network_retries=0,
        base_addresses={"api": api_base} if api_base else None,
    )
