"""What is owed, in the portal: what comes next, paying now, and saying that an invoice is wrong."""

from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, taken_back, taken_debts
from billing.errors import PaymentsPastDue
from billing.invoicing import issuing
from billing.models import Card, Collection, Dispute, Invoice, InvoiceDispute, Notice, Payment, TakenDebt
from billing.payments import gateway
from marketplace import numbers
from marketplace.api import errors as api_errors
from marketplace.models import Organization, User
from marketplace.money import shown
from marketplace.notices.telling import written
from marketplace.portal import errors as portal_errors
from tests.billing.makers import hold_money
from tests.billing.test_dunning import DAY, days, run
from tests.conftest import make_token
from tests.marketplace.api.program import Program
from tests.marketplace.invoices.conftest import seller, use_beyond_credit

__all__ = ["seller"]


@pytest.fixture
def owed(seller: Organization, acme: Organization) -> Invoice:
    """An invoice of which something is left."""
    use_beyond_credit(acme)
    return issuing.issue(organization=acme, at=timezone.now())


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def test_the_balance_says_what_happens_next_and_when(owner: Client, owed: Invoice) -> None:
    page = text_of(owner.get(reverse("balance")))
    assert "What happens next if nobody pays" in page
    assert "Nothing new starts until INV-000001 is paid." in page


def owe_for_nothing(organization: Organization) -> Dispute:
    """Let a bank take forty dollars back that paid for nothing."""
    payment = Payment.objects.create(
        organization=organization, purpose=Payment.Purpose.TOP_UP, amount_micros=40_000_000, currency="USD",
        key="top-up", state=Payment.State.SUCCEEDED, processor_id="pi_1", charge_id="ch_1", created_at=timezone.now(),
        finished_at=timezone.now(), sent_at=timezone.now(),
    )  # fmt: skip
    dispute = Dispute.objects.create(
        payment=payment, processor_id="dp_1", amount_micros=payment.amount_micros, state=Dispute.State.TAKEN,
        opened_at=timezone.now(), changed_at=timezone.now(),
    )  # fmt: skip
    with transaction.atomic():
        payer = accounts.lock(organization_id=organization.pk, currency="USD")
        taken_back.owe(dispute=dispute, payer=payer, micros=payment.amount_micros, at=timezone.now())
    return dispute


def test_what_a_bank_took_beyond_every_invoice_is_shown_with_what_follows(
    owner: Client, alice: User, acme: Organization
) -> None:
    dispute, program = owe_for_nothing(acme), Program(make_token(alice, acme))
    page, amount = text_of(owner.get(reverse("balance"))), shown(40_000_000, "USD")
    assert f"{amount} that your bank took back of the payment {dispute.payment.public_id} is on no invoice." in page
    assert "Nothing new starts until what your bank took back is paid." in page
    found = program.get("balance").json()
    assert (found["owed"], found["taken_back"], found["past_due"]) == ("40.000000", "40.000000", "0.000000")
    assert [one["code"] for one in found["coming"]] == ["restrict", "stop_spot", "stop_on_demand"]
    due = TakenDebt.objects.get().due_at
    TakenDebt.objects.update(issued_at=due - 30 * DAY, due_at=due - 20 * DAY)
    taken_debts.run_due(at=timezone.now())
    assert program.get("balance").json()["past_due"] == "40.000000"
    assert f"{amount} is past due." in text_of(owner.get(reverse("balance")))
    said = written(Notice.objects.get(kind="taken_back_due"))
    assert "Nothing new starts from now on; what runs goes on. If it stays unpaid" in said.body
    with pytest.raises(PaymentsPastDue) as refused:
        hold_money(acme, 1_000_000)
    assert numbers.said(refused.value).startswith(f"{amount} that your bank took back is past due;")


def test_a_refusal_for_what_a_bank_took_back_names_no_invoice_in_its_title() -> None:
    assert api_errors.KINDS[PaymentsPastDue].title == "A payment is past due"
    assert str(portal_errors.KINDS[PaymentsPastDue].title) == "A payment is past due"


def test_an_invoice_is_paid_now(
    owner: Client, owed: Invoice, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Pay now" in text_of(owner.get(reverse("invoice", args=[owed.public_id])))
    answer = owner.post(reverse("invoice-pay", args=[owed.public_id]), {"key": "1"}, follow=True)
    assert "Pay by bank transfer" in text_of(answer) or "pay by bank transfer" in text_of(answer)
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    Card.objects.create(
        organization=acme, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030, is_default=True
    )
    for _ in range(2):
        answer = owner.post(reverse("invoice-pay", args=[owed.public_id]), {"key": "2"}, follow=True)
        assert "is being charged to visa 4242" in text_of(answer)
    assert Payment.objects.count() == 1


def test_an_invoice_that_was_given_up_can_be_paid_after_all(
    owner: Client, owed: Invoice, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in days(-8, 70):
        run(owed.issued_at + (7 + day) * DAY)
    lost = shown(owed.due_micros, "USD")
    assert f"{lost} given up" in text_of(owner.get(reverse("invoices")))
    page = text_of(owner.get(reverse("invoice", args=[owed.public_id])))
    assert f"{lost} given up" in page
    assert f"<dt>Can still be paid</dt><dd>{lost}</dd>" in page
    assert f"{lost} of your invoices was given up; nothing new starts until it is paid." in text_of(
        owner.get(reverse("balance"))
    )
    assert "Pay now" in text_of(owner.get(reverse("invoice", args=[owed.public_id])))
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    Card.objects.create(
        organization=acme, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030, is_default=True
    )
    owner.post(reverse("invoice-pay", args=[owed.public_id]), {"key": "1"})
    assert Payment.objects.get().amount_micros == Collection.objects.get().written_off_micros


def test_a_line_is_disputed_and_withdrawn(owner: Client, owed: Invoice) -> None:
    line = owed.lines.first()
    assert line is not None
    path = reverse("invoice-dispute", args=[owed.public_id])
    assert line.resource_name in text_of(owner.get(path))
    refused = owner.post(path, {"line": line.key, "amount": "1.005", "reason": "Wrong", "key": str(uuid4())})
    assert refused.status_code == 422
    assert "At most" in text_of(refused)
    answer = owner.post(path, {"line": line.key, "amount": "", "reason": "It was stopped", "key": "a"}, follow=True)
    assert "is disputed (open): It was stopped" in text_of(answer)
    made = InvoiceDispute.objects.get()
    answer = owner.post(reverse("dispute-withdraw", args=[made.public_id]), follow=True)
    assert "The dispute is withdrawn." in text_of(answer)


def test_a_key_of_any_length_pays_once(
    owner: Client, owed: Invoice, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    Card.objects.create(
        organization=acme, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030, is_default=True
    )
    for _ in range(2):
        answer = owner.post(reverse("invoice-pay", args=[owed.public_id]), {"key": "k" * 500}, follow=True)
        assert "is being charged to visa 4242" in text_of(answer)
    assert Payment.objects.count() == 1
