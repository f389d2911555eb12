"""Credit notes that come by themselves: with the tax of their invoice, whatever it is by now, and never too much."""

import random
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from billing import adjusting, books, collecting, corrections, prepayments, usage
from billing.invoicing import crediting, debts, issuing, proof, sellers
from billing.models import Collection, Invoice, InvoiceItem, InvoiceLine, InvoiceMail, UsageSpan
from billing.prepayments import Paid
from tests.billing.invoicing import APRIL, CLOSE, MAY, charged, close, details, make_seller, use
from tests.billing.makers import HOUR, NOON, PRICE, USD, block, hold_money, make_organization, make_price, wallet
from tests.billing.people import give_credit_line, two_people
from tests.billing.test_corrections import correct
from tests.billing.test_dunning import after, days, run

pytestmark = pytest.mark.django_db
END = datetime(2026, 9, 1, tzinfo=UTC)
ROWS = ((8, 10, 2 * USD),)
COST = 160 * USD


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=END) == []
    assert books.recompute(at=END) == []


@pytest.fixture
def acme(db):
    make_seller()
    return make_organization(cash=1000 * USD)


def take_back(at=CLOSE + HOUR):
    return issuing.take_back_due(at=at)


def notes():
    return list(Invoice.objects.filter(kind="credit_note").order_by("pk"))


def buy(organization, *, at=NOON):
    hold_money(organization, COST, resource_id="rsv_1", expires_at=at + HOUR)
    wanted = block("reservation", ROWS, resource_id="rsv_1", begin=at + 24 * HOUR)
    return prepayments.collect(organization=organization, resource_id="rsv_1", block=wanted, reason="r", at=at)


def cancel(organization, back, *, at, kept=0):
    prepayments.give_back(
        organization=organization, key="rsv_1:cancelled", back=back, deferred_micros=back.micros,
        block=block("cancelled", ROWS, begin=NOON + 24 * HOUR, kept=kept), reason="r", at=at,
    )  # fmt: skip


def test_use_that_was_corrected_after_its_invoice_comes_back_with_the_tax_it_had_then(acme):
    span = use(acme, begin=NOON, hours=10)
    close()
    details(acme, "DE", "DE136695976")  # reverse charge from now on: nothing of that concerns March
    correct(span, NOON + 4 * HOUR, at=CLOSE)
    assert (take_back(), take_back()) == (1, 0)
    (note,) = notes()
    invoice = Invoice.objects.get(kind="invoice")
    assert (note.number, note.credited, note.reason) == ("CN-000001", invoice, "It was switched off")
    assert (note.net_micros, note.tax_micros, note.tax_rate_bps) == (12 * PRICE, 3 * PRICE, 2500)
    assert wallet(acme).cash_micros == 1000 * USD - 10 * PRICE  # eight GPU-hours and a quarter of tax
    assert InvoiceMail.objects.filter(invoice=note).exists()
    (line,) = proof.of_lines(note, list(note.lines.all()))
    assert line.agrees
    assert (line.line.unit_milliseconds, line.line.amount_micros) == (12 * 3_600_000, 12 * PRICE)
    use(acme, begin=APRIL + HOUR, hours=1, resource_id="ins_2", price=span.price_version)
    close(at=MAY + 2 * HOUR)
    assert InvoiceLine.objects.filter(invoice=Invoice.objects.latest("pk")).count() == 1


def test_the_next_invoice_brings_it_where_no_sweep_came_before(acme):
    span = use(acme, begin=NOON, hours=10)
    close()
    correct(span, NOON, at=CLOSE)
    use(acme, begin=APRIL + HOUR, hours=1, resource_id="ins_2", price=span.price_version)
    close(at=MAY + 2 * HOUR)
    (note,) = notes()
    assert (note.net_micros, note.tax_micros) == (20 * PRICE, 5 * PRICE)
    assert Invoice.objects.get(kind="invoice", period_end=MAY).net_micros == 2 * PRICE


def test_use_over_two_invoices_is_taken_back_from_each_what_it_has(acme):
    span = charged(use(acme, begin=APRIL - 10 * HOUR, hours=None), through=CLOSE)
    close()
    usage.stop(resource_id="ins_1", at=APRIL + 20 * HOUR)
    issuing.issue(organization=acme, at=APRIL + 21 * HOUR)
    span.refresh_from_db()
    correct(span, APRIL - 4 * HOUR, at=APRIL + 22 * HOUR)
    assert take_back(at=APRIL + 23 * HOUR) == 2
    assert [(one.credited.period_end, one.net_micros) for one in notes()] == [
        (APRIL + 21 * HOUR, 40 * PRICE), (APRIL, 8 * PRICE),
    ]  # fmt: skip
    span.refresh_from_db()
    assert (span.invoiced_through, span.invoiced_micros) == (span.ended_at, 12 * PRICE)
    correct(span, APRIL, at=APRIL + 24 * HOUR)  # and back: late use on the next invoice
    issuing.issue(organization=acme, at=APRIL + 25 * HOUR)
    assert Invoice.objects.filter(kind="invoice").latest("pk").net_micros == 8 * PRICE


def test_a_meter_that_ended_at_its_last_proof_of_life_before_the_invoice_is_taken_back(acme):
    charged(use(acme, begin=APRIL - 10 * HOUR, hours=None), through=CLOSE)
    close()
    usage.stop(resource_id="ins_1", at=APRIL - 2 * HOUR)
    assert take_back() == 1
    assert (notes()[0].net_micros, notes()[0].reason) == (4 * PRICE, "Less was used than was invoiced")


