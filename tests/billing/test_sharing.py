"""Parts of what was asked for on credit: a seller has its own once the invoice of it is paid, and not before."""

import pytest

from billing import books, collecting, daily, invoice_payments
from billing.models import Invoice, Outcome
from billing.outcomes import settling, sharing
from billing.outcomes.words import Share
from billing.suppliers import purses
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, grant, make_organization, make_price, pay_in, wallet
from tests.billing.people import give_credit_line
from tests.billing.results import item, reverse
from tests.billing.supplying import make_supplier
from tests.billing.test_dunning import after, days, run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    daily.sum_up(at=MAY)
    assert books.check(at=MAY) == []


@pytest.fixture
def acme(db):
    make_seller("US")
    made = make_organization()
    give_credit_line(made, 1000 * USD, net_days=7)
    return made


@pytest.fixture
def models(db):
    return make_supplier()


def ask(acme, models, micros=10 * USD):
    return settling.charge(
        organization=acme, resource_id="rvp_1", key="revenue", amount_micros=micros,
        shares=[Share(models, 8_000), Share(None, 2_000)], item=item("2026-03", unit="revenue", micros_per_unit=micros),
        at=NOON,
    )  # fmt: skip


def got(models):
    purse = purses.of(models.pk).get("USD")
    return purse.payable.balance_micros if purse else 0


def owe(acme, micros, *, begin=NOON):
    use(acme, begin=begin, hours=1, quantity=1, price=make_price(micros_per_unit_hour=micros), resource_id=f"i{begin}")


def pay(acme, micros, *, at):
    pay_in(acme, micros)
    paid = invoice_payments.pay_named(Invoice.objects.get().public_id, acme, micros, f"pay {at}", at)
    collecting.review(organization=acme, at=at)
    return paid


def test_a_seller_has_its_part_once_the_invoice_is_paid_whatever_its_customer_owes_for_what_ran_since(acme, models):
    ask(acme, models)
    assert sharing.share_out(at=NOON) == 0
    close()
    assert sharing.share_out(at=CLOSE) == 0
    owe(acme, 7 * USD, begin=APRIL + 3 * HOUR)
    assert pay(acme, 4 * USD, at=APRIL + 4 * HOUR) == 4 * USD
    assert sharing.share_out(at=APRIL + 4 * HOUR) == 0
    assert pay(acme, 6 * USD, at=APRIL + 5 * HOUR) == 6 * USD
    assert wallet(acme).owed_micros == 7 * USD
    assert sharing.share_out(at=APRIL + 5 * HOUR) == 1
    assert got(models) == 8 * USD


def test_a_seller_has_no_part_of_what_was_written_off_until_that_is_recovered(acme, models):
    ask(acme, models)
    close()
    for day in days(-8, 70):
        run(after(day, hours=1))
    assert wallet(acme).owed_micros == 0
    assert sharing.share_out(at=after(80)) == 0
    assert got(models) == 0
    pay(acme, 10 * USD, at=after(81))
    assert sharing.share_out(at=after(82)) == 1
    assert got(models) == 8 * USD


def test_what_cash_paid_at_once_is_shared_whatever_else_is_owed(acme, models):
    pay_in(acme, 10 * USD)
    ask(acme, models)
    owe(acme, 5 * USD)
    assert wallet(acme).owed_micros == 5 * USD
    assert sharing.share_out(at=NOON) == 1
    assert got(models) == 8 * USD


def test_what_is_given_back_waits_with_what_it_is_of_and_is_taken_from_its_seller_at_once_after_that(acme, models):
    asked = ask(acme, models)
    reverse(asked, 4 * USD, key="a")
    assert sharing.share_out(at=NOON) == 0
    grant(acme, 6 * USD)
    assert wallet(acme).owed_micros == 0
    assert sharing.share_out(at=NOON) == 2
    assert got(models) == 6 * USD * 8 // 10
    owe(acme, 7 * USD)
    reverse(asked, USD, key="b")
    assert sharing.share_out(at=NOON) == 1
    assert got(models) == 5 * USD * 8 // 10
    assert not Outcome.objects.filter(sharing=None).exists()
