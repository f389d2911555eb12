"""The processor's statement and our ledger: the difference is zero, or each part of it is a case."""

from datetime import timedelta
from functools import partial

import pytest

from billing import accounts, books
from billing.models import BalanceEntry, Payment, ReconciliationCase, Transfer
from billing.payments import gateway, paying, reconciliation, refunds
from billing.test_processor import connect
from billing.test_processor import disputes as far_disputes
from billing.test_processor import paying as far_paying
from tests.billing.makers import USD, account, make_organization, move
from tests.billing.payments.stage import DAY, order
from tests.billing.payments.test_refunds import refund_of


@pytest.fixture
def paid(customer, processor):
    processor.card(customer)
    return paying.send(payment_id=order(customer).pk, at=processor.at)


def far_future(processor):
    """Transfers are written down by the database's own clock, which is not the test's."""
    return max(processor.at, Transfer.objects.order_by("-created_at").first().created_at + timedelta(hours=1))


def agree(processor):
    reconciliation.run(at=far_future(processor))
    (dollars,) = [one for one in reconciliation.comparisons(at=far_future(processor)) if one.currency == "USD"]
    assert (dollars.difference_micros, dollars.unexplained_micros) == (0, 0), list(reconciliation.cases())
    assert not reconciliation.cases().exists()
    assert books.check(at=far_future(processor)) == []
    return dollars


def test_after_a_payment_both_sides_agree_to_the_cent_fee_included(processor, paid):
    dollars = agree(processor)
    assert dollars.ledger_micros == dollars.processor_micros == 20 * USD - 880_000
    assert reconciliation.read(at=processor.at) == 0


def test_everything_that_can_happen_to_money_reconciles(customer, processor, paid):
    for number in range(3):
        other = paying.send(payment_id=order(customer, 100 * USD, key=str(number)).pk, at=processor.at)
    refund = refund_of(paid)
    refunds.look_due(at=processor.at)
    refund.refresh_from_db()
    far_paying.fail_refund(processor.world, processor.world.get("refund", refund.processor_id))
    won = far_disputes.open_dispute(processor.world, other.processor_id)
    far_disputes.close_dispute(processor.world, won["id"], is_won=True)
    far_disputes.open_dispute(processor.world, paid.processor_id)
    processor.deliver()
    connect.pay_out(processor.world, 5000, "usd")
    agree(processor)
    assert {entry.type for entry in BalanceEntry.objects.all()} == {
        "charge", "refund", "refund_failure", "adjustment", "payout",
    }  # fmt: skip


def test_what_we_add_to_our_balance_at_the_processor_comes_from_our_bank(processor, paid):
    added = {"id": "tu_1", "currency": "usd"}
    processor.world.booked("topup", added, 50_000)
    agree(processor)
    assert accounts.balance_micros(accounts.platform("bank", "USD")) == 500 * USD
    processor.world.booked("topup_reversal", added, -50_000)
    agree(processor)
    assert accounts.balance_micros(accounts.platform("bank", "USD")) == 0


def test_a_transfer_to_a_supplier_reconciles_by_its_key(customer, processor, paid):
    made = gateway.connect_account(key="account:1", country="NO", email="supplier@example.com")
    connect.give_papers(processor.world, made.id)
    assert gateway.connected_account(made.id).can_be_paid
    sent = gateway.transfer(key="payout:1", account_id=made.id, amount_micros=5 * USD, currency="USD", group="st_1")
    assert gateway.transferred(sent.id).amount_micros == 5 * USD
    reconciliation.run(at=far_future(processor))
    (case,) = reconciliation.cases()
    assert (case.our_key, case.ledger_micros, case.processor_micros) == ("payout:1", 0, -5 * USD)
    move(account(customer, "cash"), "processor", 5 * USD, key="payout:1")
    agree(processor)


def test_a_charge_that_we_never_booked_is_a_case_until_we_do(customer, processor, paid):
    agree(processor)
    payment = order(customer, 30 * USD, key="2")
    processor.ghost(customer, amount=3000, metadata={"gpumarket": payment.processor_key})
    reconciliation.run(at=far_future(processor))
    (case,) = reconciliation.cases()
    assert (case.our_key, case.difference_micros) == (payment.processor_key, -30 * USD)
    (dollars,) = reconciliation.comparisons(at=far_future(processor))
    assert (dollars.difference_micros, dollars.cases_micros, dollars.unexplained_micros) == (-30 * USD, -30 * USD, 0)
    processor.deliver()
    agree(processor)
    assert ReconciliationCase.objects.get().closed_at is not None


