"""What customers say is wrong: nobody asks for it until it is decided, and a credit needs two people."""

from uuid import uuid4

import pytest

from billing import books, collecting, disputes
from billing.errors import (
    AlreadyDecided,
    CreditTooLarge,
    DisputedAlready,
    DisputedTooLate,
    KeyReused,
    RejectedAlready,
)
from billing.invoicing import crediting, debts
from billing.models import Collection, InvoiceDispute, Notice
from tests.billing.invoicing import MAY
from tests.billing.makers import HOUR, USD, at_the_same_moment, wallet
from tests.billing.people import two_people
from tests.billing.test_bank import two_invoices

pytestmark = pytest.mark.django_db
AT = MAY + 3 * HOUR


def disputed(invoice, micros=None, *, line=None, key=None, reason="It was stopped", at=AT):
    return disputes.open_dispute(
        invoice=invoice, line=line, net_micros=micros, reason=reason, by=two_people()[0], key=key or uuid4(), at=at
    )


def asked(organization, invoice):
    return collecting.to_ask_for(organization, [invoice])[invoice.pk]


def test_what_is_disputed_is_owed_and_not_asked_for():
    acme, (invoice, _) = two_invoices()
    disputed(invoice, 400_000)
    assert asked(acme, invoice) == (1_250_000, 750_000)
    assert debts.left_due_micros(organization=acme, invoices=[invoice]) == {invoice.pk: 1_250_000}


def test_a_line_is_disputed_whole_with_its_tax():
    acme, (invoice, _) = two_invoices()
    dispute = disputed(invoice, line=invoice.lines.get())
    assert (dispute.net_micros, dispute.gross_micros) == (USD, 1_250_000)
    assert asked(acme, invoice) == (1_250_000, 0)
    collecting.review(organization=acme, at=AT + 100 * 24 * HOUR)
    assert Collection.objects.get(invoice=invoice).state == "open"


def test_an_upheld_dispute_becomes_a_credit_by_a_second_person():
    acme, (invoice, other) = two_invoices()
    carol, dan = two_people()
    dispute = disputed(invoice)
    proposal = disputes.uphold(dispute=dispute, answer="You are right", by=carol, at=AT)
    assert asked(acme, invoice) == (1_250_000, 0)
    assert wallet(acme).owed_micros == 2_500_000
    crediting.approve(proposal=proposal, by=dan, at=AT)
    assert debts.left_due_micros(organization=acme, invoices=[invoice, other]) == {invoice.pk: 0, other.pk: 1_250_000}
    assert Notice.objects.get(kind="dispute_upheld").facts["answer"] == "You are right"
    assert books.check(at=AT) == []


def test_a_credit_pays_the_invoice_that_it_credits_and_not_the_oldest():
    acme, (old, new) = two_invoices()
    carol, dan = two_people()
    proposal = crediting.propose(invoice=new, net_micros=USD, reason="Slow", by=carol, key=uuid4(), at=AT)
    crediting.approve(proposal=proposal, by=dan, at=AT)
    assert debts.left_due_micros(organization=acme, invoices=[old, new]) == {old.pk: 1_250_000, new.pk: 0}


def test_a_rejected_dispute_is_asked_for_again_and_says_why():
    acme, (invoice, _) = two_invoices()
    dispute = disputed(invoice)
    disputes.reject(dispute=dispute, answer="It ran until then", by=two_people()[1], at=AT)
    assert asked(acme, invoice) == (1_250_000, 1_250_000)
    with pytest.raises(AlreadyDecided):
        disputes.withdraw(dispute=dispute, by=two_people()[0], at=AT)
    assert Notice.objects.get(kind="dispute_rejected").facts["answer"] == "It ran until then"


def test_what_makes_no_sense_is_refused_and_nothing_kept():
    _, (invoice, _) = two_invoices()
    for micros in (0, -1, 1, USD + 10_000):
        with pytest.raises(CreditTooLarge):
            disputed(invoice, micros)
    key = uuid4()
    assert disputed(invoice, 400_000, key=key) == disputed(invoice, 400_000, key=key)
    with pytest.raises(KeyReused):
        disputed(invoice, line=invoice.lines.get(), key=key)
    with pytest.raises(DisputedAlready):
        disputed(invoice, 400_000)
    with pytest.raises(CreditTooLarge):
        disputed(invoice, 700_000, line=invoice.lines.get())
    assert InvoiceDispute.objects.count() == 1


def test_what_was_rejected_cannot_be_disputed_again_and_the_rest_can():
    _, (invoice, _) = two_invoices()
    line = invoice.lines.get()
    disputes.reject(dispute=disputed(invoice, 400_000, line=line), answer="It ran", by=two_people()[1], at=AT)
    for again in ({"micros": 700_000}, {"micros": 700_000, "line": line}):
        with pytest.raises(CreditTooLarge) as refusal:
            disputed(invoice, **again)
        assert refusal.value.left_micros == 600_000
    rest = disputed(invoice)
    assert rest.net_micros == 600_000
    disputes.reject(dispute=rest, answer="It ran", by=two_people()[1], at=AT)
    for again in ({}, {"micros": 10_000}, {"line": line}):
        with pytest.raises(RejectedAlready):
            disputed(invoice, **again)
    assert asked(invoice.organization, invoice) == (1_250_000, 1_250_000)


def test_what_was_withdrawn_can_be_disputed_again():
    _, (invoice, _) = two_invoices()
    disputes.withdraw(dispute=disputed(invoice), by=two_people()[0], at=AT)
    assert disputed(invoice).net_micros == USD


def test_an_invoice_is_disputed_in_time_or_not_at_all():
    _, (_, invoice) = two_invoices()
    last = invoice.issued_at + disputes.DISPUTED_WITHIN
    with pytest.raises(DisputedTooLate) as refusal:
        disputed(invoice, at=last + HOUR)
    assert (refusal.value.days, InvoiceDispute.objects.count()) == (60, 0)
    made = disputed(invoice, at=last)
    assert disputed(invoice, key=made.key, at=last + HOUR) == made  # the same order again is no other one


def test_a_key_is_of_one_order_in_every_field():
    _, (invoice, other) = two_invoices()
    made = disputed(invoice, 400_000)
    for change in ({"micros": 300_000}, {"micros": None}, {"reason": "Another"}, {"line": invoice.lines.get()}):
        with pytest.raises(KeyReused):
            disputed(invoice, **({"micros": 400_000, "key": made.key} | change))
    with pytest.raises(KeyReused):
        disputed(other, 400_000, key=made.key)


def test_disputing_all_of_what_is_past_due_lifts_what_it_brought_at_once():
    acme, (invoice, _) = two_invoices()
    collecting.review(organization=acme, at=AT + 30 * 24 * HOUR)
    assert Collection.objects.get(invoice=invoice).state == "past_due"
    disputed(invoice, at=AT + 30 * 24 * HOUR - HOUR)
    assert Collection.objects.get(invoice=invoice).state == "open"


@pytest.mark.django_db(transaction=True)
def test_two_disputes_at_once_are_one():
    _, (invoice, _) = two_invoices()
    two_people()
    assert at_the_same_moment(*[lambda: disputed(invoice, 300_000)] * 2) == ["DisputedAlready", "done"]
