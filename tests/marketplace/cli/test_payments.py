"""gpumarket topup and cards: what they order, wait for and say."""

import pytest

from marketplace.cli import client, payments
from tests.marketplace.cli.shop import Shop

CARD = {"id": "crd_1", "brand": "visa", "last4": "4242", "exp_month": 3, "exp_year": 2030, "default": True}


def payment(state, **changes):
    return {
        "id": "pay_1", "amount": "25.500000", "currency": "USD", "state": state, "card": CARD, "failure": None,
        "action_url": None,
    } | changes  # fmt: skip


class ShopWithCards(Shop):
    """A shop that takes cards; what becomes of a payment is played from a list."""

    became = (payment("sending"), payment("succeeded"))

    def __init__(self):
        super().__init__()
        self.ordered, self.looks = [], 0

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["cards"]:
                return 200, {"data": [CARD], "next_cursor": None}
            case "POST", ["payments"]:
                assert headers.get("Idempotency-Key")
                self.ordered.append(body)
                return 202, payment("created")
            case "GET", ["payments", "pay_1"]:
                self.looks += 1
                return 200, self.became[min(self.looks, len(self.became)) - 1]
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setattr(payments, "LOOK_AGAIN_S", 0.001)
    shop = ShopWithCards()
    shop.open()
    yield shop
    shop.close()


def test_a_top_up_is_ordered_once_and_waited_for(gpumarket, shop):
    said = gpumarket("topup", "25.50")
    assert said.code == 0
    assert "Paid. 25.50 USD is in your balance" in said.err
    assert shop.ordered == [{"amount": "25.50"}]


def test_json_is_the_payment_and_a_card_may_be_named(gpumarket, shop):
    said = gpumarket("topup", "25.50", "--card", "crd_1", "--currency", "usd", "--json")
    assert said.json == payment("succeeded")
    assert shop.ordered[0] == {"amount": "25.50", "card": "crd_1", "currency": "USD"}


def test_who_does_not_wait_is_told_that_it_is_on_its_way(gpumarket, shop):
    said = gpumarket("topup", "25.50", "--no-wait")
    assert "It is on its way" in said.err
    assert shop.looks == 0


def test_a_payment_that_needs_a_person_says_where(gpumarket, shop):
    shop.became = (payment("needs_action", action_url="https://gpu.example/payments/pay_1"),)
    said = gpumarket("topup", "25.50")
    assert said.code == 0
    assert "Finish it in your browser: https://gpu.example/payments/pay_1" in said.err


def test_a_declined_card_exits_as_payment(gpumarket, shop):
    shop.became = (payment("failed", failure={"code": "generic_decline", "text": "Your card was declined."}),)
    said = gpumarket("topup", "25.50", "--json")
    assert said.code == 7
    assert "Your card was declined. Nothing was charged." in said.err
    assert (said.json["code"], said.json["payment"]["state"]) == ("payment_failed", "failed")


def test_a_payment_that_is_not_final_in_time_exits_as_still_running(gpumarket, shop):
    shop.became = (payment("sending"),)
    said = gpumarket("topup", "25.50", "--timeout", "0.01", "--json")
    assert said.code == 8
    assert (said.json["code"], said.json["payment"]["id"], said.json["charged"]) == ("still_running", "pay_1", None)


def test_a_top_up_that_got_no_answer_can_be_asked_again_with_its_key(gpumarket, shop, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE_S", 0.05)
    shop.faults.extend(["drop"] * 500)
    key = gpumarket("topup", "25.50", "--json").json["idempotency_key"]
    shop.faults.clear()
    assert gpumarket("topup", "25.50", "--key", key).code == 0
    assert {asked["headers"]["Idempotency-Key"] for asked in shop.asked("POST", "/api/v1/payments")} == {key}


def test_a_command_without_a_key_is_not_told_to_be_repeated_with_one(gpumarket, shop, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE_S", 0.05)
    shop.faults.extend(["drop"] * 500)
    said = gpumarket("quota", "request", "8", "--reason", "more")
    assert said.code == 1
    assert "--key" not in said.err
    assert "it may have been done" in said.err


@pytest.mark.parametrize("amount", ["-5", "1.2345678", "12345678901", "ten"])
def test_an_amount_that_is_none_is_refused_before_anything_is_sent(gpumarket, shop, amount):
    assert gpumarket("topup", "--", amount).code == 2
    assert shop.ordered == []


def test_cards_are_listed(gpumarket):
    said = gpumarket("cards")
    for text in ("visa 4242", "2030-03", "yes", "crd_1"):
        assert text in said.out
    assert gpumarket("cards", "--json").json == {"data": [CARD], "next_cursor": None}
