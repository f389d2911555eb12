"""What customers owe, in the console: limits of credit with a second person, and credit that expires."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, disputes, promotions
from billing.invoicing import issuing
from billing.models import (
    Account,
    BankTransfer,
    CreditGrant,
    CreditLine,
    CreditProposal,
    DunningStep,
    DunningTable,
    Invoice,
)
from marketplace.models import AuditEntry, Organization, User
from marketplace.portal.preferences import ZONE_COOKIE
from tests.conftest import make_person
from tests.marketplace.console.conftest import only_entry
from tests.marketplace.invoices.conftest import seller, use_beyond_credit

__all__ = ["seller"]


@pytest.fixture
def other_desk(db: None) -> Client:
    """Dan's browser, who manages capacity too."""
    client = Client()
    client.force_login(make_person("dan@operator.example", is_staff=True))
    return client


def send(desk: Client, name: str, *ids: str, **fields: Any) -> Any:
    return desk.post(reverse(name, args=ids), fields)


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def propose(desk: Client, organization: Organization, limit: str = "5000", **more: Any) -> Any:
    fields = {"limit_micros": limit, "net_days": "30", "reason": "Known for years", "key": str(uuid4())} | more
    return send(desk, "console-receivable-limit", organization.public_id, **fields)


def limit_of(organization: Organization) -> int:
    return accounts.wallet(organization=organization).credit_limit_micros


def test_what_is_forbidden_to_a_debtor_stands_in_words(desk: Client, acme: Organization) -> None:
    receivable = Account.objects.filter(organization=acme, kind=Account.Kind.RECEIVABLE)
    assert receivable.update(credit_limit_micros=1_000_000, sanction="stop_on_demand") == 1
    page = text_of(desk.get(reverse("console-receivables")))
    assert "stop_on_demand" not in page
    assert page.count("stop everything that runs") == 2
    assert "1 day from the due day:" in page


def test_a_limit_holds_once_somebody_else_approves(desk: Client, other_desk: Client, acme: Organization) -> None:
    assert propose(desk, acme).status_code == 302
    line = CreditLine.objects.get()
    assert "Limits that wait for a second person" in text_of(desk.get(reverse("console-receivables")))
    answer = send(desk, "console-receivable-limit-approve", line.public_id)
    assert answer.status_code == 422
    assert "somebody else has to decide" in text_of(answer)
    assert limit_of(acme) == 0
    assert send(other_desk, "console-receivable-limit-approve", line.public_id).status_code == 302
    assert limit_of(acme) == 5_000_000_000
    assert only_entry("credit_line.approve").after == {
        "limit": "5000.000000", "currency": "USD", "net_days": 30, "reason": "Known for years"
    }  # fmt: skip
    page = text_of(desk.get(reverse("console-organization", args=[acme.public_id])))
    assert "may owe up to $5,000.00" in page
    assert "$5,000.00" in text_of(desk.get(reverse("console-receivables")))
    assert send(other_desk, "console-receivable-limit-decline", line.public_id).status_code == 422


def test_a_declined_limit_changes_nothing(desk: Client, acme: Organization) -> None:
    propose(desk, acme)
    line = CreditLine.objects.get()
    assert send(desk, "console-receivable-limit-decline", line.public_id).status_code == 302
    assert limit_of(acme) == 0
    assert only_entry("credit_line.decline").subject_id == line.public_id


