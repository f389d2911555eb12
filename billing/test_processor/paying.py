"""Customers, cards, and how money comes from them and goes back."""

from billing.test_processor.cards import CARDS, said
from billing.test_processor.forms import is_true
from billing.test_processor.world import Refused, Route, Thing, World

FEE_THOUSANDTHS, FEE_UNITS = 29, 30


def create_customer(world: World, params: Thing) -> Thing:
    return world.make(
        "customer", "cus", name=params.get("name"), email=params.get("email"), metadata=params.get("metadata", {})
    )


def get_customer(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("customer", thing)


def list_cards(world: World, params: Thing, *, thing: str) -> Thing:
    return world.listed("payment_method", params, customer=world.get("customer", thing)["id"])


def create_card(world: World, params: Thing) -> Thing:
    given = params.get("card") or {}
    number = str(given.get("number", "")).replace(" ", "")
    if number not in CARDS:
        raise Refused(402, "card_error", "Your card number is incorrect.", code="incorrect_number", param="number")
    card = {
        "brand": CARDS[number].brand,
        "last4": number[-4:],
        "exp_month": int(given.get("exp_month") or 12),
        "exp_year": int(given.get("exp_year") or 2034),
    }
    made = world.make("payment_method", "pm", type="card", card=card, customer=None, metadata={})
    made["test_number"] = number
    return made


def get_card(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("payment_method", thing)


def attach(world: World, params: Thing, *, thing: str) -> Thing:
    card = world.get("payment_method", thing)
    known = CARDS[card["test_number"]]
    if known.is_refused:
        raise _declined(known.declines, card)
    card["customer"] = world.get("customer", params.get("customer", ""))["id"]
    world.happened("payment_method.attached", card)
    return card


def detach(world: World, _params: Thing, *, thing: str) -> Thing:
    card = world.get("payment_method", thing)
    if card["customer"] is None:
        text = "The payment method you provided is not attached to a customer so detachment is impossible."
        raise Refused(400, "invalid_request_error", text, code="payment_method_unexpected_state")
    card["customer"] = None
    world.happened("payment_method.detached", card)
    return card


def create_setup(world: World, params: Thing) -> Thing:
    return world.make(
        "setup_intent",
        "seti",
        customer=params.get("customer"),
        payment_method=params.get("payment_method"),
        status="requires_confirmation" if params.get("payment_method") else "requires_payment_method",
        usage=params.get("usage", "off_session"),
        metadata=params.get("metadata", {}),
        next_action=None,
        return_url=params.get("return_url"),
    )


def get_setup(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("setup_intent", thing)


def confirm_setup(world: World, params: Thing, *, thing: str) -> Thing:
    setup = world.get("setup_intent", thing)
    setup["payment_method"] = params.get("payment_method") or setup["payment_method"]
    setup["return_url"] = params.get("return_url") or setup["return_url"]
    card = world.get("payment_method", setup["payment_method"])
    if CARDS[card["test_number"]].needs_proof:
        setup["status"] = "requires_action"
        setup["next_action"] = _proof(world, setup)
        return setup
    return finish_setup(world, setup)


def finish_setup(world: World, setup: Thing) -> Thing:
    """Save the card of a setup intent for its customer."""
    attach(world, {"customer": setup["customer"]}, thing=setup["payment_method"])
    setup |= {"status": "succeeded", "next_action": None}
    world.happened("setup_intent.succeeded", setup)
    return setup


def create_intent(world: World, params: Thing) -> Thing:
    amount, currency = int(params.get("amount", 0)), str(params.get("currency", ""))
    if not 1 <= amount <= 99_999_999:
        raise Refused(400, "invalid_request_error", "Invalid amount", code="parameter_invalid_integer", param="amount")
    if params.get("customer"):
        world.get("customer", params["customer"])
    intent = world.make(
        "payment_intent",
        "pi",
        amount=amount,
        amount_received=0,
        currency=currency,
        customer=params.get("customer"),
        payment_method=params.get("payment_method"),
        metadata=params.get("metadata", {}),
        status="requires_confirmation" if params.get("payment_method") else "requires_payment_method",
        latest_charge=None,
        last_payment_error=None,
        next_action=None,
        return_url=params.get("return_url"),
    )
    world.happened("payment_intent.created", intent)
    if is_true(params.get("confirm")):
        _confirm(world, intent, off_session=is_true(params.get("off_session")))
    return intent


def get_intent(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("payment_intent", thing)


def list_intents(world: World, params: Thing) -> Thing:
    return world.listed("payment_intent", params, customer=params.get("customer"))


def confirm_intent(world: World, params: Thing, *, thing: str) -> Thing:
    intent = world.get("payment_intent", thing)
    if intent["status"] not in {"requires_confirmation", "requires_payment_method", "requires_action"}:
        raise _unexpected(intent, "confirmed")
    intent["payment_method"] = params.get("payment_method") or intent["payment_method"]
    intent["return_url"] = params.get("return_url") or intent["return_url"]
    _confirm(world, intent, off_session=False)
    return intent


def cancel_intent(world: World, _params: Thing, *, thing: str) -> Thing:
    intent = world.get("payment_intent", thing)
    if intent["status"] in {"succeeded", "canceled"}:
        raise _unexpected(intent, "canceled")
    intent |= {"status": "canceled", "next_action": None}
    world.happened("payment_intent.canceled", intent)
    return intent


def _confirm(world: World, intent: Thing, *, off_session: bool) -> None:
    card = world.get("payment_method", intent["payment_method"] or "")
    if card["customer"] is None or card["customer"] != intent["customer"]:
        text = "The PaymentMethod does not belong to the Customer of this PaymentIntent."
        raise Refused(400, "invalid_request_error", text, code="payment_method_customer_mismatch")
    known = CARDS[card["test_number"]]
    if known.needs_proof and off_session:
        fail_intent(world, intent, card, code="authentication_required")
        raise _declined("authentication_required", card, payment_intent=intent)
    if known.needs_proof:
        intent |= {"status": "requires_action", "next_action": _proof(world, intent), "last_payment_error": None}
        world.happened("payment_intent.requires_action", intent)
    elif known.declines:
        fail_intent(world, intent, card, code=known.declines)
        raise _declined(known.declines, card, payment_intent=intent)
    else:
        finish_intent(world, intent)


def finish_intent(world: World, intent: Thing) -> Thing:
    """Take the money of a payment intent."""
    charge = world.make(
        "charge",
        "ch",
        amount=intent["amount"],
        amount_refunded=0,
        currency=intent["currency"],
        customer=intent["customer"],
        payment_intent=intent["id"],
        payment_method=intent["payment_method"],
        metadata=dict(intent["metadata"]),
        status="succeeded",
        disputed=False,
    )
    fee = intent["amount"] * FEE_THOUSANDTHS // 1000 + FEE_UNITS
    charge["balance_transaction"] = world.booked("charge", charge, intent["amount"], fee=fee)["id"]
    intent |= {
        "status": "succeeded",
        "amount_received": intent["amount"],
        "latest_charge": charge["id"],
        "next_action": None,
        "last_payment_error": None,
    }
    world.happened("charge.succeeded", charge)
    world.happened("payment_intent.succeeded", intent)
    return intent


def fail_intent(world: World, intent: Thing, card: Thing, *, code: str) -> None:
    """Let a payment intent fail: it waits for another card."""
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "next_action": None,
        "last_payment_error": _error(code, card),
    }
    world.happened("payment_intent.payment_failed", intent)


def create_refund(world: World, params: Thing) -> Thing:
    intent = world.get("payment_intent", params.get("payment_intent", ""))
    if intent["status"] != "succeeded":
        raise Refused(400, "invalid_request_error", "This PaymentIntent has no successful charge to refund.")
    charge = world.get("charge", intent["latest_charge"])
    left = charge["amount"] - charge["amount_refunded"]
    amount = int(params.get("amount") or left)
    if not 0 < amount <= left or charge["disputed"]:
        text = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        raise Refused(400, "invalid_request_error", text, code="charge_already_refunded" if not left else None)
    charge["amount_refunded"] += amount
    refund = world.make(
        "refund",
        "re",
        amount=amount,
        currency=charge["currency"],
        charge=charge["id"],
        payment_intent=intent["id"],
        metadata=params.get("metadata", {}),
        status="succeeded",
    )
    refund["balance_transaction"] = world.booked("refund", refund, -amount)["id"]
    world.happened("refund.created", refund)
    world.happened("charge.refunded", charge)
    return refund


def fail_refund(world: World, refund: Thing) -> None:
    """Let a refund come back, as a bank may do days later."""
    world.get("charge", refund["charge"])["amount_refunded"] -= refund["amount"]
    refund |= {"status": "failed", "failure_reason": "expired_or_canceled_card"}
    world.booked("refund_failure", refund, refund["amount"])
    world.happened("refund.failed", refund)


def get_refund(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("refund", thing)


def list_refunds(world: World, params: Thing) -> Thing:
    return world.listed("refund", params, payment_intent=params.get("payment_intent"))


def list_statement(world: World, params: Thing) -> Thing:
    return world.listed("balance_transaction", params)


def list_events(world: World, params: Thing) -> Thing:
    return world.listed("event", params)


def _proof(world: World, thing: Thing) -> Thing:
    url = f"{world.base_url}/prove/{thing['id']}"
    return {"type": "redirect_to_url", "redirect_to_url": {"url": url, "return_url": thing["return_url"]}}


def _error(code: str, card: Thing) -> Thing:
    if code == "authentication_required":
        text = "Your card was declined. This transaction requires authentication."
        return {"type": "card_error", "code": code, "decline_code": code, "message": text, "payment_method": card}
    return {
        "type": "card_error", "code": "card_declined", "decline_code": code, "message": said(code),
        "payment_method": card,
    }  # fmt: skip


def _declined(code: str, card: Thing, **facts: Thing) -> Refused:
    error = _error(code, card)
    return Refused(402, error.pop("type"), error.pop("message"), **error, **facts)


def _unexpected(intent: Thing, verb: str) -> Refused:
    text = f"This PaymentIntent could not be {verb} because it has a status of {intent['status']}."
    return Refused(400, "invalid_request_error", text, code="payment_intent_unexpected_state")


ROUTES: list[Route] = [
    ("POST", "/v1/customers", create_customer),
    ("GET", "/v1/customers/(?P<thing>cus_[^/]+)", get_customer),
    ("GET", "/v1/customers/(?P<thing>cus_[^/]+)/payment_methods", list_cards),
    ("POST", "/v1/payment_methods", create_card),
    ("GET", "/v1/payment_methods/(?P<thing>[^/]+)", get_card),
    ("POST", "/v1/payment_methods/(?P<thing>[^/]+)/attach", attach),
    ("POST", "/v1/payment_methods/(?P<thing>[^/]+)/detach", detach),
    ("POST", "/v1/setup_intents", create_setup),
    ("GET", "/v1/setup_intents/(?P<thing>[^/]+)", get_setup),
    ("POST", "/v1/setup_intents/(?P<thing>[^/]+)/confirm", confirm_setup),
    ("POST", "/v1/payment_intents", create_intent),
    ("GET", "/v1/payment_intents", list_intents),
    ("GET", "/v1/payment_intents/(?P<thing>[^/]+)", get_intent),
    ("POST", "/v1/payment_intents/(?P<thing>[^/]+)/confirm", confirm_intent),
    ("POST", "/v1/payment_intents/(?P<thing>[^/]+)/cancel", cancel_intent),
    ("POST", "/v1/refunds", create_refund),
    ("GET", "/v1/refunds", list_refunds),
    ("GET", "/v1/refunds/(?P<thing>[^/]+)", get_refund),
    ("GET", "/v1/balance_transactions", list_statement),
    ("GET", "/v1/events", list_events),
]
