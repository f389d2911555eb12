"""Disputes: what banks do, and how they stand."""

from billing.test_processor.world import Route, Thing, World

FEE_UNITS = 1500


def get_dispute(world: World, _params: Thing, *, thing: str) -> Thing:
    return world.get("dispute", thing)


def open_dispute(world: World, intent_id: str) -> Thing:
    """Let the bank of whoever paid take the money back."""
    with world.lock:
        intent = world.get("payment_intent", intent_id)
        charge = world.get("charge", intent["latest_charge"])
        charge["disputed"] = True
        dispute = world.make(
            "dispute",
            "dp",
            amount=charge["amount"],
            currency=charge["currency"],
            charge=charge["id"],
            payment_intent=intent_id,
            reason="fraudulent",
            status="needs_response",
            balance_transactions=[],
            metadata={},
        )
        world.happened("charge.dispute.created", dispute)
        line = world.booked("adjustment", dispute, -charge["amount"], fee=FEE_UNITS)
        dispute["balance_transactions"].append(line)
        world.happened("charge.dispute.funds_withdrawn", dispute)
        return dispute


def close_dispute(world: World, dispute_id: str, *, is_won: bool) -> Thing:
    """Let the bank decide."""
    with world.lock:
        dispute = world.get("dispute", dispute_id)
        dispute["status"] = "won" if is_won else "lost"
        if is_won:
            world.get("charge", dispute["charge"])["disputed"] = False
            dispute["balance_transactions"].append(world.booked("adjustment", dispute, dispute["amount"]))
            world.happened("charge.dispute.funds_reinstated", dispute)
        world.happened("charge.dispute.closed", dispute)
        return dispute


ROUTES: list[Route] = [("GET", "/v1/disputes/(?P<thing>[^/]+)", get_dispute)]
