"""Payments against the bundled processor through the real SDK: each ends once, whatever breaks on the way."""

from datetime import timedelta

import pytest
from django.db.models import F

from billing import accounts
from billing.errors import Stranger
from billing.models import Account, Card, Payment, Transfer
from billing.payments import gateway, paying
from billing.test_processor import hosted
from billing.test_processor import paying as far_paying
from tests.billing.makers import NOON, USD, account, make_organization, move, wallet
from tests.billing.payments.stage import DAY, DECLINED_LATER, GOOD, MINUTE, NEEDS_PROOF, moved, order

State = Payment.State
OPEN = {State.CREATED, State.SENDING, State.UNKNOWN, State.NEEDS_ACTION, State.PROCESSING}


def sent(processor, customer, number=GOOD, **overrides):
    processor.card(customer, number)
    return paying.send(payment_id=order(customer, **overrides).pk, at=processor.at)


def test_a_charge_of_a_saved_card_becomes_cash(customer, processor):
    payment = sent(processor, customer)
    assert payment.state == "succeeded"
    assert payment.finished_at == NOON
    assert [(charge["amount"], charge["currency"]) for charge in processor.charges] == [(2000, "usd")]
    assert payment.charge_id == processor.charges[0]["id"]
    assert moved(payment) == [20 * USD]
    assert wallet(customer).cash_micros == 20 * USD


def test_what_is_owed_is_paid_from_it_at_once(customer, processor):
    move(account(customer, "receivable"), "revenue", 15 * USD)
    sent(processor, customer)
    assert (wallet(customer).cash_micros, wallet(customer).owed_micros) == (5 * USD, 0)


def test_yen_are_sent_as_yen(db, processor):
    organization = make_organization(currency="JPY")
    payment = sent(processor, organization, amount_micros=2000 * USD)
    assert payment.state == "succeeded"
    assert [(charge["amount"], charge["currency"]) for charge in processor.charges] == [(2000, "jpy")]
    assert wallet(organization).cash_micros == 2000 * USD


def test_the_sweep_sends_what_nobody_sent_and_sends_it_once(customer, processor):
    processor.card(customer)
    payment = order(customer)
    assert processor.look() == 1
    assert processor.look() == 0
    payment.refresh_from_db()
    assert (payment.state, len(processor.charges)) == ("succeeded", 1)


def test_a_declined_card_fails_with_its_reason_and_moves_nothing(customer, processor):
    payment = sent(processor, customer, DECLINED_LATER)
    assert (payment.state, payment.failure_code) == ("failed", "generic_decline")
    assert payment.failure_text == "Your card was declined."
    assert (processor.charges, moved(payment)) == ([], [])
    assert not processor.look(DAY)


def test_a_customer_who_was_away_comes_back_and_proves_who_they_are(customer, processor):
    payment = sent(processor, customer, NEEDS_PROOF)
    assert (payment.state, moved(payment)) == ("needs_action", [])
    url = paying.continue_url(payment=payment, at=processor.later())
    assert "/prove/pi_" in url
    hosted.prove(processor.world, url.rpartition("/")[2], is_them=True)
    assert paying.look(payment_id=payment.pk, at=processor.later()).state == "succeeded"
    assert (len(processor.charges), moved(payment)) == (1, [20 * USD])


def test_somebody_who_cannot_prove_who_they_are_pays_nothing(customer, processor):
    payment = sent(processor, customer, NEEDS_PROOF)
    url = paying.continue_url(payment=payment, at=processor.later())
    hosted.prove(processor.world, url.rpartition("/")[2], is_them=False)
    payment = paying.look(payment_id=payment.pk, at=processor.later())
    assert (payment.state, payment.failure_code) == ("failed", "payment_intent_authentication_failure")
    assert (processor.charges, moved(payment)) == ([], [])


def test_a_payment_that_waits_can_be_cancelled_and_is_after_a_week(customer, processor):
    first = sent(processor, customer, NEEDS_PROOF)
    assert paying.cancel(payment=first, at=processor.later()).state == "cancelled"
    second = paying.send(payment_id=order(customer, key="2").pk, at=processor.at)
    processor.look(timedelta(days=6))
    second.refresh_from_db()
    assert second.state == "needs_action"
    processor.look(timedelta(days=2))
    second.refresh_from_db()
    assert (second.state, processor.charges) == ("cancelled", [])