@pytest.mark.parametrize(
    "fields",
    [{"limit_micros": "-1"}, {"limit_micros": "5000.005"}, {"net_days": "121"}, {"net_days": "-1"},
     {"limit_micros": "1e9"}, {"limit_micros": "0.0000001"}, {"reason": ""}, {"key": "x"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(desk: Client, acme: Organization, fields: dict[str, str]) -> None:
    assert propose(desk, acme, **fields).status_code == 422
    assert not CreditLine.objects.exists()


def test_a_form_that_is_sent_twice_counts_once(desk: Client, acme: Organization) -> None:
    key = str(uuid4())
    assert propose(desk, acme, key=key).status_code == propose(desk, acme, key=key).status_code == 302
    assert only_entry("credit_line.propose").subject_id == CreditLine.objects.get().public_id
    assert propose(desk, acme).status_code == 422  # one waits already


def test_credit_is_granted_until_a_day(desk: Client, acme: Organization) -> None:
    until = timezone.now() + timedelta(days=30)
    fields = {"amount_micros": "25", "reason": "Trial", "key": str(uuid4()), "expires_at": f"{until:%Y-%m-%dT%H:%M}"}
    assert send(desk, "console-credit", acme.public_id, **fields).status_code == 302
    grant = CreditGrant.objects.get(reason="Trial")
    assert grant.expires_at is not None
    assert abs(grant.expires_at - until) < timedelta(hours=15)  # typed in the browser's time zone
    assert next(one.grant.reason for one in promotions.left(organization=acme)) == "Trial"


def test_credit_that_is_over_already_is_refused(desk: Client, acme: Organization) -> None:
    fields = {"amount_micros": "25", "reason": "Trial", "key": str(uuid4()), "expires_at": "2020-01-01T00:00"}
    answer = send(desk, "console-credit", acme.public_id, **fields)
    assert answer.status_code == 422
    assert "Credit cannot expire before it is given." in text_of(answer)
    assert not CreditGrant.objects.filter(reason="Trial").exists()


@pytest.fixture
def owed(seller: Organization, acme: Organization) -> Invoice:
    """An invoice of which something is left."""
    use_beyond_credit(acme)
    return issuing.issue(organization=acme, at=timezone.now())


def record(desk: Client, organization: Organization, amount: str = "100", **more: Any) -> Any:
    fields = {"direction": "in", "amount_micros": amount, "bank_reference": "2026-11/7", "value_on": "2026-01-05",
              "invoice": "", "note": "", "key": str(uuid4())}  # fmt: skip
    return send(desk, "console-bank-new", organization.public_id, **(fields | more))


def test_the_day_of_a_bank_transfer_is_that_of_whoever_records_it(desk: Client, acme: Organization) -> None:
    desk.cookies[ZONE_COOKIE] = "Asia/Tokyo"
    late = timezone.now().replace(hour=23, minute=30)
    here = f"{late + timedelta(hours=9):%Y-%m-%d}"
    with time_machine.travel(late, tick=False):
        page = text_of(desk.get(reverse("console-bank-new", args=[acme.public_id])))
        assert f'name="value_on" value="{here}"' in page
        assert record(desk, acme, value_on=here).status_code == 302
        to_come = f"{late + timedelta(days=2):%Y-%m-%d}"
        assert record(desk, acme, value_on=to_come, bank_reference="2026-11/8").status_code == 422


def test_a_bank_transfer_pays_an_invoice_once_somebody_else_approves(
    desk: Client, other_desk: Client, acme: Organization, owed: Invoice
) -> None:
    page = text_of(desk.get(reverse("console-receivables")))
    assert "acme" in page.lower()
    before = accounts.wallet(organization=acme).owed_micros
    assert record(desk, acme, invoice=owed.public_id).status_code == 302
    row = BankTransfer.objects.get()
    assert "2026-11/7" in text_of(desk.get(reverse("console-bank")))
    assert send(desk, "console-bank-approve", row.public_id).status_code == 422
    assert accounts.wallet(organization=acme).owed_micros == before
    assert send(other_desk, "console-bank-approve", row.public_id).status_code == 302
    assert accounts.wallet(organization=acme).owed_micros == before - 100_000_000
    assert only_entry("bank_transfer.approve").after["bank_reference"] == "2026-11/7"  # type: ignore[index]
    answer = record(desk, acme)
    assert answer.status_code == 422
    assert "recorded before" in text_of(answer)


@pytest.mark.parametrize(
    "fields", [{"amount": "-1"}, {"amount": "1.005"}, {"value_on": "2999-01-01"}, {"bank_reference": ""},
               {"invoice": "ivc_nothing"}, {"direction": "sideways"}],
)  # fmt: skip
def test_a_bank_transfer_that_makes_no_sense_is_refused(desk: Client, acme: Organization, fields: Any) -> None:
    assert record(desk, acme, **fields).status_code == 422
    assert not BankTransfer.objects.exists()


def test_the_pages_show_what_was_done_and_what_comes(desk: Client, acme: Organization, owed: Invoice) -> None:
    for name, key in (("console-organization", acme.public_id), ("console-invoice", owed.public_id)):
        page = text_of(desk.get(reverse(name, args=[key])))
        assert "let nothing new start" in page
        assert "INV-000001" in page


def test_a_dispute_is_answered(
    desk: Client, other_desk: Client, acme: Organization, owed: Invoice, alice: User
) -> None:
    made = disputes.open_dispute(
        invoice=owed, line=None, net_micros=10_000_000, reason="It was stopped", by=alice.pk, key=uuid4(),
        at=timezone.now(),
    )  # fmt: skip
    assert "It was stopped" in text_of(desk.get(reverse("console-receivables")))
    assert send(desk, "console-receivable-uphold", made.public_id, answer="").status_code == 422
    assert send(desk, "console-receivable-uphold", made.public_id, answer="You are right").status_code == 302
    assert CreditProposal.objects.get().net_micros == 10_000_000
    assert send(desk, "console-receivable-reject", made.public_id, answer="No").status_code == 422


def test_another_table_of_dunning_takes_two_people(desk: Client, other_desk: Client) -> None:
    page = desk.get(reverse("console-dunning-new")).content.decode()
    assert 'name="charge" value="-7' in page
    fields = {
        "charge": "−7, 0", "mail": "1", "restrict": "10", "stop_spot": "20", "stop_on_demand": "30", "write_off": "90",
        "reason": "Kinder", "key": str(uuid4()),
    }  # fmt: skip
    wrong = desk.post(reverse("console-dunning-new"), fields | {"restrict": "0"})
    assert (wrong.status_code, "Nothing harms a customer" in wrong.content.decode()) == (422, True)
    assert desk.post(reverse("console-dunning-new"), fields | {"mail": "soon"}).status_code == 422
    assert desk.post(reverse("console-dunning-new"), fields).status_code == 302
    made = DunningTable.objects.get()
    approve = reverse("console-dunning-approve", args=[made.public_id])
    assert desk.post(approve).status_code == 422
    assert "-7: charge the saved card" in other_desk.get(approve).content.decode()
    assert other_desk.post(approve).status_code == 302
    shown = desk.get(reverse("console-dunning")).content.decode()
    assert "Kinder" in shown
    assert DunningStep.objects.filter(is_active=True).count() == 7
    assert AuditEntry.objects.filter(verb__startswith="dunning.").count() == 2
