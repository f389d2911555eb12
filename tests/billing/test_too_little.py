"""Invoices of less than a card can be charged: they wait for the next one, and are a reason for nothing."""

import pytest

from billing import books
from billing.models import Collection, Invoice, Notice, Payment
from billing.payments import gateway, paying
from tests.billing.invoicing import CLOSE, MAY, close, use
from tests.billing.makers import HOUR, USD, hold_money, make_price, wallet
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import DAY, actions, after, days, owing, run, sanction, save_card, settle_payment, state

pytestmark = pytest.mark.django_db


@pytest.fixture
def card_rail(monkeypatch):
    """A card processor that is there; its answers are played by moving payments."""
    monkeypatch.setattr(gateway, "is_there", lambda: True)


def use_of_april(organization, *, micros):
    """Let something run in April, at a price of 150,000 micros; return its invoice, issued on 1 May."""
    price = make_price(micros_per_unit_hour=150_000)
    use(organization, begin=CLOSE + DAY, resource_id="ins_2", hours=micros // 150_000, quantity=1, price=price)
    close(at=MAY + 2 * HOUR)
    return Invoice.objects.select_related("organization").latest("pk")


def test_what_no_card_can_be_charged_for_waits_and_stops_nobody(card_rail):
    acme, _ = owing(micros=300_000)
    save_card(acme)
    for day in days(-8, 70):
        run(after(day))
    assert (actions(), state(), sanction(acme)) == ([], "open", "")
    hold_money(acme, USD)
    assert not Notice.objects.filter(organization=acme).exists()
    approved(recorded(acme, 300_000), at=after(70))
    assert state() == "paid"


@pytest.mark.parametrize(("april", "charged"), [(300_000, 600_000), (3 * USD, 3_300_000)])
def test_the_next_invoice_with_which_a_card_can_be_charged_asks_for_what_waited(april, charged, card_rail):
    acme, _ = owing(micros=300_000)
    save_card(acme)
    second = use_of_april(acme, micros=april)
    run(MAY + DAY)
    payment = Payment.objects.get()
    assert (payment.amount_micros, payment.reference) == (charged, second.public_id)
    assert paying._is_wanted(payment)
    settle_payment(payment, Payment.State.SUCCEEDED, at=MAY + 2 * DAY)
    run(MAY + 3 * DAY)
    assert {row.state for row in Collection.objects.all()} == {"paid"}
    assert (wallet(acme).owed_micros, wallet(acme).cash_micros, len(actions())) == (0, 0, 1)
    assert books.check(at=MAY + 4 * DAY) == []


def test_a_charge_for_two_invoices_is_not_sent_once_one_of_them_was_paid(card_rail):
    acme, first = owing(micros=300_000)
    save_card(acme)
    use_of_april(acme, micros=300_000)
    run(MAY + DAY)
    approved(recorded(acme, 300_000, invoice=first), at=MAY + DAY)
    assert not paying._is_wanted(Payment.objects.get())
