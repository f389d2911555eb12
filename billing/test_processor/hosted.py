"""The processor's own pages: where somebody types a card, and where they prove who they are."""

from billing.test_processor import paying
from billing.test_processor.world import Refused, Route, Thing, World

SESSION_LIFE_S = 24 * 3600


def create_session(world: World, params: Thing) -> Thing:
    is_payment = params.get("mode") == "payment"
    line = params["line_items"][0]["price_data"] if is_payment else {}
    made = world.make(
        "checkout.session",
        "cs_test",
        mode=params.get("mode"),
        status="open",
        customer=world.get("customer", params.get("customer", ""))["id"],
        amount_total=int(line["unit_amount"]) if is_payment else None,
        currency=line.get("currency") or params.get("currency"),
        text=(line.get("product_data") or {}).get("name", ""),
        client_reference_id=params.get("client_reference_id"),
        metadata=params.get("metadata", {}),
        intent_metadata=(params.get("payment_intent_data") or params.get("setup_intent_data") or {}).get(
            "metadata", {}
        ),
        payment_intent=None,
        setup_intent=None,
        success_url=params.get("success_url"),
        cancel_url=params.get("cancel_url"),
        expires_at=world.now + SESSION_LIFE_S,
    )
    made["url"] = f"{world.base_url}/pay/{made['id']}"
    return made


def get_session(world: World, _params: Thing, *, thing: str) -> Thing:
    session = world.get("checkout.session", thing)
    if session["status"] == "open" and world.now >= session["expires_at"]:
        _expire(world, session)
    return session


def list_sessions(world: World, params: Thing) -> Thing:
    return world.listed("checkout.session", params, customer=params.get("customer"))


def expire_session(world: World, _params: Thing, *, thing: str) -> Thing:
    session = world.get("checkout.session", thing)
    if session["status"] != "open":
        raise Refused(400, "invalid_request_error", "Only Checkout Sessions with a status of open can be expired.")
    return _expire(world, session)


def _expire(world: World, session: Thing) -> Thing:
    session |= {"status": "expired", "url": None}
    if session["payment_intent"] and world.get("payment_intent", session["payment_intent"])["status"] != "canceled":
        paying.cancel_intent(world, {}, thing=session["payment_intent"])
    world.happened("checkout.session.expired", session)
    return session


def type_card(world: World, session_id: str, *, number: str, exp_month: str = "12", exp_year: str = "2034") -> str:
    """Do what somebody does on the page: type a card and send it. Return where the browser goes next.

    Raises Refused for what the page says beside the form: a wrong number, a declined card.
    """
    with world.lock:
        session = get_session(world, {}, thing=session_id)
        if session["status"] != "open":
            return str(session["success_url"])
        given = {"number": number, "exp_month": exp_month, "exp_year": exp_year}
        card = paying.create_card(world, {"card": given})
        intent = _pay(world, session, card) if session["mode"] == "payment" else _save(world, session, card)
        if intent["status"] == "requires_action":
            return str(intent["next_action"]["redirect_to_url"]["url"])
        return _complete(world, session)


def prove(world: World, intent_id: str, *, is_them: bool) -> str:
    """Do what somebody does at their bank: prove who they are, or fail to. Return where the browser goes next."""
    with world.lock:
        kind = "payment_intent" if intent_id.startswith("pi_") else "setup_intent"
        intent = world.get(kind, intent_id)
        if intent["status"] == "requires_action":
            _proved(world, intent, is_them=is_them)
        sessions = world.things["checkout.session"].values()
        session = next((one for one in sessions if one[kind] == intent_id), None)
        if session is not None:
            return _complete(world, session) if intent["status"] == "succeeded" else str(session["url"])
        return str(intent["return_url"])


def _proved(world: World, intent: Thing, *, is_them: bool) -> None:
    if intent["object"] == "setup_intent":
        if is_them:
            paying.finish_setup(world, intent)
        else:
            intent |= {"status": "requires_payment_method", "next_action": None}
    elif is_them:
        paying.attach(world, {"customer": intent["customer"]}, thing=intent["payment_method"])
        paying.finish_intent(world, intent)
    else:
        card = world.get("payment_method", intent["payment_method"])
        paying.fail_intent(world, intent, card, code="payment_intent_authentication_failure")


def _pay(world: World, session: Thing, card: Thing) -> Thing:
    if session["payment_intent"] is None:
        asked = {
            "amount": session["amount_total"],
            "currency": session["currency"],
            "customer": session["customer"],
            "metadata": session["intent_metadata"],
            "return_url": session["success_url"],
        }
        session["payment_intent"] = paying.create_intent(world, asked)["id"]
    # On this page a card is kept once it has paid; here it has to belong to somebody before it does.
    card["customer"] = session["customer"]
    try:
        intent = paying.confirm_intent(world, {"payment_method": card["id"]}, thing=session["payment_intent"])
    except Refused:
        card["customer"] = None
        raise
    if intent["status"] == "succeeded":
        world.happened("payment_method.attached", card)
    return intent


def _save(world: World, session: Thing, card: Thing) -> Thing:
    if session["setup_intent"] is None:
        asked = {
            "customer": session["customer"],
            "metadata": session["intent_metadata"],
            "return_url": session["success_url"],
        }
        session["setup_intent"] = paying.create_setup(world, asked)["id"]
    return paying.confirm_setup(world, {"payment_method": card["id"]}, thing=session["setup_intent"])


def _complete(world: World, session: Thing) -> str:
    if session["status"] == "open":
        session |= {"status": "complete", "url": None}
        world.happened("checkout.session.completed", session)
    return str(session["success_url"])


ROUTES: list[Route] = [
    ("POST", "/v1/checkout/sessions", create_session),
    ("GET", "/v1/checkout/sessions", list_sessions),
    ("GET", "/v1/checkout/sessions/(?P<thing>[^/]+)", get_session),
    ("POST", "/v1/checkout/sessions/(?P<thing>[^/]+)/expire", expire_session),
]
