"""The processor's objects in our words: plain, typed, in micros. Everything else that it says is left behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.invoicing.rounding import minor_unit_micros

# Under this name every object that we make carries our key.
KEY = "gpumarket"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment at the processor. `continue_url` is where its customer proves who they are."""

    id: str
    key: str
    status: str
    amount_micros: int
    received_micros: int
    currency: str
    customer_id: str
    charge_id: str
    card_id: str
    failure_code: str
    failure_text: str
    continue_url: str


@dataclass(frozen=True, slots=True)
class Hosted:
    """A page of the processor's on which a customer pays or saves a card. `status`: open, complete or expired."""

    id: str
    key: str
    status: str
    url: str
    customer_id: str
    intent_id: str


@dataclass(frozen=True, slots=True)
class SavedCard:
    """A card that the processor keeps."""

    id: str
    customer_id: str
    brand: str
    last4: str
    exp_month: int
    exp_year: int


@dataclass(frozen=True, slots=True)
class PaidBack:
    """A refund at the processor. `status`: pending, requires_action, succeeded, failed or canceled."""

    id: str
    key: str
    status: str
    amount_micros: int
    currency: str
    intent_id: str
    failure_text: str


@dataclass(frozen=True, slots=True)
class Disputed:
    """A dispute at the processor, with what was taken from our balance for it and what came back."""

    id: str
    intent_id: str
    charge_id: str
    amount_micros: int
    currency: str
    status: str
    reason: str
    taken_micros: int
    returned_micros: int


@dataclass(frozen=True, slots=True)
class ConnectAccount:
    """A supplier's account: paid once `can_be_paid`; `is_submitted` says that they gave their papers."""

    id: str
    country: str
    can_be_paid: bool
    is_submitted: bool
    is_missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transferred:
    """Money that went to a supplier's account, and what of it came back."""

    id: str
    key: str
    account_id: str
    amount_micros: int
    reversed_micros: int
    currency: str


@dataclass(frozen=True, slots=True)
class StatementLine:
    """A line of our balance at the processor: `amount_micros` before `fee_micros`, negative for what went out.

    `transfer_id`: of which transfer it takes back some, if it does.
    """

    id: str
    type: str
    source_id: str
    key: str
    amount_micros: int
    fee_micros: int
    currency: str
    at: datetime
    transfer_id: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object at the processor."""

    id: str
    type: str
    object_id: str
    at: datetime
    facts: Facts


def minor_units(micros: int, currency: str) -> int:
    """Return an amount in the processor's units. The caller has refused what is no whole number of them."""
    unit = minor_unit_micros(currency)
    assert micros % unit == 0, f"{micros} micros {currency} are not whole minor units"
    return micros // unit


def unix_seconds(at: datetime) -> int:
    """Return a moment as the processor writes them: whole seconds since 1970."""
    return (at - EPOCH) // timedelta(seconds=1)


def intent_of(facts: Facts) -> Intent:
    """Read a PaymentIntent."""
    currency = _currency(facts)
    error: Facts = facts.get("last_payment_error") or {}
    action: Facts = facts.get("next_action") or {}
    return Intent(
        id=str(facts["id"]),
        key=_key(facts),
        status=str(facts["status"]),
        amount_micros=_micros(facts.get("amount"), currency),
        received_micros=_micros(facts.get("amount_received", facts.get("amount")), currency),
        currency=currency,
        customer_id=_id(facts.get("customer")),
        charge_id=_id(facts.get("latest_charge")),
        card_id=_id(facts.get("payment_method")) or _id(error.get("payment_method")),
        failure_code=str(error.get("decline_code") or error.get("code") or ""),
        failure_text=str(error.get("message") or "")[:300],
        continue_url=str((action.get("redirect_to_url") or {}).get("url") or ""),
    )


def hosted_of(facts: Facts) -> Hosted:
    """Read a Checkout Session."""
    return Hosted(
        id=str(facts["id"]),
        key=str(facts.get("client_reference_id") or ""),
        status=str(facts.get("status") or "open"),
        url=str(facts.get("url") or ""),
        customer_id=_id(facts.get("customer")),
        intent_id=_id(facts.get("payment_intent")),
    )


