"""Payments in the console: refunds with a second person, and the reconciliation."""

from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, tasks
from billing.models import Payment, ReconciliationCase, Refund
from billing.payments import paying, reconciliation, refunds
from billing.test_processor import disputes as far_disputes
from marketplace.models import AuditEntry, Organization
from tests.billing.makers import account, move
from tests.billing.payments.conftest import _keys, processor
from tests.billing.payments.stage import Processor, order
from tests.marketplace.console.conftest import only_entry
from tests.marketplace.console.test_invoices import other_desk, send, text_of
from tests.marketplace.portal.reading import faults, read

__all__ = ["_keys", "other_desk", "processor"]


@pytest.fixture
def paid(acme: Organization, processor: Processor) -> Payment:
    processor.at = timezone.now()
    processor.card(acme)
    return paying.send(payment_id=order(acme, at=processor.at).pk, at=processor.at)


def propose(desk: Client, payment: Payment, amount: str = "5") -> Any:
    fields = {"amount_micros": amount, "reason": "Paid twice", "key": str(uuid4())}
    return send(desk, "console-payment-refund", payment.public_id, **fields)


def test_payments_are_found_by_id_customer_and_state(desk: Client, paid: Payment) -> None:
    for query in ("", f"?search={paid.public_id}", "?search=acme", "?state=succeeded", f"?search={paid.processor_id}"):
        page = read(desk.get(reverse("console-payments") + query))
        assert faults(page) == []
        assert paid.public_id in page.text
    assert paid.public_id not in text_of(desk.get(reverse("console-payments") + "?state=failed"))
    assert paid.public_id not in text_of(desk.get(reverse("console-payments") + "?search=nobody"))
    assert faults(read(desk.get(reverse("console-payment", args=[paid.public_id])))) == []


def test_a_refund_needs_a_second_person(
    desk: Client, other_desk: Client, paid: Payment, acme: Organization, processor: Processor
) -> None:
    assert propose(desk, paid).status_code == 302
    refund = Refund.objects.get()
    assert "Somebody else has to approve it." in text_of(desk.get(reverse("console-payments")))
    refused = send(desk, "console-refund-approve", refund.public_id)
    assert (refused.status_code, Refund.objects.get().state) == (422, "proposed")
    assert send(other_desk, "console-refund-approve", refund.public_id).status_code == 302
    refunds.look_due(at=timezone.now())
    assert Refund.objects.get().state == "succeeded"
    assert accounts.wallet(organization=acme).cash_micros == 15_000_000
    assert only_entry("refund.propose").subject_id == only_entry("refund.approve").subject_id == refund.public_id
    assert "refunded" in text_of(desk.get(reverse("console-payment", args=[paid.public_id])))


@pytest.mark.parametrize("amount", ["20.01", "0", "-1", "1.005"])
def test_a_refund_above_the_payment_is_refused_beside_its_field(desk: Client, paid: Payment, amount: str) -> None:
    assert propose(desk, paid, amount).status_code == 422
    assert not Refund.objects.exists()


def test_what_was_spent_is_told_to_the_second_person(
    desk: Client, other_desk: Client, paid: Payment, acme: Organization
) -> None:
    propose(desk, paid, "15")
    move(account(acme, "cash"), "revenue", 10_000_000)
    answer = send(other_desk, "console-refund-approve", Refund.objects.get().public_id)
    assert answer.status_code == 422
    assert "The customer has spent it: $10.00 is left in cash." in text_of(answer)
    assert Refund.objects.get().state == "proposed"


def test_a_refund_can_be_declined(desk: Client, other_desk: Client, paid: Payment) -> None:
    propose(desk, paid)
    assert send(other_desk, "console-refund-decline", Refund.objects.get().public_id).status_code == 302
    assert Refund.objects.get().state == "declined"


def test_a_dispute_stands_beside_its_payment(desk: Client, paid: Payment, processor: Processor) -> None:
    opened = far_disputes.open_dispute(processor.world, paid.processor_id)
    processor.deliver()
    page = text_of(desk.get(reverse("console-payment", args=[paid.public_id])))
    assert opened["id"] in page
    assert "the bank took the money" in page


def test_the_reconciliation_shows_zero_and_then_what_explains_a_difference(
    desk: Client, paid: Payment, acme: Organization
) -> None:
    assert send(desk, "console-reconcile").status_code == 302
    page = read(desk.get(reverse("console-reconciliation")))
    assert faults(page) == []
    assert "Both agree" in page.text
    assert "No open cases." in page.text
    move("processor", account(acme, "cash"), 7_000_000, key="payment:pay_invented")
    assert "On its way" in text_of(desk.get(reverse("console-reconciliation")))
    ReconciliationCase.objects.create(
        currency="USD", our_key="payment:pay_invented", ledger_micros=7_000_000, processor_micros=0,
        found_at=timezone.now(),
    )  # fmt: skip
    assert "We booked what the processor does not have." in text_of(desk.get(reverse("console-reconciliation")))
    case = ReconciliationCase.objects.get()
    assert send(desk, "console-case-note", case.public_id, reason="A test of ours").status_code == 302
    assert "A test of ours" in text_of(desk.get(reverse("console-reconciliation")))
    assert AuditEntry.objects.filter(verb__startswith="reconciliation.").count() == 2


def test_a_long_statement_is_read_on_by_itself_and_the_page_says_so(
    desk: Client, paid: Payment, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged: list[str] = []
    monkeypatch.setattr(reconciliation, "is_reading", lambda: True)
    monkeypatch.setattr(tasks.reconcile, "delay", lambda: nudged.append("reconcile"))
    assert send(desk, "console-reconcile").status_code == 302
    assert nudged == ["reconcile"]
    assert "It is read on, and then compared, by itself." in text_of(desk.get(reverse("console-reconciliation")))


def test_without_keys_the_pages_say_so(desk: Client, acme: Organization, settings: Any) -> None:
    settings.STRIPE_API_KEY = ""
    for name in ("console-payments", "console-reconciliation"):
        assert "No card processor is connected" in text_of(desk.get(reverse(name)))
    assert send(desk, "console-reconcile").status_code == 302
