"""What was paid ahead on invoices: when it is paid, with its tax, once; and what was given back of it."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction

from billing import accounts, books, prepaid_audit, prepayments
from billing.invoicing import issuing, proof
from billing.models import Account, Collection, Invoice, InvoiceLine, InvoicePrepaid, PrepaidItem
from billing.prepayments import Paid, Part
from tests.billing.invoicing import APRIL, CLOSE, MAY, close, details, make_seller, use
from tests.billing.makers import HOUR, NOON, PRICE, USD, block, hold_money, make_organization, wallet
from tests.billing.people import give_credit_line

pytestmark = pytest.mark.django_db
ROWS = ((8, 10, 2 * USD),)
COST = 160 * USD


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=MAY + 20 * HOUR) == []
    assert books.recompute(at=MAY + 20 * HOUR) == []


@pytest.fixture
def acme(db):
    make_seller()
    return make_organization(cash=1000 * USD)


def buy(organization, *, at=NOON, rows=ROWS, resource_id="rsv_1", kind="reservation"):
    micros = sum(gpus * hours * price for gpus, hours, price in rows)
    hold_money(organization, micros, resource_id=resource_id, expires_at=at + HOUR)
    wanted = block(kind, rows, resource_id=resource_id, begin=at + 24 * HOUR)
    return prepayments.collect(organization=organization, resource_id=resource_id, block=wanted, reason="r", at=at)


def give_back(organization, back, *, at=NOON, kept=0, kind="cancelled", rows=ROWS, cause="cancelled"):
    prepayments.give_back(
        organization=organization, key=f"rsv_1:{cause}", back=back, deferred_micros=back.micros,
        block=block(kind, rows, begin=at + 24 * HOUR, kept=kept), reason="r", at=at,
    )  # fmt: skip


def last():
    return Invoice.objects.order_by("pk").last()


def amounts():
    return {row.key: row.amount_micros for row in InvoiceLine.objects.filter(invoice=last())}


def test_a_block_is_a_line_of_the_month_in_which_it_was_paid_and_its_delivery_is_on_none(acme):
    buy(acme)
    use(acme, begin=NOON, hours=2, quantity=1)
    assert close() == 1
    assert amounts()["prepay:rsv_1"] == COST
    assert (last().net_micros, last().tax_micros) == (COST + 2 * PRICE, (COST + 2 * PRICE) // 4)
    assert wallet(acme).cash_micros == 1000 * USD - last().total_micros
    line = InvoiceLine.objects.get(key="prepay:rsv_1")
    assert line.resource_name == (
        "Reservation rsv_1: 80 GPU-hours, 2026-03-03 12:00 – 2026-03-03 22:00 UTC, H100 in Narvik"
    )
    assert (line.micros_per_unit_hour, line.project, line.market) == (2 * USD, "prj_1", "reserved")
    prepayments.earn(key="rsv_1:1", currency="USD", amount_micros=COST, reason="Delivery", at=APRIL + HOUR)
    use(acme, begin=APRIL + HOUR, hours=10, resource_id="ins_2", covered_by="rsv_1", price=None, quantity=8)
    close(at=MAY + 2 * HOUR)
    assert sum(Invoice.objects.values_list("net_micros", flat=True)) == COST + 2 * PRICE


def test_a_month_with_nothing_but_a_block_has_its_invoice_in_the_customers_words(acme):
    details(acme, country="NO", language="ja")
    buy(acme, at=APRIL - HOUR)
    assert close() == 1
    assert InvoiceLine.objects.get().resource_name.startswith("予約 rsv_1：80 GPU時間、")
    assert (last().period_start, last().period_end) == (APRIL - timedelta(days=31), APRIL)
    assert close(at=CLOSE + HOUR) == 0


def test_the_proof_shows_its_arithmetic(acme):
    buy(acme, rows=((8, 10, 2 * USD), (4, 10, 1_234_567)))
    close()
    (found,) = proof.of_lines(last(), list(last().lines.all()))
    assert found.agrees
    assert [(step.gpus, step.hours, step.micros_per_gpu_hour) for step in found.prepaid.steps] == [
        (8, 10, 2 * USD), (4, 10, 1_234_567)
    ]  # fmt: skip
    assert found.prepaid.amount_micros == found.exact_micros == COST + 40 * 1_234_567
    assert found.line.amount_micros == COST + 49_380_000  # to the cent, once


def test_what_credit_paid_is_a_reduction_of_the_price_and_carries_no_tax(db):
    make_seller()
    acme = make_organization(promo=60 * USD, cash=1000 * USD)
    assert buy(acme) == Paid(60 * USD, 100 * USD)
    use(acme, begin=NOON, hours=2, quantity=1)
    close()
    assert (last().promo_micros, last().net_micros) == (60 * USD, 100 * USD + 2 * PRICE)
    use(acme, begin=APRIL + HOUR, hours=4, quantity=1, resource_id="ins_2")
    close(at=MAY + 2 * HOUR)
    assert (last().promo_micros, last().net_micros) == (0, 4 * PRICE)


def test_what_is_given_back_in_the_same_month_takes_its_tax_along(acme):
    paid = buy(acme)
    give_back(acme, Paid(0, 120 * USD), kept=40 * USD, at=NOON + HOUR)
    assert paid.micros == COST
    close()
    assert amounts() == {"prepay:rsv_1": COST, "unpay:rsv_1:cancelled": -120 * USD}
    assert (last().net_micros, last().tax_micros) == (40 * USD, 10 * USD)
    assert wallet(acme).cash_micros == 950 * USD


def test_what_is_given_back_later_is_a_credit_note_of_its_invoice_and_on_no_other(acme):
    buy(acme)
    close()
    give_back(acme, Paid(0, COST), at=APRIL + HOUR)
    assert close(at=MAY + 2 * HOUR) == 0
    assert issuing.take_back_due(at=MAY + 2 * HOUR) == 1
    note = Invoice.objects.get(kind="credit_note")
    assert (note.net_micros, note.tax_micros) == (COST, COST // 4)
    assert InvoiceLine.objects.get(invoice=note).amount_micros == COST
    assert wallet(acme).cash_micros == 1000 * USD
    use(acme, begin=MAY + 3 * HOUR, hours=100, quantity=1)
    assert issuing.issue(organization=acme, at=MAY + 200 * HOUR).net_micros == 100 * PRICE


def test_who_bought_and_cancelled_asks_for_no_invoice_and_keeps_nobody_from_theirs(acme):
    buy(acme)
    give_back(acme, Paid(0, COST), at=NOON + HOUR)
    assert issuing.month_ends(until=CLOSE) == []
    assert close() == 0


def test_a_block_on_credit_of_the_next_month_is_not_called_due_with_this_invoice(db):
    make_seller()
    acme = make_organization(cash=100 * USD)
    give_credit_line(acme, 1000 * USD)
    use(acme, begin=NOON, hours=2, quantity=1)
    buy(acme, at=APRIL + HOUR)
    assert wallet(acme).owed_micros == COST + 2 * PRICE - 100 * USD
    close()
    assert (last().total_micros, last().due_micros, last().older_due_micros) == (6_250_000, 0, 0)
    close(at=MAY + 2 * HOUR)
    assert (last().net_micros, last().due_micros) == (COST, 66_250_000 + 40 * USD)
    assert wallet(acme).owed_micros == last().due_micros
    assert Collection.objects.count() == 1


def test_a_trade_is_one_line_and_what_the_seller_gets_back_is_no_more_than_it_had_cost(acme):
    seller = make_organization(cash=200 * USD)
    buy(seller, resource_id="rsv_9")
    deferred, fees = (accounts.platform(kind, "USD") for kind in (Account.Kind.DEFERRED, Account.Kind.FEES))
    for organization in sorted((acme, seller), key=lambda one: one.pk):
        accounts.lock(organization_id=organization.pk, currency="USD")
    paid = prepayments.pay(
        organization=acme, key="trade:trd_1", parts=[Part("fees", fees, 10 * USD), Part("lst_1", deferred, 190 * USD)],
        block=block("trade", ((8, 10, 2_500_000),)), reason="Hours", at=NOON,
    )  # fmt: skip
    prepayments.pay_out(
        organization=seller, key="sale:trd_1:lst_1", source=deferred, sent=paid["lst_1"], reason="Sale", at=NOON,
        returned=(block("resold", ROWS, resource_id="rsv_9"), Paid(0, COST)),
    )  # fmt: skip
    use(seller, begin=NOON, hours=4, quantity=1)
    assert close() == 2
    lines = dict(InvoiceLine.objects.values_list("key", "amount_micros"))
    assert (lines["trade:trd_1"], lines["sale:trd_1:lst_1"], lines["prepay:rsv_9"]) == (200 * USD, -COST, COST)
    assert Invoice.objects.get(organization=seller).net_micros == 4 * PRICE
    assert wallet(seller).cash_micros == 200 * USD + 30 * USD - 4 * PRICE * 5 // 4


def test_an_item_is_invoiced_once_and_never_changed(acme):
    buy(acme)
    close()
    item = PrepaidItem.objects.get()
    other = InvoiceLine.objects.create(
        invoice=last(), key="again", resource_name="x", starts_at=NOON, ends_at=NOON, unit_milliseconds=0,
        exact_micros=0, amount_micros=0,
    )  # fmt: skip
    with pytest.raises(IntegrityError, match="item_id"), transaction.atomic():
        InvoicePrepaid.objects.create(line=other, item=item)
    for change in ("UPDATE {} SET id = id", "DELETE FROM {}"):
        for table in ("billing_prepaiditem", "billing_invoiceprepaid"):
            with pytest.raises(IntegrityError, match="refused"), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(change.format(table))


BREAKS = {
    "what_was_paid_ahead_is_an_item": "UPDATE billing_prepaiditem SET amount_micros = amount_micros + 1",
    "what_is_given_back_for_resold_hours_was_paid": "UPDATE billing_prepaiditem SET kind = 'resold', "
    "amount_micros = -1, promo_micros = 0",
    "prepaid_line_is_its_item": "UPDATE billing_prepaiditem SET at = at + interval '90 days'",
}


@pytest.mark.parametrize("rule", prepaid_audit.RULES)
def test_the_audit_finds(acme, rule):
    buy(acme)
    close()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE billing_prepaiditem DISABLE TRIGGER USER")
            cursor.execute(BREAKS[rule])
        assert rule in {finding.rule for finding in books.check(at=MAY)}
        transaction.set_rollback(True)


def test_working_it_out_anew_finds_hours_that_do_not_make_the_price(acme):
    buy(acme)
    close()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE billing_prepaiditem DISABLE TRIGGER USER")
            cursor.execute("UPDATE billing_prepaiditem SET hours = '[[8, 9, 2000000]]'")
        assert [finding.subject for finding in books.recompute(at=MAY)] == [last().number]
        transaction.set_rollback(True)