def test_what_we_booked_and_the_processor_does_not_know_is_a_case(customer, processor, paid):
    move("processor", account(customer, "cash"), 7 * USD, key="payment:pay_invented")
    reconciliation.run(at=far_future(processor))
    (case,) = reconciliation.cases()
    assert (case.our_key, case.difference_micros) == ("payment:pay_invented", 7 * USD)


def test_what_was_moved_a_moment_ago_is_on_its_way_and_no_case(customer, processor, paid):
    agree(processor)
    move("processor", account(customer, "cash"), 7 * USD, key="payment:pay_new")
    now = Transfer.objects.latest("created_at").created_at
    reconciliation.run(at=now)
    assert not reconciliation.cases().exists()
    (dollars,) = reconciliation.comparisons(at=now)
    assert (dollars.difference_micros, dollars.on_its_way_micros, dollars.unexplained_micros) == (7 * USD, 7 * USD, 0)


def test_a_strangers_charge_is_a_case_with_the_processors_own_id(customer, processor, paid):
    processor.ghost(customer)
    reconciliation.run(at=far_future(processor))
    (case,) = reconciliation.cases()
    assert case.our_key.startswith("processor:txn_")


def test_reading_the_same_statement_again_books_no_fee_twice(processor, paid):
    for _ in range(3):
        reconciliation.read(at=processor.later(DAY))
    assert Transfer.objects.filter(key__startswith="processor-fee:").count() == 1


@pytest.fixture
def long_statement(customer, processor, paid, monkeypatch):
    """Nine lines at the processor, of which it gives four a page."""
    for number in range(8):
        paying.send(payment_id=order(customer, 10 * USD, key=str(number)).pk, at=processor.later())
    monkeypatch.setattr(gateway, "PAGE", 4)
    return processor


def pages(processor):
    return processor.sent("GET", "/v1/balance_transactions")


def test_a_long_statement_is_kept_page_by_page_and_read_on_where_it_stopped(long_statement):
    processor = long_statement
    assert [reconciliation.read(at=processor.at, seconds=0) for _ in range(2)] == [4, 4]
    assert (BalanceEntry.objects.count(), reconciliation.is_reading()) == (8, True)
    assert reconciliation.read(at=processor.at, seconds=0) == 1
    assert (pages(processor), reconciliation.is_reading()) == (3, False)
    agree(processor)


def test_a_reader_that_is_killed_loses_no_page_that_it_had(long_statement, monkeypatch):
    processor, asked = long_statement, []

    def dies(**wanted):
        asked.append(wanted)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(**wanted)

    answers = gateway.statement
    monkeypatch.setattr(gateway, "statement", dies)
    with pytest.raises(KeyboardInterrupt):
        reconciliation.run(at=far_future(processor))
    assert BalanceEntry.objects.count() == 8
    assert not ReconciliationCase.objects.exists()
    agree(processor)
    assert len(asked) == 4


def test_what_is_read_in_part_is_compared_with_nothing(long_statement, monkeypatch):
    processor = long_statement
    monkeypatch.setattr(reconciliation, "read", partial(reconciliation.read, seconds=0))
    assert reconciliation.run(at=far_future(processor)) == 0
    assert reconciliation.is_reading()
    assert not ReconciliationCase.objects.exists()


def test_what_came_while_the_statement_was_being_read_is_read_the_next_time(long_statement, customer):
    processor = long_statement
    reconciliation.read(at=processor.at, seconds=0)
    paying.send(payment_id=order(customer, 5 * USD, key="meanwhile").pk, at=processor.later())
    reconciliation.read(at=processor.at)
    assert BalanceEntry.objects.count() == 9
    agree(processor)
    assert BalanceEntry.objects.count() == 10


def test_each_currency_is_compared_alone(processor, paid, db):
    organization = make_organization(currency="JPY")
    processor.card(organization)
    paying.send(payment_id=order(organization, 2000 * USD, key="yen").pk, at=processor.at)
    reconciliation.run(at=far_future(processor))
    found = {one.currency: one.difference_micros for one in reconciliation.comparisons(at=far_future(processor))}
    assert found == {"JPY": 0, "USD": 0}
    assert Payment.objects.count() == 2
