"""Corrections of use at the desk, and by the operator's programs."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import usage
from billing.models import UsageCorrection, UsageSpan
from marketplace.models import Membership, Organization, Role, User
from tests.billing.makers import HOUR, NOON, make_price
from tests.conftest import make_person, make_token
from tests.marketplace.api.program import Program
from tests.marketplace.console.conftest import only_entry


@pytest.fixture
def other(db: None) -> User:
    """Dan, who manages capacity too."""
    return make_person("dan@operator.example", is_staff=True)


@pytest.fixture
def span(acme: Organization) -> UsageSpan:
    """Two GPUs for three hours."""
    usage.start(
        organization=acme, resource_id="ins_1", resource_name="trainer", labels={}, quantity=2,
        price_version=make_price(), at=NOON,
    )  # fmt: skip
    usage.stop(resource_id="ins_1", at=NOON + 3 * HOUR)
    return UsageSpan.objects.get()


def program(user: User, organization: Organization) -> Program:
    Membership.objects.create(organization=organization, user=user, role=Role.VIEWER)
    return Program(make_token(user, organization, scopes=("read", "manage")))


def test_one_person_proposes_at_the_desk_and_another_approves(desk: Client, other: User, span: UsageSpan) -> None:
    page = desk.get(reverse("console-corrections"), {"search": "ins_1"}).content.decode()
    path = reverse("console-correction-new", args=[span.public_id])
    assert path in page
    assert "2026-03-02T15:00:00" in desk.get(path).content.decode()
    fields = {"ended_at": "2026-03-02T13:00:00", "reason": "It hung", "key": str(uuid4())}
    assert desk.post(path, fields | {"ended_at": "2026-03-02T11:00:00"}).status_code == 422
    assert desk.post(path, fields).status_code == 302
    assert desk.post(path, fields).status_code == 302  # sent twice, counted once
    row = UsageCorrection.objects.get()
    approve = reverse("console-correction-approve", args=[row.public_id])
    assert desk.post(approve).status_code == 422
    client = Client()
    client.force_login(other)
    assert "instead of 2026-03-02 15:00:00" in client.get(approve).content.decode()
    assert client.post(approve).status_code == 302
    assert "It hung" in client.get(reverse("console-corrections")).content.decode()
    assert only_entry("usage.correct").after["amount"] == "-10.000000"
    assert only_entry("usage.propose_correction").actor.email == "carol@operator.example"


def test_a_proposal_is_declined_and_the_use_stays(desk: Client, span: UsageSpan) -> None:
    fields = {"ended_at": "2026-03-02T13:00:00", "reason": "It hung", "key": str(uuid4())}
    desk.post(reverse("console-correction-new", args=[span.public_id]), fields)
    decline = reverse("console-correction-decline", args=[UsageCorrection.objects.get().public_id])
    assert desk.get(decline).status_code == 200
    assert desk.post(decline).status_code == 302
    span.refresh_from_db()
    assert span.ended_at == NOON + 3 * HOUR


def test_two_programs_of_the_operator_correct_use(
    carol: User, other: User, operator: Organization, span: UsageSpan
) -> None:
    first, second = program(carol, operator), program(other, operator)
    order: dict[str, Any] = {"span": span.public_id, "ended_at": "2026-03-02T13:00:00Z", "reason": "It hung"}
    made = first.post("operator/usage-corrections", order, key="k")
    assert (made.status_code, made.json()["state"], made.json()["amount"]) == (201, "proposed", None)
    assert first.post("operator/usage-corrections", order, key="k").json() == made.json()
    assert first.post("operator/usage-corrections", order, key="other").json()["code"] == "already_proposed"
    path = f"operator/usage-corrections/{made.json()['id']}"
    assert first.post(f"{path}/approve", {}).json()["code"] == "second_person_needed"
    assert second.post(f"{path}/approve", {}).json()["amount"] == "-10.000000"
    assert second.post(f"{path}/decline", {}).json()["code"] == "already_decided"
    assert [row["decided_by"] for row in first.get("operator/usage-corrections").json()["data"]] == [other.email]
    wrong = order | {"ended_at": (timezone.now() + timedelta(days=1)).isoformat()}
    assert first.post("operator/usage-corrections", wrong, key="w").json()["errors"][0]["pointer"] == "/ended_at"


def test_a_program_of_the_operator_tells_use_that_was_measured_elsewhere(
    carol: User, operator: Organization, acme: Organization
) -> None:
    desk, price = program(carol, operator), make_price()
    use = {
        "organization": acme.public_id, "resource": "ext_1", "name": "cluster", "meter": "gpu", "quantity": 8,
        "price": price.public_id, "started_at": NOON.isoformat(), "ended_at": (NOON + HOUR).isoformat(),
    }  # fmt: skip
    assert desk.post("operator/usage", {"usage": [use]}).json() == {"told": 1, "new": 1}
    assert desk.post("operator/usage", {"usage": [use]}).json() == {"told": 1, "new": 0}
    assert only_entry("usage.record").organization == acme
    refused = desk.post("operator/usage", {"usage": [use, use | {"quantity": 9}]})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/usage/1")
    assert UsageSpan.objects.count() == 1
