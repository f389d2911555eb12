"""Disputes: the bank takes money, the customer owes it, and gets it back where we win."""

import pytest

from billing import books
from billing.models import Dispute
from billing.payments import paying, refunds
from billing.test_processor import disputes as far_disputes
from billing.test_processor import hosted
from tests.billing.makers import NOON, USD, account, grant, move, wallet
from tests.billing.payments.stage import NEEDS_PROOF, order


@pytest.fixture
def paid(customer, processor):
    processor.card(customer)
    return paying.send(payment_id=order(customer).pk, at=NOON)


def disputed(processor, payment):
    opened = far_disputes.open_dispute(processor.world, payment.processor_id)
    processor.deliver()
    return opened


def test_what_the_bank_took_is_taken_from_cash_and_the_rest_is_owed(customer, processor, paid):
    move(account(customer, "cash"), "revenue", 12 * USD)
    grant(customer, 3 * USD)
    disputed(processor, paid)
    has = wallet(customer)
    assert (has.cash_micros, has.owed_micros, has.promo_micros) == (0, 12 * USD, 3 * USD)
    assert Dispute.objects.get().state == "taken"
    assert refunds.left_micros(paid) == 0
    assert books.check(at=NOON) == []


def test_a_dispute_that_is_won_brings_it_back(customer, processor, paid):
    move(account(customer, "cash"), "revenue", 12 * USD)
    opened = disputed(processor, paid)
    far_disputes.close_dispute(processor.world, opened["id"], is_won=True)
    processor.deliver()
    has = wallet(customer)
    assert (has.cash_micros, has.owed_micros) == (8 * USD, 0)
    assert Dispute.objects.get().state == "won"
    assert refunds.left_micros(paid) == 20 * USD


def test_a_dispute_that_is_lost_stays_taken(customer, processor, paid):
    opened = disputed(processor, paid)
    far_disputes.close_dispute(processor.world, opened["id"], is_won=False)
    processor.deliver()
    assert (wallet(customer).cash_micros, Dispute.objects.get().state) == (0, "lost")


def test_a_dispute_of_which_we_hear_before_its_payment_is_taken_all_the_same(customer, processor):
    waiting = paying.send(payment_id=order(customer, card=processor.card(customer, NEEDS_PROOF)).pk, at=NOON)
    url = paying.continue_url(payment=waiting, at=NOON)
    hosted.prove(processor.world, url.rpartition("/")[2], is_them=True)
    far_disputes.open_dispute(processor.world, waiting.processor_id)
    for event in [one for one in processor.world.events if one["type"].startswith("charge.dispute.")]:
        processor.deliver(event)
    assert Dispute.objects.get().state == "taken"
    processor.deliver()
    assert (wallet(customer).cash_micros, wallet(customer).owed_micros) == (0, 0)
    assert books.check(at=NOON) == []


def test_a_dispute_of_a_strangers_payment_moves_nothing(customer, processor, paid):
    ghost = processor.ghost(customer)
    far_disputes.open_dispute(processor.world, ghost["id"])
    assert processor.deliver()[-1] == "refused: it belongs to none of our payments"
    assert wallet(customer).cash_micros == 20 * USD
    assert not Dispute.objects.exists()
