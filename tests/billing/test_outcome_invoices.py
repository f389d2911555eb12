"""Results on invoices: one line for those of one price, proved; and what is given back, with exactly its tax."""

from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, daily
from billing.invoicing import crediting, issuing, proof
from billing.models import Collection, Invoice, InvoiceLine, InvoicePrepaid, InvoiceSeries, PrepaidItem
from billing.outcomes import reversing
from tests.billing.invoicing import APRIL, MAY, close, make_seller, use
from tests.billing.makers import HOUR, NOON, PRICE, USD, account, make_organization, move, wallet
from tests.billing.results import item, reverse, set_aside, settle
from tests.billing.supplying import make_person
from tests.billing.test_dunning import after, days, run

pytestmark = pytest.mark.django_db
LATER = MAY + 20 * HOUR


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    daily.sum_up(at=LATER)
    assert books.check(at=LATER) == []
    assert books.recompute(at=LATER) == []


@pytest.fixture
def acme(db):
    make_seller()
    return make_organization(cash=1000 * USD)


def invoices(kind="invoice"):
    return list(Invoice.objects.filter(kind=kind).order_by("pk"))


def test_ten_results_of_one_price_are_one_line_that_shows_how_it_came_about(acme):
    set_aside(acme, 100 * USD)
    for n in range(10):
        settle(acme, item(f"task {n}", quantity=1_500, micros_per_unit=3_333_333, per=1_000))
    settle(acme, item("late", quantity=1_500, micros_per_unit=3_333_333, per=1_000, bps=5_000))
    use(acme, begin=NOON, hours=1, quantity=1)
    assert close() == 1
    (invoice,) = invoices()
    line = InvoiceLine.objects.get(invoice=invoice, market="outcome")
    assert line.resource_name == "Rendered frame: 16,500 frames, accepted results: 11, job_1"
    assert line.exact_micros == 10 * 5_000_000 + 2_500_000
    (found,) = proof.of_lines(invoice, [line])
    assert found.agrees
    assert [(count, step.amount_micros) for count, step in found.outcomes.rows] == [(10, 5_000_000), (1, 2_500_000)]
    assert (invoice.net_micros, invoice.tax_micros) == (52_500_000 + PRICE, (52_500_000 + PRICE) // 4)


def test_what_is_given_back_before_its_invoice_is_a_line_of_that(acme):
    set_aside(acme, 10 * USD)
    paid = settle(acme, item(micros_per_unit=8 * USD))
    reverse(paid, 3 * USD)
    close()
    (invoice,) = invoices()
    assert (invoice.net_micros, invoice.tax_micros) == (5 * USD, 1_250_000)
    assert invoices("credit_note") == []
    assert wallet(acme).cash_micros == 1000 * USD - invoice.total_micros


def test_what_is_given_back_after_its_invoice_has_a_credit_note_with_exactly_the_tax(acme):
    set_aside(acme, 10 * USD)
    paid = [settle(acme, item(f"task {n}", micros_per_unit=1_234_567)) for n in range(3)]
    close()
    (invoice,) = invoices()
    before = wallet(acme).cash_micros
    for n, one in enumerate(paid):
        reverse(one, at=APRIL + n * HOUR)
    notes = invoices("credit_note")
    assert len(notes) == 3
    assert sum(note.net_micros for note in notes) == invoice.net_micros
    assert sum(note.tax_micros for note in notes) == invoice.tax_micros
    assert wallet(acme).cash_micros == 1000 * USD
    assert before == 1000 * USD - invoice.total_micros
    for note in notes:
        (line,) = proof.of_lines(note, list(note.lines.all()))
        assert line.agrees
        assert proof.of_totals(note).agrees
    assert close(at=MAY + 2 * HOUR) == 0


def test_what_is_given_back_of_an_invoice_that_was_given_up_is_less_of_a_loss_and_nobodys_money(acme):
    move(account(acme, "cash"), "revenue", 992 * USD)
    set_aside(acme, 8 * USD)
    paid = settle(acme, item(micros_per_unit=8 * USD))
    close()  # its tax is owed, and never paid
    for day in days(-8, 70):
        run(after(day))
    lost = Collection.objects.get()
    assert (lost.state, lost.lost_micros, wallet(acme).cash_micros) == ("uncollectible", 2 * USD, 0)
    reverse(paid, 1 * USD, at=after(71))
    lost.refresh_from_db()
    assert (lost.lost_micros, wallet(acme).cash_micros) == (750_000, 0)
    reverse(paid, key="rest", at=after(72))
    lost.refresh_from_db()
    assert (lost.state, wallet(acme).cash_micros) == ("paid", 8 * USD)


def test_less_than_a_cent_waits_for_the_next_and_goes_with_it(acme):
    set_aside(acme, 10 * USD)
    paid = settle(acme, item(micros_per_unit=5 * USD))
    close()
    reverse(paid, 4_000, key="a", at=APRIL)
    assert invoices("credit_note") == []
    reverse(paid, 4_000, key="b", at=APRIL)
    (note,) = invoices("credit_note")
    assert (note.net_micros, note.exact_micros) == (10_000, 8_000)
    assert InvoicePrepaid.objects.filter(line__invoice=note).count() == 2
    reverse(paid, 2_000, key="c", at=APRIL)
    use(acme, begin=APRIL + HOUR, hours=1, quantity=1)
    close(at=MAY + 2 * HOUR)
    assert PrepaidItem.objects.filter(invoiced=None).count() == 0


def test_what_was_credited_by_hand_already_is_not_credited_twice_on_paper(acme):
    set_aside(acme, 10 * USD)
    paid = settle(acme, item(micros_per_unit=5 * USD))
    close()
    first, second = make_person(), make_person()
    proposal = crediting.propose(
        invoice=invoices()[0], net_micros=3 * USD, reason="Goodwill", by=first, key=uuid4(), at=APRIL
    )
    crediting.approve(proposal=proposal, by=second, at=APRIL)
    reverse(paid, 3 * USD, at=APRIL + HOUR)
    assert len(invoices("credit_note")) == 1  # more than is left of it: a line of the next invoice
    use(acme, begin=APRIL + 2 * HOUR, hours=10, quantity=1)
    issuing.issue(organization=acme, at=APRIL + 20 * HOUR)
    assert InvoiceLine.objects.get(invoice=invoices()[-1], market="outcome").exact_micros == -3 * USD


def test_what_credit_paid_returns_as_credit_without_tax(db):
    make_seller()
    acme = make_organization(promo=4 * USD, cash=100 * USD)
    set_aside(acme, 10 * USD)
    paid = settle(acme, item(micros_per_unit=10 * USD))
    close()
    assert (invoices()[0].net_micros, invoices()[0].promo_micros) == (6 * USD, 4 * USD)
    reverse(paid, at=APRIL)
    (note,) = invoices("credit_note")
    assert (note.net_micros, note.promo_micros, note.tax_micros) == (6 * USD, 4 * USD, 1_500_000)
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (4 * USD, 100 * USD)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prices=st.lists(st.integers(10_000, 9_999_999), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 9_999), max_size=3),
    promo=st.integers(0, 3_000_000),
)
def test_taking_everything_back_in_any_steps_returns_exactly_what_was_asked(prices, cuts, promo):
    if not Invoice.objects.exists():
        make_seller_once()
    acme = make_organization(promo=promo, cash=100 * USD)
    job = f"job_{acme.pk}"
    set_aside(acme, sum(prices), resource_id=job)
    paid = [
        settle(acme, item(f"{job} {n}", micros_per_unit=micros), resource_id=job) for n, micros in enumerate(prices)
    ]
    try:
        invoice = issuing.issue(organization=acme, at=APRIL)
    except Exception as error:  # credit paid for all of it
        assert type(error).__name__ == "NothingToInvoice"  # noqa: PT017
        return
    for n, one in enumerate(paid):
        for cut in cuts:
            if cut < reversing.left_micros(one):
                reverse(one, cut, key=f"{job} {n} {cut}", at=APRIL)
        reverse(one, key=f"{job} {n}", at=APRIL)
    notes = Invoice.objects.filter(credited=invoice)
    assert sum(note.net_micros for note in notes) == invoice.net_micros
    assert sum(note.tax_micros for note in notes) == invoice.tax_micros
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (promo, 100 * USD)


def make_seller_once():
    if not InvoiceSeries.objects.exists():
        make_seller()
