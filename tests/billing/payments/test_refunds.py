"""Refunds: two people, never more than is left, and the money moves once each way."""

from uuid import uuid4

import pytest
from django.apps import apps
from django.db import transaction
from django.db.utils import IntegrityError

from billing import books
from billing.errors import AlreadyDecided, KeyReused, RefundTooLarge, SecondPersonNeeded
from billing.models import Refund
from billing.payments import paying, reconciliation, refunds
from billing.test_processor import paying as far_paying
from tests.billing.makers import NOON, USD, account, move, wallet
from tests.billing.payments.stage import DAY, order


def person(name):
    return apps.get_model("marketplace", "User").objects.get_or_create(email=f"{name}@operator.example")[0]


@pytest.fixture
def paid(customer, processor):
    processor.card(customer)
    return paying.send(payment_id=order(customer).pk, at=NOON)


def proposed(payment, amount_micros=5 * USD, **overrides):
    ordinary = {"reason": "Asked for", "by": person("ann").pk, "key": uuid4(), "at": NOON}
    return refunds.propose(payment=payment, amount_micros=amount_micros, **(ordinary | overrides))


def refund_of(payment, amount_micros=5 * USD):
    """A refund that a second person has approved."""
    return refunds.approve(refund=proposed(payment, amount_micros), by=person("ben").pk, at=NOON)


def test_a_refund_goes_back_to_the_card_once(customer, processor, paid):
    refund = refund_of(paid)
    assert wallet(customer).cash_micros == 15 * USD
    assert refunds.look_due(at=processor.at) == 1
    assert refunds.look_due(at=processor.later(DAY)) == 0
    refund.refresh_from_db()
    assert refund.state == "succeeded"
    assert [one["amount"] for one in processor.world.things["refund"].values()] == [500]
    assert wallet(customer).cash_micros == 15 * USD
    assert books.check(at=NOON) == []


def test_nothing_moves_until_a_second_person_approves(customer, processor, paid):
    refund = proposed(paid)
    with pytest.raises(SecondPersonNeeded):
        refunds.approve(refund=refund, by=person("ann").pk, at=NOON)
    assert refunds.look_due(at=processor.at) == 0
    assert (wallet(customer).cash_micros, processor.world.things["refund"]) == (20 * USD, {})


def test_somebody_decides_once(paid):
    refund = refund_of(paid)
    with pytest.raises(AlreadyDecided):
        refunds.approve(refund=refund, by=person("ben").pk, at=NOON)
    with pytest.raises(AlreadyDecided):
        refunds.decline(refund=refund, by=person("ben").pk, at=NOON)
    other = proposed(paid)
    refunds.decline(refund=other, by=person("ann").pk, at=NOON)
    with pytest.raises(AlreadyDecided):
        refunds.approve(refund=other, by=person("ben").pk, at=NOON)


@pytest.mark.parametrize("amount_micros", [20 * USD + 10_000, 0, -5 * USD, 5 * USD + 1])
def test_a_refund_above_the_payment_or_of_no_whole_cents_is_refused(paid, amount_micros):
    with pytest.raises(RefundTooLarge):
        proposed(paid, amount_micros)


def test_all_refunds_together_are_never_above_the_payment(paid):
    proposed(paid, 15 * USD)
    with pytest.raises(RefundTooLarge) as refused:
        proposed(paid, 6 * USD)
    assert refused.value.left_micros == 5 * USD
    assert refunds.left_micros(paid) == 5 * USD


def test_what_was_spent_cannot_be_refunded(customer, paid):
    refund = proposed(paid, 15 * USD)
    move(account(customer, "cash"), "revenue", 10 * USD)
    with pytest.raises(RefundTooLarge):
        refunds.approve(refund=refund, by=person("ben").pk, at=NOON)


def test_a_payment_that_failed_has_nothing_to_refund(customer, processor):
    processor.card(customer)
    with pytest.raises(RefundTooLarge):
        proposed(order(customer))