def on_page(processor, customer):
    ordered = paying.top_up(organization=customer, amount_micros=20 * USD, key="page", at=processor.at)
    payment = paying.send(payment_id=ordered.pk, at=processor.at)
    return payment, paying.continue_url(payment=payment, at=processor.at)


def test_a_new_card_is_typed_on_the_processors_page_and_kept(customer, processor):
    payment, url = on_page(processor, customer)
    assert payment.state == "needs_action"
    back = hosted.type_card(processor.world, url.rpartition("/")[2], number=GOOD)
    assert back.endswith(f"/payments/{payment.public_id}")
    processor.deliver()
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("succeeded", [20 * USD])
    assert [card.last4 for card in Card.objects.filter(organization=customer, is_default=True)] == ["4242"]


def test_on_that_page_another_card_may_be_tried(customer, processor):
    payment, url = on_page(processor, customer)
    with pytest.raises(Exception, match="declined"):
        hosted.type_card(processor.world, url.rpartition("/")[2], number=DECLINED_LATER)
    processor.deliver()
    payment.refresh_from_db()
    assert payment.state == "needs_action"
    onward = hosted.type_card(processor.world, url.rpartition("/")[2], number=NEEDS_PROOF)
    hosted.prove(processor.world, onward.rpartition("/")[2], is_them=True)
    assert paying.look(payment_id=payment.pk, at=processor.later()).state == "succeeded"
    assert len(processor.charges) == 1


def test_a_page_that_nobody_used_is_closed_after_a_day(customer, processor):
    payment, _ = on_page(processor, customer)
    processor.look(DAY + MINUTE)
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("cancelled", [])


@pytest.mark.parametrize("fault", ["silent_before", "silent_after", "rate_limit"])
def test_without_an_answer_it_is_looked_for_and_charged_once(customer, processor, fault):
    processor.card(customer)
    processor.fails(fault)
    payment = paying.send(payment_id=order(customer).pk, at=processor.at)
    assert (payment.state, moved(payment)) == ("unknown", [])
    processor.look()
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("succeeded", [20 * USD])
    assert len(processor.charges) == 1
    assert processor.sent() == (1 if fault == "silent_after" else 2)


def test_a_page_whose_answer_was_lost_is_found_again(customer, processor):
    processor.card(customer)
    processor.fails("silent_after", path="/v1/checkout/sessions")
    ordered = paying.top_up(organization=customer, amount_micros=20 * USD, key="page", at=processor.at)
    payment = paying.send(payment_id=ordered.pk, at=processor.at)
    assert payment.state == "unknown"
    processor.look()
    payment.refresh_from_db()
    assert (payment.state, processor.sent(path="/v1/checkout/sessions")) == ("needs_action", 2)  # one saved the card


def test_a_stored_error_is_never_sent_again_once_the_key_may_be_forgotten(customer, processor):
    processor.card(customer)
    processor.fails("stored_500")
    payment = paying.send(payment_id=order(customer).pk, at=processor.at)
    tries = []
    while payment.is_open:
        processor.look(timedelta(minutes=50))
        payment.refresh_from_db()
        tries.append((processor.at - NOON, processor.sent()))
    assert (payment.state, payment.failure_code) == ("failed", "never_arrived")
    assert (processor.charges, moved(payment)) == ([], [])
    last_send = max(when for (when, count), (_, before) in zip(tries[1:], tries, strict=False) if count > before)
    assert last_send < paying.KEY_LIFE


def test_with_a_forgotten_key_a_blind_retry_would_charge_twice(customer, processor):
    """Why nothing is sent again after a day: the processor has forgotten the key, and does not know the call."""
    card = processor.card(customer)
    asked = {
        "amount": "2000", "currency": "usd", "customer": processor.world.get("payment_method", card.processor_id)[
            "customer"
        ], "payment_method": card.processor_id, "confirm": "true",
    }  # fmt: skip
    for _ in range(2):
        processor.world.request("POST", "/v1/payment_intents", dict(asked), key="payment:1", secret="sk_test_ours")
    assert len(processor.charges) == 1
    processor.later(DAY)
    processor.world.request("POST", "/v1/payment_intents", dict(asked), key="payment:1", secret="sk_test_ours")
    assert len(processor.charges) == 2


