"""What customers owe, in the console: limits of credit with a second person, and credit that expires."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import accounts, promotions
from billing.models import CreditGrant, CreditLine
from marketplace.models import Organization
from tests.conftest import make_person
from tests.marketplace.console.conftest import only_entry


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
