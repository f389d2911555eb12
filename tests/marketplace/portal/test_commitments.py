"""A customer asks for a commitment, is offered one and accepts it: in the portal, at the desk, and by a program."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import Commitment, CommitmentRequest
from billing.months import month_of, next_month
from marketplace.models import AuditEntry, Organization, User
from tests.conftest import Fleet, make_person, make_token
from tests.marketplace.api.program import Program
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read


@pytest.fixture
def first() -> str:
    """The first month that can be promised."""
    return next_month(month_of(timezone.now())).isoformat()


def page_of(client: Client) -> str:
    answer = client.get(reverse("commitments"))
    assert faults(read(answer)) == []
    return answer.content.decode()


def wish(fleet: Fleet, first: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "hours", "skus": [fleet.h200.sku], "amount": "500", "starts_at": first, "months": "3",
        "note": "Training", "key": str(uuid4()),
    } | changes  # fmt: skip


def test_from_the_wish_to_the_agreement(alice: User, acme: Organization, carol: User, fleet: Fleet, first: str) -> None:
    portal, desk, other = browser(alice), browser(carol), browser(make_person("dan@operator.example", is_staff=True))
    assert "No commitments yet" in page_of(portal)
    wrong = portal.post(reverse("commitments"), wish(fleet, first, amount="0"))
    assert (wrong.status_code, "Write how much" in wrong.content.decode()) == (422, True)
    assert portal.post(reverse("commitments"), wish(fleet, first)).status_code == 302
    assert "500 hours" in page_of(portal)
    asked = CommitmentRequest.objects.get()
    where = reverse("console-commitments", args=[acme.public_id])
    assert asked.public_id in desk.get(where).content.decode()
    new = f"{reverse('console-commitment-new', args=[acme.public_id])}?request={asked.public_id}"
    assert 'value="500"' in desk.get(new).content.decode()
    fields = {
        "kind": "hours", "skus": [fleet.h200.sku], "hours": "500", "discount_bps": "20", "starts_at": first,
        "months": "3", "note": "contract 7", "key": str(uuid4()),
    }  # fmt: skip
    assert [desk.post(new, fields).status_code for _sent_twice in range(2)] == [302, 302]
    made = Commitment.objects.get()
    assert made.public_id not in page_of(portal)
    assert other.post(reverse("console-commitment-offer", args=[made.public_id])).status_code == 302
    assert reverse("commitment-accept", args=[made.public_id]) in page_of(portal)
    assert portal.post(reverse("commitment-accept", args=[made.public_id])).status_code == 302
    made.refresh_from_db()
    assert (made.state, made.answered_by) == ("agreed", alice)
    assert "$0.00 of $996.00 used" in page_of(portal)
    assert portal.post(reverse("commitment-refuse", args=[made.public_id])).status_code == 409
    verbs = set(AuditEntry.objects.filter(verb__startswith="commitment.").values_list("verb", flat=True))
    assert verbs == {"commitment.ask", "commitment.propose", "commitment.offer", "commitment.accept"}


def test_a_request_is_declined_with_a_reason_or_taken_back(
    alice: User, acme: Organization, carol: User, fleet: Fleet, first: str
) -> None:
    portal, desk = browser(alice), browser(carol)
    portal.post(reverse("commitments"), wish(fleet, first))
    asked = CommitmentRequest.objects.get()
    path = reverse("console-commitment-request-decline", args=[asked.public_id])
    assert desk.post(path, {"reason": "All are sold"}).status_code == 302
    assert "All are sold" in page_of(portal)
    portal.post(reverse("commitments"), wish(fleet, first, kind="spend", amount="1000.50"))
    second = CommitmentRequest.objects.latest("pk")
    assert second.amount == 1_000_500_000
    assert portal.post(reverse("commitment-request-withdraw", args=[second.public_id])).status_code == 302
    assert portal.post(reverse("commitment-request-withdraw", args=[second.public_id])).status_code == 409


def test_a_program_asks_and_takes_back(alice: User, acme: Organization, fleet: Fleet, first: str) -> None:
    program = Program(make_token(alice, acme))
    order = {"kind": "hours", "skus": [fleet.h200.sku], "hours": 500, "starts_at": first, "months": 3}
    made = program.post("commitment-requests", order, key="k")
    assert (made.status_code, made.json()["hours"], made.json()["amount"]) == (201, 500, None)
    assert program.post("commitment-requests", order, key="k").json() == made.json()
    assert program.post("commitment-requests", order, key="l").status_code == 409
    assert program.post(f"commitment-requests/{made.json()['id']}/withdraw", {}).json()["state"] == "withdrawn"
    past = order | {"starts_at": (datetime.now(tz=UTC) - timedelta(days=1)).isoformat()}
    assert program.post("commitment-requests", past, key="p").json()["errors"][0]["pointer"] == "/starts_at"


def test_a_thing_that_no_form_names_is_no_thing(alice: User, acme: Organization, fleet: Fleet, first: str) -> None:
    answer = browser(alice).post(reverse("commitments"), wish(fleet, first, skus=["a\x00b"]))
    assert (answer.status_code, "Choose what it is about" in answer.content.decode()) == (422, True)
    assert not CommitmentRequest.objects.exists()