def test_a_worker_that_died_before_or_after_the_call_is_found_by_the_sweep(customer, processor):
    processor.card(customer)
    payment = order(customer)
    assert paying.move(payment, State.SENDING, at=NOON, sent_at=NOON, look_at=NOON + paying.ANSWER_WITHIN)
    assert processor.look(MINUTE) == 0
    payment.refresh_from_db()
    assert payment.state == "sending"
    processor.look_until_closed(payment)
    assert (payment.state, len(processor.charges), moved(payment)) == ("succeeded", 1, [20 * USD])


def test_a_processor_that_is_away_costs_fewer_and_fewer_calls(customer, processor):
    processor.card(customer)
    payment = order(customer)
    processor.fails(*["silent_before"] * 10_000, path="/v1/")
    before = len(processor.world.calls)
    for _ in range(6 * 60):
        processor.look(timedelta(seconds=10))
    assert len(processor.world.calls) - before < 30
    processor.world.faults.clear()
    assert processor.look_until_closed(payment).state == "succeeded"
    assert len(processor.charges) == 1


def test_money_that_came_after_all_is_booked_whatever_we_had_believed(customer, processor):
    payment = sent(processor, customer, NEEDS_PROOF)
    made = processor.world.get("payment_intent", payment.processor_id)
    assert paying.move(payment, State.FAILED, at=processor.at)
    made["payment_method"] = processor.card(customer).processor_id
    far_paying.finish_intent(processor.world, made)
    processor.deliver()
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("succeeded", [20 * USD])


@pytest.mark.parametrize("ending", ["succeeded", "cancelled", "failed"])
def test_no_news_move_a_finished_payment_back(customer, processor, ending):
    payment = sent(processor, customer)
    Payment.objects.filter(pk=payment.pk).update(state=ending)
    for state in OPEN:
        assert not paying.move(payment, state, at=NOON)
    assert not paying.move(payment, State.CANCELLED, at=NOON)
    payment.refresh_from_db()
    assert payment.state == ending


def test_the_map_of_moves_knows_every_state_and_only_success_is_final_for_ever():
    assert set(paying.MOVES) == set(State)
    assert [state for state, targets in paying.MOVES.items() if not targets] == [State.SUCCEEDED]


@pytest.mark.parametrize(
    "facts",
    [{"amount": 1999}, {"currency": "eur"}, {"metadata": {}}, {"metadata": {"gpumarket": "payment:pay_other"}}],
)
def test_an_object_that_is_not_what_was_asked_for_moves_nothing(customer, processor, facts):
    processor.card(customer)
    payment = order(customer)
    ghost = processor.ghost(customer, **({"metadata": {"gpumarket": payment.processor_key}} | facts))
    with pytest.raises(Stranger):
        paying.apply_intent(payment, gateway.intent(ghost["id"]), at=processor.at)
    payment.refresh_from_db()
    assert (payment.state, moved(payment)) == ("created", [])


def test_another_customers_object_moves_nothing(customer, processor):
    processor.card(customer)
    payment = order(customer)
    ghost = processor.ghost(make_organization(), metadata={"gpumarket": payment.processor_key})
    with pytest.raises(Stranger):
        paying.apply_intent(payment, gateway.intent(ghost["id"]), at=processor.at)
    assert moved(payment) == []


def test_the_processor_account_mirrors_what_the_processor_has(customer, processor):
    for number in range(3):
        paying.send(payment_id=order(customer, key=str(number), card=processor.card(customer)).pk, at=processor.at)
    mirror = -accounts.balance_micros(accounts.platform(Account.Kind.PROCESSOR, "USD"))
    assert mirror == 10_000 * sum(charge["amount"] for charge in processor.charges) == 60 * USD
    assert Transfer.objects.filter(source__kind="processor", created_at__gte=F("effective_at")).count() == 3