def test_a_block_cancelled_after_its_invoice_comes_back_at_once_with_its_tax(acme):
    buy(acme)
    close()
    cancel(acme, Paid(0, 120 * USD), kept=40 * USD, at=CLOSE)
    assert take_back() == 1
    (note,) = notes()
    assert (note.net_micros, note.tax_micros) == (120 * USD, 30 * USD)
    assert wallet(acme).cash_micros == 1000 * USD - 50 * USD
    assert take_back() == 0


def test_what_credit_paid_comes_back_as_credit_and_carries_no_tax(db):
    make_seller()
    acme = make_organization(promo=10 * USD, cash=100 * USD)
    span = use(acme, begin=NOON, hours=6)
    close()
    assert Invoice.objects.get().net_micros == 20 * USD
    correct(span, NOON, at=CLOSE)
    take_back()
    (note,) = notes()
    assert (note.subtotal_micros, note.promo_micros, note.net_micros, note.tax_micros) == (
        30 * USD, 10 * USD, 20 * USD, 5 * USD
    )  # fmt: skip
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (10 * USD, 100 * USD)
    use(acme, begin=APRIL + HOUR, hours=4, resource_id="ins_2", price=span.price_version)
    close(at=MAY + 2 * HOUR)
    assert Invoice.objects.filter(kind="invoice").latest("pk").promo_micros == 10 * USD


def test_what_a_person_took_back_already_is_not_taken_back_again(acme):
    span = use(acme, begin=NOON, hours=10)
    close()
    invoice = Invoice.objects.get()
    carol = two_people()[0]
    made = crediting.propose(invoice=invoice, net_micros=45 * USD, reason="Slow", by=carol, key=uuid4(), at=CLOSE)
    crediting.approve(proposal=made, by=two_people()[1], at=CLOSE)
    correct(span, NOON, at=CLOSE)
    assert take_back() == 0
    use(acme, begin=APRIL + HOUR, hours=20, resource_id="ins_2", price=span.price_version)
    close(at=MAY + 2 * HOUR)
    amounts = InvoiceLine.objects.filter(invoice=Invoice.objects.latest("pk")).values_list("amount_micros", flat=True)
    assert sorted(amounts) == [-50 * USD, 100 * USD]


def test_an_unpaid_invoice_asks_for_less_and_so_no_other_is_dunned_for_it(db):
    make_seller()
    acme = make_organization()
    give_credit_line(acme, 1000 * USD)
    price = make_price()
    span = use(acme, begin=NOON, hours=10, price=price)
    close()
    use(acme, begin=APRIL + HOUR, hours=4, resource_id="ins_2", price=price)
    close(at=MAY + 2 * HOUR)
    march, april = Invoice.objects.order_by("pk")
    correct(span, NOON + 4 * HOUR, at=MAY + 3 * HOUR)
    take_back(at=MAY + 4 * HOUR)
    left = debts.left_due_micros(organization=acme, invoices=[march, april])
    assert left == {march.pk: 25 * USD, april.pk: 25 * USD}
    assert wallet(acme).owed_micros == 50 * USD
    collecting.review(organization=acme, at=MAY + 5 * HOUR)


def test_less_use_on_an_invoice_that_was_given_up_is_less_of_a_loss_and_nobodys_money(db):
    make_seller()
    acme = make_organization()
    give_credit_line(acme, 1000 * USD, net_days=7)
    span = use(acme, begin=NOON, hours=10, price=make_price())
    close()
    for day in days(-8, 70):
        run(after(day))
    invoice, lost = Invoice.objects.get(), Collection.objects.get()
    assert (lost.state, lost.lost_micros) == ("uncollectible", invoice.total_micros)
    for hours in (4, 0):
        correct(span, NOON + hours * HOUR, at=after(101))
        take_back(at=after(102))
        lost.refresh_from_db()
        assert lost.lost_micros == invoice.total_micros * hours // 10
        assert (wallet(acme).cash_micros, wallet(acme).promo_micros, wallet(acme).owed_micros) == (0, 0, 0)
    assert lost.state == "paid"


def test_random_months_of_use_corrections_and_blocks_agree_with_both_calculators(db):
    dice = random.Random(7)
    make_seller()
    price = make_price(micros_per_unit_hour=1_234_567)
    customers = [make_organization(promo=dice.randrange(30) * USD, cash=200 * USD) for _ in range(3)]
    details(customers[0], "DE", "DE136695976")
    spans, at = [], NOON
    for month in range(4):
        spans += [
            use(
                dice.choice(customers), begin=at + dice.randrange(200) * HOUR, hours=dice.randrange(1, 500),
                resource_id=f"ins_{month}_{n}", price=price, quantity=1,
            )
            for n in range(4)
        ]  # fmt: skip
        at += timedelta(days=30)
        adjusting.post_due(at=at)
        issuing.issue_due(at=at)
        for span in dice.sample(spans, 3):
            span.refresh_from_db()
            wanted = span.started_at + dice.randrange(600 * 3600) * timedelta(seconds=1)
            if wanted < at + timedelta(days=1) and wanted != span.ended_at:
                correct(span, wanted, at=at + timedelta(days=1))
        if dice.random() < 0.7:
            take_back(at=at + timedelta(days=1))
    assert len(notes()) > 2
    take_back(at=END)
    for span in UsageSpan.objects.filter(invoiced_through__isnull=False):
        assert (
            sum(InvoiceItem.objects.filter(span=span).values_list("amount_micros", flat=True)) == span.invoiced_micros
        )
    assert sellers.seller() is not None
    assert corrections.listed().count() > 5
