"""Quotas, budgets and waiting orders in the browser."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import quota_requests, tokens
from marketplace.access import Actor, person
from marketplace.models import Membership, Organization, Project, QuotaRequest, QuotaRule, User, WaitingOrder
from provisioning.models import Instance, Node, Quota
from tests.conftest import Fleet, Rent, make_token
from tests.marketplace.api.program import Program
from tests.marketplace.portal.reading import Page, faults, read


@pytest.fixture(autouse=True)
def no_rules(db: None) -> None:
    QuotaRule.objects.all().delete()


def opened(client: Client, name: str, *ids: str) -> Page:
    answer = client.get(reverse(name, args=ids))
    assert answer.status_code == 200
    page = read(answer)
    assert faults(page) == []
    return page


def test_the_page_shows_what_is_held_and_what_is_free(owner: Client, rent: Rent, fleet: Fleet) -> None:
    rent(gpus=5)
    text = opened(owner, "quotas").text
    for words in ("What may be held", "All GPUs", "16", "11"):
        assert words in text, words


def test_what_is_reserved_is_shown_and_not_free_at_every_door(
    owner: Client, alice: User, acme: Organization, project: Project, fleet: Fleet, rent: Rent
) -> None:
    rent(gpus=2)
    Quota.objects.filter(project=project).update(reserved=9)
    assert "Reserved" in opened(owner, "quotas").text
    assert "2 of 16 held, 9 reserved" in opened(owner, "projects").text
    form = {"offer": fleet.h200.slug, "gpus": "6", "replicas": "1"}
    assert "11 of 16 GPUs are held or reserved" in read(owner.get(reverse("launch"), form)).text
    rows = Program(make_token(alice, acme)).get("quotas").json()["data"]
    assert [(row["held"], row["reserved"], row["free"]) for row in rows if row["project"]] == [(2, 9, 5)]


def test_a_request_is_sent_shown_and_withdrawn(owner: Client, project: Project) -> None:
    form = {"owner": project.public_id, "limit": "99", "reason": "a big run", "gpu_model": "", "market": ""}
    assert owner.post(reverse("quotas"), form).status_code == 302
    assert "99 GPUs (All GPUs)" in opened(owner, "quotas").text
    made = QuotaRequest.objects.get()
    owner.post(reverse("quota-request-withdraw", args=[made.public_id]))
    made.refresh_from_db()
    assert made.state == "withdrawn"


def test_a_project_s_limit_is_asked_for_by_its_own_organization_whichever_is_looked_at(
    owner: Client, alice: User, acme: Organization, charlie: User
) -> None:
    other = Project.objects.select_related("organization").get(organization__name="Other")
    Membership.objects.create(organization=other.organization, user=alice, role="owner")
    form = {"organization": acme.public_id, "owner": other.public_id, "limit": "99", "reason": "a big run"}
    assert owner.post(reverse("quotas"), form).status_code == 302
    made = QuotaRequest.objects.get()
    assert (made.organization, made.project) == (other.organization, other)


def test_a_token_of_one_project_asks_for_no_limit_of_the_whole_organization(
    alice: User, acme: Organization, project: Project
) -> None:
    asked = {"limit": 99, "reason": "a big run", "organization_wide": True}
    _, secret = tokens.create_token(
        actor=person(alice), organization=acme, name="one", scopes=("manage",), at=timezone.now(), project=project
    )
    bound = Program(secret).post("quota-requests", asked, key="a")
    assert (bound.status_code, QuotaRequest.objects.count()) == (403, 0)
    assert Program(make_token(alice, acme)).post("quota-requests", asked, key="b").status_code == 201


def test_numbers_of_gpus_have_their_thousands_apart(owner: Client, project: Project) -> None:
    Quota.objects.filter(project=project, gpu_model="", unit="gpus").update(limit=123_456)
    Quota.objects.filter(project=None).update(limit=345_678)
    form = {"owner": project.public_id, "limit": "234567", "reason": "a big run", "gpu_model": "", "market": ""}
    assert owner.post(reverse("quotas"), form).status_code == 302
    text = opened(owner, "quotas").text
    for number in ("123,456", "345,678", "234,567 GPUs (All GPUs)"):
        assert number in text, number
    assert "0 of 123,456 held" in opened(owner, "projects").text


def test_more_money_an_hour_is_asked_for_as_well(owner: Client, project: Project) -> None:
    form = {"owner": project.public_id, "unit": "per_hour", "limit": "250.50", "reason": "a big run"}
    assert owner.post(reverse("quotas"), form).status_code == 302
    assert "$250.50 an hour" in opened(owner, "quotas").text
    assert QuotaRequest.objects.get().limit == 250_500_000
    answer = owner.post(reverse("quotas"), form | {"limit": "much"})
    assert (answer.status_code, "Type an amount" in read(answer).text) == (422, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"limit": "3"}, "ask for more"), ({"limit": "lots"}, "from 0 to 1,000,000"), ({"reason": ""}, "Say why")],
)
def test_a_bad_request_keeps_what_was_typed(
    owner: Client, project: Project, change: dict[str, str], words: str
) -> None:
    form = {"owner": project.public_id, "limit": "99", "reason": "my reason", "gpu_model": "", "market": ""}
    answer = owner.post(reverse("quotas"), form | change)
    page = read(answer)
    assert answer.status_code == 422
    assert faults(page) == []
    assert words in page.text
    assert QuotaRequest.objects.count() == 0


def test_the_customer_reads_the_note(owner: Client, actor: Actor, project: Project, carol: object) -> None:
    made = quota_requests.request(
        actor=actor, organization=project.organization, project=project, limit=99, reason="r", at=timezone.now()
    )
    quota_requests.deny(actor=actor, found=made, note="after your first invoice", at=timezone.now())
    assert "after your first invoice" in opened(owner, "quotas").text


@pytest.fixture
def full(fleet: Fleet) -> Fleet:
    """Nothing is free."""
    Node.objects.update(free_mask=0)
    for played in fleet.nodes.values():
        played.node.refresh_from_db()
    return fleet


def form_of(owner: Client, fleet: Fleet, **changes: str) -> dict[str, str]:
    page = opened(owner, "launch")
    key = page.all("input", name="key")[0].attributes["value"]
    typed = {"offer": fleet.h200.slug, "gpus": "2", "replicas": "1", "command": "sleep 5", "key": str(key)}
    return typed | {"max_price": "2.49", "hours": "8", "wait": "1"} | changes


def test_the_launch_form_offers_to_wait_when_nothing_is_free(owner: Client, full: Fleet, acme: Organization) -> None:
    text = opened(owner, "launch").text
    assert "It does not fit now" in text
    assert "0 orders with 0 GPUs wait already." in text
    form = form_of(owner, full)
    for _ in range(2):
        assert owner.post(reverse("launch"), form).headers["Location"] == reverse("waits")
    entry = WaitingOrder.objects.get()
    assert (entry.all_gpus, entry.max_micros_per_gpu_hour) == (2, 2_490_000)
    assert Instance.objects.count() == 0
    listed = opened(owner, "waits").text
    assert entry.public_id in listed
    assert "It is new: whether it can start is found out within seconds." in listed
    assert "not free yet" not in listed
    owner.post(reverse("wait-cancel", args=[entry.public_id]))
    entry.refresh_from_db()
    assert entry.state == "cancelled"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hours": "0"}, "whole number"),
        ({"max_price": "x"}, "GPU-hour may"),
        ({"max_price": "1e30"}, "GPU-hour may"),
        ({"max_price": "9" * 30}, "GPU-hour may"),
    ],
)
def test_a_wait_that_makes_no_sense_is_told_beside_its_field(
    owner: Client, full: Fleet, change: dict[str, str], words: str
) -> None:
    answer = owner.post(reverse("launch"), form_of(owner, full, **change))
    assert answer.status_code == 422
    assert words in read(answer).text
    assert WaitingOrder.objects.count() == 0


def test_what_fits_is_not_offered_to_wait(owner: Client, fleet: Fleet) -> None:
    assert "It does not fit now" not in opened(owner, "launch").text
    assert Quota.objects.count() > 0
