"""Payments are ordered once, in whole minor units of the customer's own currency, with a card that is there."""

import pytest
from django.db import transaction

from billing.errors import BadAmount, KeyReused, NoCard, NoProcessor
from billing.models import Payment
from billing.payments import gateway, paying
from tests.billing.makers import NOON, USD, make_organization
from tests.billing.payments.conftest import make_card

INVOICE = Payment.Purpose.INVOICE


def charge(organization, amount_micros=20 * USD, **overrides):
    ordinary = {"purpose": INVOICE, "key": "invoice:ivc_1:1", "at": NOON}
    return paying.charge(organization=organization, amount_micros=amount_micros, **(ordinary | overrides))


def top_up(organization, amount_micros=20 * USD, **overrides):
    return paying.top_up(
        organization=organization, amount_micros=amount_micros, **({"key": "top-up:1", "at": NOON} | overrides)
    )


def test_a_charge_takes_the_default_card_and_waits_to_be_sent(customer):
    make_card(customer, processor_id="pm_2", is_default=False)
    card = make_card(customer)
    payment = charge(customer, reference="ivc_1")
    assert (payment.state, payment.card, payment.currency, payment.reference) == ("created", card, "USD", "ivc_1")
    assert not payment.is_on_session
    assert payment.look_at == NOON


def test_ordering_twice_with_one_key_is_one_payment(customer):
    make_card(customer)
    assert charge(customer).pk == charge(customer).pk
    with pytest.raises(KeyReused):
        charge(customer, 21 * USD)


def test_somebody_elses_key_is_refused(customer):
    other = make_organization()
    make_card(customer)
    make_card(other, processor_id="pm_other")
    charge(customer)
    with pytest.raises(KeyReused):
        charge(other)


@pytest.mark.parametrize("amount_micros", [-20 * USD, 0, 10_000, 20 * USD + 1, 20 * USD + 1000, 10**12])
def test_an_amount_that_no_card_can_pay_is_refused(customer, amount_micros):
    make_card(customer)
    with pytest.raises(BadAmount):
        charge(customer, amount_micros)
    with pytest.raises(BadAmount):
        top_up(customer, amount_micros)
    assert not Payment.objects.exists()


@pytest.mark.django_db
def test_a_yen_has_no_cents():
    organization = make_organization(currency="JPY")
    make_card(organization)
    with pytest.raises(BadAmount):
        charge(organization, 2000 * USD + USD // 2)
    assert charge(organization, 2000 * USD).currency == "JPY"


def test_without_a_card_nothing_can_be_charged(customer):
    with pytest.raises(NoCard):
        charge(customer)
    card = make_card(customer, is_default=False, removed_at=NOON)
    with pytest.raises(NoCard):
        charge(customer, card=card)
    with pytest.raises(NoCard):
        top_up(customer, card=card)


def test_without_keys_cards_say_so_and_nothing_is_written(customer, settings):
    make_card(customer)
    settings.STRIPE_API_KEY = ""
    assert not gateway.is_there()
    with pytest.raises(NoProcessor):
        charge(customer)
    with pytest.raises(NoProcessor):
        gateway.intent("pi_1")
    assert paying.look_due(at=NOON) == 0
    assert not Payment.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_nobody_talks_to_the_processor_within_a_transaction():
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        gateway.intent("pi_1")
