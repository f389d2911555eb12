"""Taking back part of an invoice: two people, never more than there was, and exactly the tax."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.utils import IntegrityError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, receivables
from billing.errors import AlreadyDecided, CreditTooLarge, KeyReused, SecondPersonNeeded
from billing.invoicing import crediting, debts
from billing.models import Collection, CreditProposal, Invoice
from tests.billing.invoicing import CLOSE, close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, account, make_organization, make_price, move, pay_in, wallet
from tests.billing.people import give_credit_line
from tests.billing.test_dunning import after, days, run

pytestmark = pytest.mark.django_db
CENT = 10_000


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=datetime(2030, 1, 1, tzinfo=UTC)) == []
    assert books.recompute() == []


@pytest.fixture
def people(db):
    """Whoever proposes, and whoever decides."""
    users = apps.get_model("marketplace", "User").objects
    return [users.create_user(f"{name}@operator.example").pk for name in ("carol", "dan")]


def invoiced(*, cash=100 * USD, line=0, hours=1, price=2_500_000):
    acme = make_organization(cash=cash)
    make_seller()
    if line:
        give_credit_line(acme, line, net_days=7)
    use(acme, begin=NOON, hours=hours, price=make_price(micros_per_unit_hour=price))
    close()
    return acme, Invoice.objects.get()


def proposed(invoice, micros, people, *, key=None, reason="The GPU was slow"):
    return crediting.propose(
        invoice=invoice, net_micros=micros, reason=reason, by=people[0], key=key or uuid4(), at=CLOSE
    )  # fmt: skip


def approved(proposal, people):
    return crediting.approve(proposal=proposal, by=people[1], at=CLOSE + HOUR)


def test_a_credit_of_an_invoice_that_was_given_up_is_less_of_a_loss_and_nobodys_money(people):
    acme, invoice = invoiced(cash=0, line=1000 * USD)
    for day in days(-8, 70):
        run(after(day))
    lost = Collection.objects.get()
    assert (lost.state, lost.lost_micros) == ("uncollectible", invoice.total_micros)
    move(account(acme, "receivable"), "revenue", 1 * USD)  # it owes something else too
    note = approved(proposed(invoice, invoice.net_micros // 2, people), people)
    lost.refresh_from_db()
    assert (lost.state, lost.lost_micros) == ("uncollectible", invoice.total_micros - note.total_micros)
    approved(proposed(invoice, crediting.left_micros(invoice), people), people)
    lost.refresh_from_db()
    assert (lost.state, lost.lost_micros, account(acme, "receivable").sanction) == ("paid", 0, "")
    assert (wallet(acme).cash_micros, wallet(acme).owed_micros) == (0, 1 * USD)


def test_a_full_credit_gives_everything_back_with_its_tax(people):
    acme, invoice = invoiced()
    note = approved(proposed(invoice, invoice.net_micros, people), people)
    assert note.number == "CN-000001"
    assert (note.net_micros, note.tax_micros, note.credited) == (invoice.net_micros, invoice.tax_micros, invoice)
    assert wallet(acme).cash_micros == 100 * USD
    assert crediting.left_micros(invoice) == 0


def test_a_credit_pays_a_debt_before_it_becomes_cash(people):
    acme, invoice = invoiced(cash=2 * USD)
    assert wallet(acme).owed_micros == 4_250_000
    approved(proposed(invoice, 4 * USD, people), people)
    assert (wallet(acme).owed_micros, wallet(acme).cash_micros) == (0, 750_000)
    assert debts.left_due_micros(organization=acme, invoices=[invoice]) == {invoice.pk: 0}


def test_nothing_moves_until_somebody_else_approves(people):
    acme, invoice = invoiced()
    before = wallet(acme)
    proposal = proposed(invoice, USD, people)
    assert wallet(acme) == before
    with pytest.raises(SecondPersonNeeded):
        crediting.approve(proposal=proposal, by=people[0], at=CLOSE)
    assert wallet(acme) == before


def test_the_database_too_wants_a_second_person(people):
    _, invoice = invoiced()
    proposal = proposed(invoice, USD, people)
    with pytest.raises(IntegrityError, match="credit_needs_a_second_person"), transaction.atomic():
        CreditProposal.objects.filter(pk=proposal.pk).update(
            state="issued", decided_by=people[0], credit_note=invoice
        )  # fmt: skip


@pytest.mark.parametrize("micros", [5 * USD + CENT, 0, -CENT, CENT // 2, CENT + 1])
def test_a_credit_above_the_invoice_or_of_no_whole_cent_is_refused(people, micros):
    _, invoice = invoiced()
    with pytest.raises(CreditTooLarge):
        proposed(invoice, micros, people)


def test_what_was_proposed_counts_until_it_is_declined(people):
    _, invoice = invoiced()
    first = proposed(invoice, 4 * USD, people)
    with pytest.raises(CreditTooLarge):
        proposed(invoice, 2 * USD, people)
    crediting.decline(proposal=first, by=people[0], at=CLOSE)
    proposed(invoice, 5 * USD, people)


def test_a_credit_note_cannot_be_credited(people):
    _, invoice = invoiced()
    note = approved(proposed(invoice, USD, people), people)
    with pytest.raises(CreditTooLarge):
        proposed(note, CENT, people)


def test_a_form_that_is_sent_twice_proposes_once(people):
    _, invoice = invoiced()
    key = uuid4()
    assert proposed(invoice, USD, people, key=key) == proposed(invoice, USD, people, key=key)
    with pytest.raises(KeyReused):
        proposed(invoice, 2 * USD, people, key=key)


def test_a_proposal_is_decided_once(people):
    _, invoice = invoiced()
    proposal = proposed(invoice, USD, people)
    approved(proposal, people)
    with pytest.raises(AlreadyDecided):
        approved(proposal, people)
    with pytest.raises(AlreadyDecided):
        crediting.decline(proposal=proposal, by=people[1], at=CLOSE)
    assert Invoice.objects.filter(kind="credit_note").count() == 1


def test_the_database_keeps_what_was_decided(people):
    _, invoice = invoiced()
    proposal = proposed(invoice, USD, people)
    approved(proposal, people)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_creditproposal SET net_micros = 1")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3_000_000), st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_credits_in_any_steps_end_with_all_the_money_and_tax_back(people, price, steps):
    with transaction.atomic():
        acme, invoice = invoiced(cash=100 * USD, price=price) if price > 2_500 else (None, None)
        if invoice is not None:
            left = invoice.net_micros
            for step in steps:
                if left > step * CENT:
                    approved(proposed(invoice, step * CENT, people), people)
                    left -= step * CENT
            approved(proposed(invoice, left, people), people)
            notes = Invoice.objects.filter(credited=invoice)
            assert sum(note.tax_micros for note in notes) == invoice.tax_micros
            assert wallet(acme).cash_micros == 100 * USD
            assert books.check(at=datetime(2030, 1, 1, tzinfo=UTC)) == []
        transaction.set_rollback(True)


def test_a_payment_settles_the_oldest_invoice_first(people):
    acme, invoice = invoiced(cash=0)
    assert debts.left_due_micros(organization=acme, invoices=[invoice]) == {invoice.pk: 6_250_000}
    pay_in(acme, 2 * USD)
    receivables.settle(freed=account(acme, "cash"), cause="test", at=CLOSE + HOUR)
    assert debts.left_due_micros(organization=acme, invoices=[invoice]) == {invoice.pk: 4_250_000}
