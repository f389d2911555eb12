"""Cards and payments through the API: ordered once, charged once, refused with a reason."""

from typing import Any

import pytest
from django.utils import timezone

from billing import accounts
from billing.models import Card, Payment
from billing.payments import automatic, paying
from marketplace.models import AuditEntry, Organization
from tests.billing.payments.conftest import processor
from tests.billing.payments.stage import DECLINED_LATER, NEEDS_PROOF, Processor
from tests.marketplace.api.program import Program, problem_of

__all__ = ["processor"]


@pytest.fixture
def card(acme: Organization, processor: Processor) -> Card:
    return processor.card(acme)


def pay(program: Program, amount: Any = "20.00", *, key: str = "a key", **order: Any) -> Any:
    return program.post("payments", {"amount": amount} | order, key=key)


def test_a_top_up_is_ordered_and_then_paid(program: Program, acme: Organization, card: Card) -> None:
    answer = pay(program)
    assert answer.status_code == 202
    ordered = answer.json()
    assert (ordered["state"], ordered["amount"], ordered["currency"]) == ("created", "20.000000", "USD")
    assert ordered["card"]["last4"] == "4242"
    paying.look_due(at=timezone.now())
    paid = program.get(f"payments/{ordered['id']}").json()
    assert (paid["state"], paid["failure"], paid["action_url"]) == ("succeeded", None, None)
    assert accounts.wallet(organization=acme).cash_micros == 20_000_000
    assert program.get("payments").json()["data"] == [paid]


def test_repeating_the_key_orders_nothing_new(program: Program, card: Card) -> None:
    first, again = pay(program), pay(program)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    problem_of(pay(program, "21.00"), 422, "idempotency_key_reused")
    problem_of(pay(program, key=""), 400, "idempotency_key_required")
    assert Payment.objects.count() == 1
    assert AuditEntry.objects.filter(verb="payment.order").count() == 1


@pytest.mark.parametrize("amount", ["-20.00", "0", "4.99", "20.001", "1234567890123.00", "100000.01", 20, "1e3", None])
def test_an_amount_that_cannot_be_paid_is_refused(program: Program, card: Card, amount: Any) -> None:
    problem_of(pay(program, amount), 422, "invalid_request", names="/amount")
    assert not Payment.objects.exists()


@pytest.mark.parametrize("amount", ["-20.00", "20.0000001", "1234567890123.00", "1e3", "NaN", "٣", 12.5])
def test_what_is_no_amount_is_refused_with_how_to_write_one(program: Program, card: Card, amount: Any) -> None:
    problem = pay(program, amount).json()
    assert problem["errors"][0]["pointer"] == "/amount"
    assert "without a sign" in problem["errors"][0]["detail"]
    assert problem["charged"] is False


def test_another_currency_is_refused(program: Program, card: Card) -> None:
    problem_of(pay(program, currency="EUR"), 422, "invalid_request", names="/currency")
    assert pay(program, currency="USD").status_code == 202


def test_without_a_card_it_says_so_and_a_new_one_is_typed_in_a_browser(program: Program, processor: Processor) -> None:
    problem_of(pay(program), 409, "no_card")
    problem_of(pay(program, card="crd_aaaaaaaaaaaaaaaaaaaa"), 404, "not_found", names="/card")
    ordered = pay(program, card="new").json()
    assert ordered["action_url"].endswith(f"/payments/{ordered['id']}")


def test_without_keys_it_says_so(program: Program, card: Card, settings: Any) -> None:
    settings.STRIPE_API_KEY = ""
    problem_of(pay(program), 409, "no_card_processor")


def test_a_card_that_fails_or_asks_says_why(program: Program, acme: Organization, processor: Processor) -> None:
    declined, asking = processor.card(acme, DECLINED_LATER), processor.card(acme, NEEDS_PROOF)
    ids = [pay(program, key=one.public_id, card=one.public_id).json()["id"] for one in (declined, asking)]
    paying.look_due(at=timezone.now())
    failed, waiting = (program.get(f"payments/{one}").json() for one in ids)
    assert failed["failure"] == {"code": "generic_decline", "text": "Your card was declined."}
    assert waiting["state"] == "needs_action"
    assert waiting["action_url"]


def test_cards_are_listed_and_removed(program: Program, card: Card) -> None:
    (row,) = program.get("cards").json()["data"]
    assert (row["brand"], row["default"]) == ("visa", True)
    assert program.ask("delete", f"cards/{row['id']}").status_code == 204
    assert program.get("cards").json()["data"] == []
    problem_of(program.ask("delete", f"cards/{row['id']}"), 404, "not_found")


def test_automatic_top_up_is_set_used_and_ended(program: Program, acme: Organization, card: Card) -> None:
    path = f"organizations/{acme.public_id}/automatic-top-up"
    assert program.get(path).json()["on"] is False
    order = {"threshold": "5000.00", "amount": "20.00", "monthly_ceiling": "30.00"}
    assert program.ask("put", path, order).json()["monthly_ceiling"] == "30.000000"
    assert automatic.top_up_due(at=timezone.now()) == 1
    assert program.get(path).json()["spent_this_month"] == "20.000000"
    problem_of(program.ask("put", path, order | {"amount": "31.00"}), 422, "invalid_request", names="/monthly_ceiling")
    assert program.ask("delete", path).status_code == 204
    assert program.get(path).json()["on"] is False


def test_a_key_as_long_as_the_api_takes_it_orders_once(program: Program, card: Card) -> None:
    long = "k" * 254
    first, again, other = pay(program, key=long + "1"), pay(program, key=long + "1"), pay(program, key=long + "2")
    assert [answer.status_code for answer in (first, again, other)] == [202, 202, 202]
    assert first.json() == again.json()
    assert other.json()["id"] != first.json()["id"]