def card_of(facts: Facts) -> SavedCard:
    """Read a PaymentMethod that is a card."""
    card: Facts = facts["card"]
    return SavedCard(
        id=str(facts["id"]),
        customer_id=_id(facts.get("customer")),
        brand=str(card["brand"])[:20],
        last4=str(card["last4"])[:4],
        exp_month=int(card["exp_month"]),
        exp_year=int(card["exp_year"]),
    )


def refund_of(facts: Facts) -> PaidBack:
    """Read a Refund."""
    currency = _currency(facts)
    return PaidBack(
        id=str(facts["id"]),
        key=_key(facts),
        status=str(facts.get("status") or "pending"),
        amount_micros=_micros(facts.get("amount"), currency),
        currency=currency,
        intent_id=_id(facts.get("payment_intent")),
        failure_text=str(facts.get("failure_reason") or "")[:300],
    )


def dispute_of(facts: Facts) -> Disputed:
    """Read a Dispute."""
    currency = _currency(facts)
    moved = [_micros(line.get("amount"), currency) for line in facts.get("balance_transactions") or ()]
    return Disputed(
        id=str(facts["id"]),
        intent_id=_id(facts.get("payment_intent")),
        charge_id=_id(facts.get("charge")),
        amount_micros=_micros(facts.get("amount"), currency),
        currency=currency,
        status=str(facts["status"]),
        reason=str(facts.get("reason") or "")[:64],
        taken_micros=-sum(micros for micros in moved if micros < 0),
        returned_micros=sum(micros for micros in moved if micros > 0),
    )


def account_of(facts: Facts) -> ConnectAccount:
    """Read a connected Account."""
    requirements: Facts = facts.get("requirements") or {}
    return ConnectAccount(
        id=str(facts["id"]),
        country=str(facts.get("country") or ""),
        can_be_paid=(facts.get("capabilities") or {}).get("transfers") == "active" and bool(facts["payouts_enabled"]),
        is_submitted=bool(facts.get("details_submitted")),
        is_missing=tuple(str(name) for name in requirements.get("currently_due") or ()),
    )


def transfer_of(facts: Facts) -> Transferred:
    """Read a Transfer."""
    currency = _currency(facts)
    return Transferred(
        id=str(facts["id"]),
        key=_key(facts),
        account_id=_id(facts.get("destination")),
        amount_micros=_micros(facts.get("amount"), currency),
        reversed_micros=_micros(facts.get("amount_reversed"), currency),
        currency=currency,
    )


def line_of(facts: Facts) -> StatementLine:
    """Read a BalanceTransaction; its source is expanded where the processor can."""
    currency = _currency(facts)
    source = facts.get("source")
    about: Facts = source if isinstance(source, dict) else {}
    return StatementLine(
        id=str(facts["id"]),
        type=str(facts.get("type") or ""),
        source_id=_id(source),
        key=_key(about),
        amount_micros=_micros(facts.get("amount"), currency),
        fee_micros=_micros(facts.get("fee"), currency),
        currency=currency,
        at=_moment(facts["created"]),
        transfer_id=_id(about.get("transfer")) if about.get("object") == "transfer_reversal" else "",
    )


def event_of(facts: Facts) -> Event:
    """Read an Event; of its object only the id counts, since the object itself is fetched."""
    about: Facts = facts["data"]["object"]
    return Event(
        id=str(facts["id"]),
        type=str(facts["type"]),
        object_id=str(about.get("id") or ""),
        at=_moment(facts["created"]),
        facts=facts,
    )


def _key(facts: Facts) -> str:
    return str((facts.get("metadata") or {}).get(KEY) or "")


def _id(value: Any) -> str:
    """Return the id of something that is an id, an object with one, or nothing."""
    return str(value["id"]) if isinstance(value, dict) else str(value or "")


def _currency(facts: Facts) -> str:
    return str(facts.get("currency") or "").upper()


def _micros(units: Any, currency: str) -> int:
    return int(units or 0) * minor_unit_micros(currency)


def _moment(seconds: Any) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
