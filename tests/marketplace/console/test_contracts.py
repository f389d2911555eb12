"""The editor of contracts, their margin, and disputes that wait for a decision."""

import json
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import answering, disputing, offering, sellers, sweeping
from marketplace.models import AuditEntry, Claim, ContractVersion, Membership, Organization, Project, Side, User
from tests.outcomes import BY_CUSTOMER, PRICE, accept, make_deal, make_seller, terms

pytestmark = pytest.mark.django_db


def typed(seller: Organization, **differs: Any) -> dict[str, str]:
    return {"title": "Frames", "seller": seller.public_id, "buyer": "", "terms": json.dumps(terms(**differs))}


def test_a_contract_is_drafted_offered_amended_and_withdrawn(desk: Client, acme: Organization, actor: Actor) -> None:
    seller, merchant = make_seller()
    page = desk.get(reverse("console-contract-new")).content.decode()
    assert "gpumarket.terms/3" in page
    answer = desk.post(reverse("console-contract-new"), typed(seller))
    version = ContractVersion.objects.get()
    assert (answer.status_code, version.state, version.contract.seller) == (302, "draft", seller)
    offer = reverse("console-contract-offer", args=[version.public_id])
    assert offer not in desk.get(reverse("console-contract", args=[version.public_id])).content.decode()
    assert "nobody agrees to it for them" in desk.post(offer).content.decode()
    assert (list(offering.catalogue()), version.acceptances.count()) == ([], 0)
    offering.offer(actor=merchant, version=version, at=timezone.now())
    desk.post(offer)
    assert list(offering.catalogue()) == [version]
    assert version.acceptances.get().accepted_by_name == merchant.name
    shown = desk.get(reverse("console-contract", args=[version.public_id])).content.decode()
    assert "$0.50 per task" in shown
    assert version.sha256 in shown
    version.refresh_from_db()
    accept(acme, version)
    offering.leave(actor=actor, version=version, organization=acme, at=timezone.now())
    shown = desk.get(reverse("console-contract", args=[version.public_id])).content.decode()
    assert re.search(r"Acme</strong>.*?Ended, ", shown, re.DOTALL)
    dearer = {"terms": json.dumps(terms(unit={"price_micros": 2 * PRICE}))}
    desk.post(reverse("console-contract-amend", args=[version.public_id]), dearer)
    desk.post(reverse("console-contract-withdraw", args=[version.public_id]))
    states = dict(ContractVersion.objects.values_list("number", "state"))
    assert states == {1: "withdrawn", 2: "draft"}


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"terms": "{"}, "Enter a valid JSON."),
        ({"terms": json.dumps(terms(shares=[{"to": "seller", "bps": 1}]))}, "these add up to 1."),
        ({"buyer": "org_nobody"}, "There is no such organization."),
        ({"seller": "org_nobody"}, "Select a valid choice."),
    ],
)
def test_what_is_wrong_is_said_beside_what_was_typed(desk: Client, differs: dict[str, str], said: str) -> None:
    seller, _ = make_seller()
    answer = desk.post(reverse("console-contract-new"), typed(seller) | differs)
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert not ContractVersion.objects.exists()


def test_a_capacity_manager_approves_what_a_supplier_submitted(desk: Client) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    version = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), at=at)
    offering.offer(actor=merchant, version=version, at=at)
    assert "Waiting for approval" in desk.get(reverse("console-contracts")).content.decode()
    assert "Approve" in desk.get(reverse("console-contract", args=[version.public_id])).content.decode()
    assert desk.post(reverse("console-contract-offer", args=[version.public_id])).status_code == 302
    assert list(offering.catalogue()) == [version]


def test_a_capacity_manager_offers_what_the_operator_itself_sells(desk: Client, carol: User) -> None:
    seller, _ = make_seller("Operator")
    Membership.objects.create(organization=seller, user=carol, role="admin")
    arbiter = {"name": "Court", "organization": None, "public_key": "ab" * 32}
    desk.post(
        reverse("console-contract-new"), typed(seller, disputes={"decided_by": "third_party", "arbiter": arbiter})
    )
    version = ContractVersion.objects.get()
    offer = reverse("console-contract-offer", args=[version.public_id])
    assert offer in desk.get(reverse("console-contract", args=[version.public_id])).content.decode()
    assert desk.post(offer).status_code == 302
    assert list(offering.catalogue()) == [version]