def test_the_same_proposal_sent_twice_counts_once(paid):
    key = uuid4()
    assert proposed(paid, key=key).pk == proposed(paid, key=key).pk
    with pytest.raises(KeyReused):
        proposed(paid, 6 * USD, key=key)


@pytest.mark.parametrize("fault", ["silent_before", "silent_after", "rate_limit"])
def test_without_an_answer_it_is_looked_for_and_refunded_once(customer, processor, paid, fault):
    refund = refund_of(paid)
    processor.fails(fault, path="/v1/refunds")
    refunds.look_due(at=processor.at)
    refund.refresh_from_db()
    assert refund.state == "unknown"
    refunds.look_due(at=processor.later())
    refund.refresh_from_db()
    assert refund.state == "succeeded"
    assert len(processor.world.things["refund"]) == 1
    assert wallet(customer).cash_micros == 15 * USD


def test_a_refund_that_the_processor_refuses_gives_the_cash_back(customer, processor, paid):
    refund = refund_of(paid)
    processor.world.get("charge", paid.charge_id)["disputed"] = True
    refunds.look_due(at=processor.at)
    refund.refresh_from_db()
    assert refund.state == "failed"
    assert "greater than" in refund.failure_text
    assert wallet(customer).cash_micros == 20 * USD


def test_a_refund_that_comes_back_days_later_is_the_customers_again(customer, processor, paid):
    refund = refund_of(paid)
    refunds.look_due(at=processor.at)
    refund.refresh_from_db()
    far_paying.fail_refund(processor.world, processor.world.get("refund", refund.processor_id))
    processor.deliver()
    refund.refresh_from_db()
    assert (refund.state, wallet(customer).cash_micros) == ("failed", 20 * USD)
    processor.deliver()
    assert wallet(customer).cash_micros == 20 * USD


def made_elsewhere(processor, payment, amount=500):
    """Let somebody give part of a payment back on the processor's own pages."""
    return far_paying.create_refund(processor.world, {"payment_intent": payment.processor_id, "amount": amount})


def test_a_refund_made_at_the_processor_is_booked_once_from_cash_and_the_rest_is_owed(customer, processor, paid):
    move(account(customer, "cash"), "revenue", 17 * USD)
    made_elsewhere(processor, paid)
    processor.deliver()
    processor.deliver()
    refund = Refund.objects.get()
    assert (refund.state, refund.amount_micros, refund.proposed_by, refunds.left_micros(paid)) == (
        "succeeded", 5 * USD, None, 15 * USD,
    )  # fmt: skip
    assert (wallet(customer).cash_micros, wallet(customer).owed_micros) == (0, 2 * USD)
    reconciliation.run(at=processor.later(DAY))
    assert [one.difference_micros for one in reconciliation.comparisons(at=processor.at)] == [0]
    assert books.check(at=NOON) == []


def test_a_refund_made_at_the_processor_that_comes_back_is_the_customers_again(customer, processor, paid):
    made = made_elsewhere(processor, paid)
    processor.deliver()
    far_paying.fail_refund(processor.world, made)
    processor.deliver()
    assert (Refund.objects.get().state, wallet(customer).cash_micros) == ("failed", 20 * USD)
    reconciliation.run(at=processor.later(DAY))
    assert not reconciliation.cases().exists()


def test_a_refund_of_a_strangers_payment_moves_nothing(customer, processor, paid):
    ghost = processor.ghost(customer)
    far_paying.create_refund(processor.world, {"payment_intent": ghost["id"]})
    assert "refused: it belongs to none of our payments" in processor.deliver()
    assert (Refund.objects.count(), wallet(customer).cash_micros) == (0, 20 * USD)


def test_nobody_gives_back_alone_what_was_not_found_at_the_processor(paid):
    with pytest.raises(IntegrityError, match="refund_needs_a_second_person"), transaction.atomic():
        Refund.objects.create(
            payment=paid, amount_micros=USD, reason="", state="succeeded", key=uuid4(), proposed_at=NOON
        )


def test_the_map_of_moves_knows_every_state():
    assert set(refunds.MOVES) == set(Refund.State)
