"""Suppliers' accounts, what goes to them, and what goes to our own bank."""

from billing.test_processor.world import Refused, Route, Thing, World


def create_account(world: World, params: Thing) -> Thing:
    return world.make(
        "account",
        "acct",
        country=params.get("country"),
        email=params.get("email"),
        capabilities={"transfers": "inactive"},
        payouts_enabled=False,
        details_submitted=False,
        requirements={"currently_due": ["external_account", "individual.verification.document"]},
        metadata=params.get("metadata", {}),
        balance={},
    )


def get_account(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("account", thing)


def create_link(world: World, params: Thing) -> Thing:
    account = world.get("account", params.get("account", ""))
    account["return_url"] = params.get("return_url")
    url = f"{world.base_url}/papers/{account['id']}"
    return {"object": "account_link", "created": world.now, "expires_at": world.now + 300, "url": url}


def give_papers(world: World, account_id: str) -> str:
    """Do what a supplier does on the page: give their papers. Return where the browser goes next."""
    with world.lock:
        account = world.get("account", account_id)
        account |= {
            "capabilities": {"transfers": "active"},
            "payouts_enabled": True,
            "details_submitted": True,
            "requirements": {"currently_due": []},
        }
        world.happened("account.updated", account)
        return str(account.get("return_url") or "")


def create_transfer(world: World, params: Thing) -> Thing:
    account = world.get("account", params.get("destination", ""))
    amount, currency = int(params.get("amount", 0)), str(params.get("currency", ""))
    if account["capabilities"]["transfers"] != "active":
        text = "Your destination account needs to have at least one of the following capabilities enabled: transfers"
        raise Refused(400, "invalid_request_error", text, code="insufficient_capabilities_for_transfer")
    if amount <= 0 or amount > balance(world, currency):
        raise Refused(
            400, "invalid_request_error", "You have insufficient available funds.", code="balance_insufficient"
        )
    account["balance"][currency] = account["balance"].get(currency, 0) + amount
    made = world.make(
        "transfer",
        "tr",
        amount=amount,
        amount_reversed=0,
        currency=currency,
        destination=account["id"],
        metadata=params.get("metadata", {}),
        transfer_group=params.get("transfer_group"),
    )
    made["balance_transaction"] = world.booked("transfer", made, -amount)["id"]
    world.happened("transfer.created", made)
    return made


def get_transfer(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("transfer", thing)


def list_transfers(world: World, params: Thing) -> Thing:
    return world.listed("transfer", params, destination=params.get("destination"))


def create_reversal(world: World, params: Thing, *, thing: str) -> Thing:
    transfer = world.get("transfer", thing)
    account, currency = world.get("account", transfer["destination"]), transfer["currency"]
    amount = int(params.get("amount") or transfer["amount"] - transfer["amount_reversed"])
    left = min(transfer["amount"] - transfer["amount_reversed"], account["balance"].get(currency, 0))
    if not 0 < amount <= left:
        raise Refused(400, "invalid_request_error", f"At most {left} can be reversed.", code="balance_insufficient")
    transfer["amount_reversed"] += amount
    account["balance"][currency] -= amount
    made = world.make(
        "transfer_reversal",
        "trr",
        amount=amount,
        currency=currency,
        transfer=thing,
        metadata=params.get("metadata", {}),
    )
    made["balance_transaction"] = world.booked("transfer_refund", made, amount)["id"]
    world.happened("transfer.reversed", transfer)
    return made


def balance(world: World, currency: str) -> int:
    """Return what the platform has at the processor, in minor units."""
    lines = world.things["balance_transaction"].values()
    return sum(line["net"] for line in lines if line["currency"] == currency)


def pay_out(world: World, amount: int, currency: str) -> Thing:
    """Send money from the platform's balance to its bank account, as the processor does by itself."""
    with world.lock:
        made = world.make("payout", "po", amount=amount, currency=currency, status="paid", metadata={})
        world.booked("payout", made, -amount)
        world.happened("payout.paid", made)
        return made


ROUTES: list[Route] = [
    ("POST", "/v1/accounts", create_account),
    ("GET", "/v1/accounts/(?P<thing>[^/]+)", get_account),
    ("POST", "/v1/account_links", create_link),
    ("POST", "/v1/transfers", create_transfer),
    ("GET", "/v1/transfers", list_transfers),
    ("GET", "/v1/transfers/(?P<thing>[^/]+)", get_transfer),
    ("POST", "/v1/transfers/(?P<thing>[^/]+)/reversals", create_reversal),
]
