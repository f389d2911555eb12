"""Invoices by e-mail: each once, in the customer's language, again where sending failed."""

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail as outbox
from django.core.mail import EmailMessage

from billing.invoicing import sellers
from billing.models import Invoice, InvoiceMail
from marketplace.invoices import mail
from marketplace.models import Organization, Role
from tests.billing.invoicing import CLOSE
from tests.conftest import make_member
from tests.marketplace.invoices.conftest import tokyo


def test_an_invoice_goes_once_to_owners_and_billing_members_with_its_pdf(invoice: Invoice, acme: Organization) -> None:
    make_member(acme, "billing@acme.example", Role.BILLING)
    make_member(acme, "developer@acme.example", Role.DEVELOPER)
    assert (mail.send_due(at=CLOSE, limit=10), mail.send_due(at=CLOSE + timedelta(days=1), limit=10)) == (1, 0)
    (sent,) = outbox.outbox
    assert sent.to == ["alice@acme.example", "billing@acme.example"]
    assert sent.subject == "Invoice INV-000001 of GPU Operator AS: $12.50"
    assert "from 2026-03-01 to 2026-03-31" in sent.body
    assert f"/invoices/{invoice.public_id}" in sent.body
    ((name, content, kind),) = sent.attachments
    assert (name, kind, content[:5]) == ("INV-000001.pdf", "application/pdf", b"%PDF-")


def test_it_goes_to_the_address_of_the_billing_details_alone(invoice: Invoice, acme: Organization) -> None:
    sellers.save_details(organization=acme, legal_name="A", address="B", country="NO", email="books@acme.example")
    mail.send_due(at=CLOSE, limit=10)
    assert outbox.outbox[0].to == ["books@acme.example"]


def test_a_japanese_customer_is_written_to_in_japanese(seller: Organization, acme: Organization) -> None:
    tokyo(seller, acme)
    mail.send_due(at=CLOSE, limit=10)
    assert outbox.outbox[0].subject == "株式会社ジーピーユー 適格請求書 INV-000001：¥2,640"
    assert "ご請求額：¥2,640" in outbox.outbox[0].body


def test_what_could_not_be_sent_is_tried_again_ever_more_seldom(
    invoice: Invoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: EmailMessage, **more: Any) -> int:
        raise OSError("the mail server is away")

    with monkeypatch.context() as patch:
        patch.setattr(EmailMessage, "send", refuses)
        assert mail.send_due(at=CLOSE, limit=10) == 0
        assert mail.send_due(at=CLOSE + timedelta(minutes=1), limit=10) == 0
        assert mail.send_due(at=CLOSE + timedelta(minutes=2), limit=10) == 0
    row = InvoiceMail.objects.get(invoice=invoice)
    assert (row.tries, row.next_try_at - CLOSE) == (2, timedelta(minutes=6))
    assert mail.send_due(at=CLOSE + timedelta(minutes=6), limit=10) == 1
