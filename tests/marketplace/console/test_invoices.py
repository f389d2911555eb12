"""Invoices in the console: who sells, issuing now, and taking back with a second person."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import usage
from billing.invoicing import sellers
from billing.models import CreditProposal, Invoice, InvoiceSeries
from marketplace.models import Organization
from tests.billing.makers import make_price
from tests.conftest import make_person
from tests.marketplace.console.conftest import only_entry
from tests.marketplace.invoices.conftest import invoice, leave_little_credit, seller, use_beyond_credit

__all__ = ["invoice", "seller"]


@pytest.fixture
def other_desk(db: None) -> Client:
    """Dan's browser, who manages capacity too."""
    client = Client()
    client.force_login(make_person("dan@operator.example", is_staff=True))
    return client


@pytest.fixture
def asked(desk: Client, seller: Organization, acme: Organization) -> Invoice:
    """An invoice on which something is left to pay."""
    use_beyond_credit(acme)
    assert send(desk, "console-invoice-now", acme.public_id).status_code == 302
    return Invoice.objects.get()


def send(desk: Client, name: str, *ids: str, **fields: Any) -> Any:
    return desk.post(reverse(name, args=ids), fields)


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def propose(desk: Client, invoice: Invoice, amount: str = "10", **more: Any) -> Any:
    fields = {"amount_micros": amount, "reason": "The GPUs were slow", "key": str(uuid4())} | more
    return send(desk, "console-invoice-credit", invoice.public_id, **fields)


def test_somebody_says_who_sells(desk: Client, operator: Organization) -> None:
    assert "Nothing is invoiced until somebody says who sells" in text_of(desk.get(reverse("console-invoices")))
    sellers.save_details(organization=operator, legal_name="GPU AS", address="Narvik", country="NO")
    assert send(desk, "console-invoice-seller", seller=operator.public_id).status_code == 302
    assert InvoiceSeries.objects.count() == 2
    assert "In the name of GPU AS" in text_of(desk.get(reverse("console-invoices")))
    assert only_entry("seller.name").subject_id == operator.public_id


def test_an_organization_without_billing_details_cannot_sell(desk: Client, operator: Organization) -> None:
    assert send(desk, "console-invoice-seller", seller=operator.public_id).status_code == 422


def test_a_tenant_is_invoiced_now(desk: Client, asked: Invoice, acme: Organization) -> None:
    assert asked.organization == acme
    assert only_entry("invoice.issue").after == {"number": "INV-000001"}
    page = text_of(desk.get(reverse("console-invoice", args=[asked.public_id])))
    assert "How was this computed?" in page
    assert "INV-000001" in text_of(desk.get(reverse("console-invoices"), {"search": "acme"}))


def test_what_is_invoiced_already_is_not_invoiced_again(desk: Client, asked: Invoice, acme: Organization) -> None:
    answer = send(desk, "console-invoice-now", acme.public_id)
    assert answer.status_code == 422
    assert "There is nothing to invoice" in text_of(answer)
    assert Invoice.objects.count() == 1


def test_a_credit_needs_two_people(desk: Client, other_desk: Client, asked: Invoice) -> None:
    assert propose(desk, asked).status_code == 302
    proposal = CreditProposal.objects.get()
    answer = send(desk, "console-credit-approve", proposal.public_id)
    assert answer.status_code == 422
    assert "somebody else has to decide" in text_of(answer)
    assert "Somebody else has to approve it" in text_of(desk.get(reverse("console-invoices")))
    assert send(other_desk, "console-credit-approve", proposal.public_id).status_code == 302
    note = Invoice.objects.get(kind="credit_note")
    assert (note.total_micros, note.reason) == (12_500_000, "The GPUs were slow")
    assert only_entry("credit_note.issue").after["number"] == "CN-000001"
    assert only_entry("credit_note.propose").actor.email == "carol@operator.example"


@pytest.mark.parametrize("amount", ["201", "0", "-1", "1.001", "x", ""])
def test_a_credit_above_the_invoice_or_without_sense_is_refused(desk: Client, asked: Invoice, amount: str) -> None:
    answer = propose(desk, asked, amount)
    assert answer.status_code == 422
    assert not CreditProposal.objects.exists()


def test_a_form_that_is_sent_twice_proposes_once(desk: Client, asked: Invoice) -> None:
    key = str(uuid4())
    assert [propose(desk, asked, key=key).status_code for _ in range(2)] == [302, 302]
    assert CreditProposal.objects.count() == 1
    assert only_entry("credit_note.propose")


def test_a_declined_credit_moves_nothing_and_is_decided_once(desk: Client, other_desk: Client, asked: Invoice) -> None:
    propose(desk, asked)
    proposal = CreditProposal.objects.get()
    assert send(other_desk, "console-credit-decline", proposal.public_id).status_code == 302
    assert send(other_desk, "console-credit-approve", proposal.public_id).status_code == 422
    assert Invoice.objects.count() == 1
    assert only_entry("credit_note.decline")


def test_an_invoice_of_today_has_what_ran_until_now(desk: Client, seller: Organization, acme: Organization) -> None:
    leave_little_credit(acme)
    at = timezone.now() - timedelta(hours=2)
    usage.start(
        organization=acme, resource_id="ins_1", resource_name="t", labels={}, quantity=4, price_version=make_price(),
        at=at,
    )  # fmt: skip
    send(desk, "console-invoice-now", acme.public_id)
    assert 19_960_000 < Invoice.objects.get().subtotal_micros < 20_400_000
