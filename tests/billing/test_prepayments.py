"""Money paid ahead: whose it is before it is earned, and how it goes back."""

from datetime import timedelta

import pytest

from billing import accounts, books, prepayments, usage
from billing.errors import HoldClosed, InsufficientFunds
from billing.models import Account, UsageSpan
from billing.prepayments import Paid, Part
from tests.billing.makers import HOUR, NOON, USD, block, hold_money, make_organization, make_price, start, wallet

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme():
    return make_organization(promo=3 * USD, cash=5 * USD)


def deferred():
    return accounts.platform(Account.Kind.DEFERRED, "USD")


def collect(organization, resource_id="rsv_1"):
    return prepayments.collect(
        organization=organization, resource_id=resource_id, block=block(), reason="test", at=NOON
    )


def test_what_was_held_is_taken_whole_and_is_nobodys_revenue(acme):
    hold_money(acme, 4 * USD, resource_id="rsv_1")
    assert collect(acme) == Paid(promo_micros=3 * USD, cash_micros=USD)
    assert accounts.balance_micros(deferred()) == 4 * USD
    assert (wallet(acme).available_micros, wallet(acme).held_micros) == (4 * USD, 0)
    with pytest.raises(HoldClosed):
        collect(acme)
    assert books.check(at=NOON) == []


def test_it_is_earned_once_for_its_key(acme):
    hold_money(acme, 4 * USD, resource_id="rsv_1")
    collect(acme)
    for _ in range(2):
        prepayments.earn(key="rsv_1:1", currency="USD", amount_micros=USD, reason="test", at=NOON)
    assert accounts.balance_micros(deferred()) == 3 * USD


def test_what_goes_back_beyond_what_is_kept_is_our_expense_and_pays_debts_first(acme):
    hold_money(acme, 8 * USD, resource_id="rsv_1")
    collect(acme)
    start(acme, resource_id="ins_1", price_version=make_price(micros_per_unit_hour=USD), quantity=1)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    assert wallet(acme).owed_micros == USD
    prepayments.give_back(
        organization=acme,
        key="rsv_1:x",
        back=Paid(USD, 3 * USD),
        deferred_micros=2 * USD,
        reason="test",
        at=NOON,
        block=block("cancelled"),
    )
    assert wallet(acme).owed_micros == 0
    assert wallet(acme).available_micros == 3 * USD
    assert accounts.balance_micros(deferred()) == 6 * USD
    assert accounts.balance_micros(accounts.platform(Account.Kind.SLA_EXPENSE, "USD")) == -2 * USD
    assert books.check(at=NOON + HOUR) == []


def test_a_payment_takes_credit_first_and_says_what_paid_for_each_part(acme):
    parts = [Part("one", deferred(), 2 * USD), Part("two", deferred(), 4 * USD)]
    paid = prepayments.pay(organization=acme, key="trade:1", parts=parts, block=block("trade"), reason="test", at=NOON)
    assert paid == {"one": Paid(2 * USD, 0), "two": Paid(USD, 3 * USD)}
    with pytest.raises(InsufficientFunds):
        prepayments.pay(
            organization=acme, key="trade:2", parts=[Part("x", deferred(), 3 * USD)], block=block("trade"), reason="t",
            at=NOON,
        )  # fmt: skip
    assert wallet(acme).available_micros == 2 * USD


def test_what_is_paid_ahead_is_measured_and_neither_charged_nor_burned(acme):
    start(acme, resource_id="ins_1", quantity=8, covered_by="rsv_1")
    assert UsageSpan.objects.get().micros_per_unit_hour == 0
    span = usage.stop(resource_id="ins_1", at=NOON + timedelta(hours=2))
    assert span is not None
    assert (span.charged_micros, usage.amount_micros(span=span, at=NOON + HOUR)) == (0, 0)
    assert usage.unit_milliseconds(span=span, at=NOON + 3 * HOUR) == 8 * 2 * 3_600_000
    assert wallet(acme).available_micros == 8 * USD
    assert books.check(at=NOON + 3 * HOUR) == []
