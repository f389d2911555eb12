"""Saved cards: one default, and what was removed stays removed."""

import pytest

from billing.models import Card, ProcessorCustomer
from billing.payments import cards, customers
from tests.billing.makers import NOON, make_organization
from tests.billing.payments.stage import NEEDS_PROOF


def test_the_first_card_is_the_default_until_another_is_chosen(customer, processor):
    first, second = processor.card(customer), processor.card(customer, NEEDS_PROOF)
    first.refresh_from_db()
    assert (first.is_default, second.is_default) == (True, False)
    cards.make_default(card=second)
    assert [card.pk for card in cards.of(customer)] == [second.pk, first.pk]


def test_a_removed_card_is_gone_here_and_at_the_processor_and_stays_so(customer, processor):
    first, second = processor.card(customer), processor.card(customer)
    cards.forget(card=first, at=NOON)
    cards.refresh(organization=customer, at=NOON)
    assert processor.world.get("payment_method", first.processor_id)["customer"] is None
    cards.refresh(organization=customer, at=NOON)
    assert [card.pk for card in cards.of(customer)] == [second.pk]
    assert Card.objects.get(pk=second.pk).is_default


def test_a_card_whose_removal_was_not_heard_is_removed_the_next_time(customer, processor):
    card = processor.card(customer)
    cards.forget(card=card, at=NOON)
    processor.fails("silent_before", path="/v1/payment_methods")
    with pytest.raises(Exception, match="no answer"):
        cards.refresh(organization=customer, at=NOON)
    assert not cards.of(customer).exists()
    cards.refresh(organization=customer, at=NOON)
    assert processor.world.get("payment_method", card.processor_id)["customer"] is None


def test_a_card_that_cannot_be_saved_is_not_there(customer, processor):
    with pytest.raises(Exception, match="declined"):
        processor.card(customer, "4000000000000002")
    cards.refresh(organization=customer, at=NOON)
    assert not cards.of(customer).exists()


def test_an_organization_is_one_customer_even_if_an_answer_was_lost(customer, processor):
    processor.fails("silent_after", path="/v1/customers")
    with pytest.raises(Exception, match="no answer"):
        customers.customer_id(customer)
    assert customers.customer_id(customer) == customers.customer_id(customer)
    assert len(processor.world.things["customer"]) == 1
    assert ProcessorCustomer.objects.count() == 1


def test_nobody_sees_anothers_cards(customer, processor):
    processor.card(customer)
    other = make_organization()
    customers.customer_id(other)
    cards.refresh(organization=other, at=NOON)
    assert not cards.of(other).exists()