def test_a_capacity_manager_does_not_agree_for_a_supplier_to_what_its_customer_proposes(
    desk: Client, acme: Organization, actor: Actor
) -> None:
    seller, merchant = make_seller()
    at = timezone.now()
    first = offering.draft(actor=merchant, seller=seller, title="Frames", terms=terms(), buyer=acme, at=at)
    cheaper = terms(unit={"price_micros": 1})
    asked = offering.amend(actor=actor, contract=first.contract, terms=cheaper, side=Side.BUYER, at=at)
    desk.post(reverse("console-contract-offer", args=[asked.public_id]))
    asked.refresh_from_db()
    assert (asked.state, [one.side for one in asked.acceptances.all()]) == ("draft", ["buyer"])


def test_a_capacity_manager_says_what_unpaid_work_of_a_supplier_may_cost(desk: Client) -> None:
    seller, _ = make_seller()
    page = reverse("console-supplier", args=[seller.public_id])
    assert "$0.00 of $1,000.00" in desk.get(page).content.decode()
    path = reverse("console-unpaid-limit", args=[seller.public_id])
    asked = {"currency": "USD", "unpaid_micros": "25.50", "reason": "New here"}
    assert desk.post(path, asked | {"unpaid_micros": "-1"}).status_code == 422
    assert desk.post(path, asked).status_code == 302
    assert sellers.limit_micros(seller, "USD") == 25_500_000
    assert AuditEntry.objects.get(verb="seller_limit.change").after["reason"] == "New here"
    assert "$0.00 of $25.50" in desk.get(page).content.decode()
    desk.post(path, asked | {"unpaid_micros": ""})
    assert sellers.limit_micros(seller, "USD") == sellers.DEFAULT_MICROS


def paid(acme: Organization, project: Project, actor: Actor) -> Claim:
    """A claim that its customer accepted, and paid."""
    claim = make_deal(acme, **BY_CUSTOMER).claim(project, "frame 1")
    answering.accept(actor=actor, claim=claim, at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=10)
    return claim


def test_a_dispute_is_decided_once_by_somebody_apart(
    desk: Client, carol: User, acme: Organization, project: Project, actor: Actor
) -> None:
    claim = paid(acme, project, actor)
    dispute = disputing.open(
        actor=actor, claim=claim, side=Side.BUYER, reason="wrong_result", text="It is black", at=timezone.now()
    )
    path = reverse("console-claim-dispute", args=[dispute.public_id])
    assert "It is black" in desk.get(path).content.decode()
    own = Membership.objects.create(organization=acme, user=carol, role="viewer")
    refused = desk.post(path, {"due_bps": "40", "note": "half black"})
    assert "somebody else has to decide" in refused.content.decode()
    own.delete()
    assert desk.post(path, {"due_bps": "40", "note": "half black"}).status_code == 302
    found = Claim.objects.get(pk=claim.pk)
    assert (found.state, found.paid_micros, found.reversed_micros) == ("reversed", PRICE, PRICE * 6 // 10)
    again = desk.post(path, {"due_bps": "100", "note": "no"})
    assert "decided already" in again.content.decode()
    assert Claim.objects.get(pk=claim.pk).reversed_micros == PRICE * 6 // 10


def test_nobody_takes_back_for_the_operator_what_their_own_organization_paid(
    desk: Client, carol: User, acme: Organization, project: Project, actor: Actor
) -> None:
    claim = paid(acme, project, actor)
    own = Membership.objects.create(organization=acme, user=carol, role="viewer")
    path, why = reverse("console-claim-reverse", args=[claim.public_id]), {"reason": "Wrong in all"}
    assert "somebody else has to decide" in desk.post(path, why).content.decode()
    assert Claim.objects.get(pk=claim.pk).reversed_micros == 0
    own.delete()
    assert desk.post(path, why).status_code == 302
    assert Claim.objects.get(pk=claim.pk).reversed_micros == PRICE


def test_the_list_shows_what_each_version_leaves(
    desk: Client, acme: Organization, project: Project, actor: Actor, django_assert_max_num_queries: Any
) -> None:
    deal = make_deal(acme, **BY_CUSTOMER)
    claim = deal.claim(project, "frame 1")
    answering.accept(actor=actor, claim=claim, at=timezone.now())
    sweeping.advance(at=timezone.now(), limit=10)
    with django_assert_max_num_queries(15):
        page = desk.get(reverse("console-contracts")).content.decode()
    assert deal.version.contract.title in page
    assert "$0.50" in page
    taken = desk.post(reverse("console-claim-reverse", args=[claim.public_id]), {"reason": "Wrong in all"})
    assert taken.status_code == 302
    assert Claim.objects.get(pk=claim.pk).state == "reversed"
