"""Invoices in the portal: the list, one with its arithmetic, its files, and the form of billing details."""

import pytest
from django.test import Client
from django.urls import reverse

from billing.models import BillingDetails, Invoice
from marketplace.models import Organization, Role, User
from tests.conftest import make_member
from tests.marketplace.invoices.conftest import invoice, seller

__all__ = ["invoice", "seller"]

TYPED = {"legal_name": "Acme AS", "address": "Storgata 1\r\n0155 Oslo", "country": "NO", "tax_id": "", "language": "en"}


@pytest.fixture
def browser(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def text_of(browser: Client, name: str, *ids: str) -> str:
    answer = browser.get(reverse(name, args=ids))
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_list_leads_to_the_invoice_and_its_file(browser: Client, invoice: Invoice) -> None:
    page = text_of(browser, "invoices")
    assert "INV-000001" in page
    assert reverse("invoice-pdf", args=[invoice.public_id]) in page
    assert "Give name, address and tax id" in page
    answer = browser.get(reverse("invoice-pdf", args=[invoice.public_id]))
    assert answer.content.startswith(b"%PDF-")


def test_without_invoices_the_page_says_when_the_first_one_comes(browser: Client, acme: Organization) -> None:
    assert "The first one comes after the first month" in text_of(browser, "invoices")


def test_an_invoice_shows_how_each_line_was_computed(browser: Client, invoice: Invoice) -> None:
    page = text_of(browser, "invoice", invoice.public_id)
    assert page.count("How was this computed?") == 2
    assert "2 GPU × 10,800,000 ms × $2.50 ÷ 3,600,000 ms" in page
    assert "= $15.00, rounded once to a millionth" in page
    assert page.count("worked out anew, and it agrees") == 2
    assert "MVA NO 25 %" in page.replace("\xa0", " ")


def test_the_lines_come_as_csv(browser: Client, invoice: Invoice) -> None:
    answer = browser.get(reverse("invoice-csv", args=[invoice.public_id]))
    assert answer["Content-Disposition"] == 'attachment; filename="INV-000001.csv"'
    assert "trainer" in answer.content.decode()


@pytest.mark.parametrize("name", ["invoice", "invoice-pdf", "invoice-csv"])
def test_a_stranger_finds_nothing(client: Client, charlie: User, invoice: Invoice, name: str) -> None:
    client.force_login(charlie)
    assert client.get(reverse(name, args=[invoice.public_id])).status_code == 404


def test_a_developer_sees_neither_link_nor_page(client: Client, acme: Organization, invoice: Invoice) -> None:
    client.force_login(make_member(acme, "dev@acme.example", Role.DEVELOPER))
    assert client.get(reverse("invoices")).status_code == 403
    assert reverse("invoices") not in client.get(reverse("home")).content.decode()


def test_billing_details_are_saved_and_shown_again(browser: Client, acme: Organization) -> None:
    answer = browser.post(reverse("billing-details"), TYPED | {"tax_id": "ＮＯ 995 525 828 MVA"})
    assert answer.status_code == 302, answer.content.decode()
    details = BillingDetails.objects.get(organization=acme)
    assert (details.tax_id, details.address) == ("995525828MVA", "Storgata 1\n0155 Oslo")
    assert "995525828MVA" in text_of(browser, "billing-details")


def test_a_wrong_tax_id_is_told_beside_its_field_and_nothing_typed_is_lost(browser: Client, acme: Organization) -> None:
    answer = browser.post(reverse("billing-details"), TYPED | {"tax_id": "123"})
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "This is not a tax id of NO" in page
    assert "Storgata 1" in page
    assert not BillingDetails.objects.exists()


def test_whoever_may_not_change_them_may_not_send_the_form(client: Client, acme: Organization) -> None:
    client.force_login(make_member(acme, "viewer@acme.example", Role.VIEWER))
    assert client.post(reverse("billing-details"), TYPED).status_code == 403
    assert not BillingDetails.objects.exists()
