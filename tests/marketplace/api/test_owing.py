"""What is owed, and what one can do about it, through the API."""

from typing import Any

import pytest
from django.utils import timezone

from billing.invoicing import issuing
from billing.models import Card, Invoice, InvoiceDispute, Payment
from billing.payments import gateway
from marketplace.models import Organization
from marketplace.money import decimal_string
from tests.billing.makers import USD
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import DAY, days, run
from tests.marketplace.api.program import Program
from tests.marketplace.invoices.conftest import seller, use_beyond_credit

__all__ = ["seller"]


@pytest.fixture
def owed(seller: Organization, acme: Organization) -> Invoice:
    """An invoice of which something is left."""
    use_beyond_credit(acme)
    return issuing.issue(organization=acme, at=timezone.now())


def save_card(organization: Organization) -> Card:
    return Card.objects.create(
        organization=organization, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030,
        is_default=True,
    )  # fmt: skip


def test_the_balance_says_what_comes_if_nobody_pays(program: Program, owed: Invoice) -> None:
    balance = program.get("balance").json()
    assert balance["past_due"] == "0.000000"
    codes = [one["code"] for one in balance["coming"]]
    assert codes == [
        "charge", "mail", "charge", "mail", "charge", "charge", "restrict", "charge", "stop_spot", "stop_on_demand",
        "mail", "write_off",
    ]  # fmt: skip
    assert balance["coming"][6]["text"] == "Nothing new starts until INV-000001 is paid."
    assert balance["coming"][6]["invoice"] == "INV-000001"


def test_an_invoice_says_when_it_is_due_and_its_state(program: Program, owed: Invoice) -> None:
    found = program.get(f"invoices/{owed.public_id}").json()
    assert found["state"] == "open"
    assert found["due_at"] is not None


def test_an_invoice_that_was_given_up_says_how_much_and_what_can_still_be_paid(
    program: Program, owed: Invoice, acme: Organization
) -> None:
    def amounts() -> tuple[str, ...]:
        (listed,) = program.get("invoices").json()["data"]
        shown = program.get(f"invoices/{owed.public_id}").json()
        assert listed == shown
        return tuple(shown[name] for name in ("state", "due", "written_off", "recovered"))

    def balance() -> tuple[str, ...]:
        found = program.get("balance").json()
        return found["owed"], found["written_off"]

    due = program.get(f"invoices/{owed.public_id}").json()["due"]
    for day in days(-8, 70):
        run(owed.issued_at + (7 + day) * DAY)
    assert amounts() == ("uncollectible", due, due, "0.000000")
    assert balance() == ("0.000000", due)
    at = owed.issued_at + 80 * DAY
    rest = owed.due_micros - 100 * USD
    approved(recorded(acme, 100 * USD, invoice=owed), at=at)
    assert amounts() == ("uncollectible", decimal_string(rest), due, "100.000000")
    assert balance() == ("0.000000", decimal_string(rest))
    approved(recorded(acme, rest, invoice=owed), at=at + DAY)
    assert amounts() == ("paid", "0.000000", due, due)
    assert balance() == ("0.000000", "0.000000")


def test_without_cards_paying_now_says_what_to_do_instead(program: Program, owed: Invoice) -> None:
    answer = program.ask("post", f"invoices/{owed.public_id}/pay", {}, key="1")
    assert answer.status_code == 409
    assert "bank transfer" in answer.json()["detail"]
    assert not Payment.objects.exists()


def test_an_invoice_is_paid_now_once_for_its_key(
    program: Program, owed: Invoice, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "is_there", lambda: True)
    save_card(acme)
    first, again = (program.ask("post", f"invoices/{owed.public_id}/pay", {}, key="1") for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    payment = Payment.objects.get()
    assert (payment.reference, payment.purpose) == (owed.public_id, "invoice")
    assert first.json()["amount"] == program.get(f"invoices/{owed.public_id}").json()["due"]
    other = program.ask("post", f"invoices/{owed.public_id}/pay", {}, key="2")
    assert other.status_code == 409
    assert "under way" in other.json()["detail"]


def disputed(program: Program, invoice: Invoice, key: str = "1", **body: Any) -> Any:
    return program.ask("post", f"invoices/{invoice.public_id}/disputes", {"reason": "It was stopped"} | body, key=key)


def test_a_line_is_disputed_and_withdrawn(program: Program, owed: Invoice) -> None:
    line = owed.lines.first()
    assert line is not None
    answer = disputed(program, owed, line=line.key, amount="12.50")
    assert answer.status_code == 201
    made = answer.json()
    assert (made["net"], made["state"], made["line"]) == ("12.500000", "open", line.key)
    assert program.get(f"invoices/{owed.public_id}/disputes").json()["data"] == [made]
    gone = program.ask("post", f"disputes/{made['id']}/withdraw", {}, key="gone")
    assert gone.json()["state"] == "withdrawn"
    assert program.ask("post", f"disputes/{made['id']}/withdraw", {}, key="gone").json() == gone.json()
    assert program.ask("post", f"disputes/{made['id']}/withdraw", {}).status_code == 409


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"amount": "1.005"}, "/amount"), ({"amount": "-1"}, "/amount"), ({"amount": "99999999"}, "/amount"),
     ({"line": "nothing"}, "/line"), ({"reason": ""}, "/reason"), ({"reason": "x" * 501}, "/reason")],
)  # fmt: skip
def test_a_dispute_that_makes_no_sense_is_refused(
    program: Program, owed: Invoice, body: dict[str, str], pointer: str
) -> None:
    answer = disputed(program, owed, **body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert not InvoiceDispute.objects.exists()
