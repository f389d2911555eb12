"""Each kind of contract shows the terms that apply to it, what counts, and nothing of the other kinds."""

from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from marketplace.contracts import terms as written
from marketplace.contracts import wording
from marketplace.models import AuditEntry, ContractVersion, Organization, User
from tests import agreed
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read
from tests.outcomes import make_deal, make_seller

pytestmark = pytest.mark.django_db

OF_TASKS = {"Verified by", "Evidence", "Your acceptance", "Disputes", "Retries", "Claw-back", "At most"}


@pytest.fixture
def owner(alice: User) -> Client:
    return browser(alice)


def versions(acme: Organization, alice: User, at: datetime) -> dict[str, ContractVersion]:
    seller, _ = make_seller()
    return {
        "per_task": make_deal(acme).version,
        "guarantee": agreed.guarantee(seller, acme, alice, at),
        "revenue_share": agreed.share_revenue(seller, acme, alice, at),
    }


def test_each_kind_has_its_own_terms(acme: Organization, alice: User) -> None:
    found = versions(acme, alice, timezone.now())
    said: dict[str, Any] = {kind: dict(wording.sentences(written.of(row.terms))) for kind, row in found.items()}
    assert set(said["per_task"]) >= OF_TASKS
    assert set(said["guarantee"]) == {"Price", "Guarantee", "Credit at most", "Measured by", "Who bears it"}
    assert set(said["revenue_share"]) == {"Share of revenue", "Who gets it"}
    assert "tokens_total" in said["guarantee"]["Measured by"]
    assert said["guarantee"]["Who bears it"] == "the seller 75 %, the platform 25 %"
    assert [wording.price(written.of(row.terms)) for row in found.values()] == [
        "$0.50 per task", "no price of its own", "15 % of revenue"
    ]  # fmt: skip


def test_usual_units_are_in_the_readers_language_and_others_are_the_sellers_word(acme: Organization) -> None:
    usual = make_deal(acme).version.terms
    own = usual | {"unit": usual["unit"] | {"name": "widget"}}
    with translation.override("ja"):
        assert wording.price(written.of(usual)) == "タスク あたり $0.50"
        assert wording.price(written.of(own)) == "widget あたり $0.50"


def test_the_page_of_each_product_says_what_counts_and_what_applies(
    acme: Organization, alice: User, owner: Client
) -> None:
    for kind, row in versions(acme, alice, timezone.now()).items():
        page = read(owner.get(reverse("outcome", args=[row.public_id])))
        assert faults(page) == []
        assert row.terms["counts"] in page.text
        names = {element.text for element in page.all("dt")}
        assert (names >= OF_TASKS) is (kind == "per_task"), kind
        assert not OF_TASKS & names or kind == "per_task", kind
    catalogue = read(owner.get(reverse("outcomes"))).text
    assert "no price of its own" in catalogue
    assert "15 % of revenue" in catalogue


def test_an_owner_ends_an_agreement_on_its_page_and_nobody_else(alice: User, bob: User, acme: Organization) -> None:
    deal = make_deal(acme)
    address = reverse("outcome", args=[deal.version.public_id])
    for person, sees, status in ((bob, False, 403), (alice, True, 302), (alice, False, 302)):
        client = browser(person)
        assert ('id="leave"' in client.get(address).content.decode()) == sees
        assert client.post(address, {"leave": "yes"}).status_code == status
    page = browser(alice).get(address).content.decode()
    assert "What was begun goes on by its terms" in page
    assert 'id="new-job"' not in page
    assert AuditEntry.objects.filter(verb="contract.leave", organization=acme).count() == 1
