"""Prices with tiers and commitments through the API, and the proof of what they change."""

from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from billing import adjusting, commitments
from billing.invoicing import issuing
from billing.models import Invoice
from marketplace.models import Organization
from tests.billing.invoicing import APRIL, MAY, use
from tests.billing.makers import HOUR, NOON, pay_in
from tests.billing.pricing import SKU, TIERS, committed, in_force, item, person, tiered
from tests.conftest import Fleet
from tests.marketplace.api.program import Program
from tests.marketplace.api.tenant import Tenant
from tests.marketplace.invoices.conftest import leave_little_credit, seller

__all__ = ["seller"]


def test_an_offer_says_its_tiers_and_its_minimum(program: Program, fleet: Fleet) -> None:
    now = timezone.now()
    said = item(fleet.h200.sku, rows=TIERS, model="graduated", minimum_micros=100_000_000)
    in_force(said, begins=now + timedelta(seconds=2))
    before = program.get("offers/h200-narvik").json()["price"]
    assert (before["model"], before["tiers"], before["minimum_per_month"]) == ("flat", [], None)
    with time_machine.travel(now + timedelta(seconds=3)):
        price = program.get("offers/h200-narvik").json()["price"]
    assert price == {
        "amount": "2.500000", "currency": "USD", "unit": "gpu_hour", "model": "graduated",
        "minimum_per_month": "100.000000",
        "tiers": [
            {"from_unit_hours": 0, "up_to_unit_hours": 100, "amount": "2.500000"},
            {"from_unit_hours": 100, "up_to_unit_hours": 1000, "amount": "2.000000"},
            {"from_unit_hours": 1000, "up_to_unit_hours": None, "amount": "1.500000"},
        ],
    }  # fmt: skip


def test_commitments_are_listed_with_what_is_drawn(program: Program, acme: Organization) -> None:
    price = in_force(item(name="H100"), begins=NOON - HOUR)[SKU]
    made = committed(acme, amount=100)
    committed(acme, starts_at=MAY, agreed=False)
    use(acme, begin=APRIL, hours=30, price=price, quantity=1)
    adjusting.post_due(at=APRIL + 40 * HOUR)
    (row,) = program.get("commitments").json()["data"]
    assert row == {
        "id": made.public_id, "state": "agreed", "kind": "hours", "currency": "USD", "committed": "200.000000",
        "committed_unit_hours": 100, "drawn": "60.000000", "drawn_unit_milliseconds": 30 * 3_600_000,
        "left": "140.000000", "left_over": "0.000000", "discount_bps": 2000, "starts_at": "2026-04-01T00:00:00Z",
        "ends_at": "2026-05-01T00:00:00Z",
        "prices": [{"name": "H100", "sku": SKU, "unit": "gpu_hour", "amount": "2.000000", "currency": "USD",
                    "list_amount": "2.500000"}],
    }  # fmt: skip


def test_a_strangers_commitments_are_not_seen(program: Program, acme: Organization) -> None:
    stranger = Organization.objects.create(name="Stranger")
    in_force(item(), begins=NOON - HOUR)
    committed(stranger)
    assert program.get("commitments").json()["data"] == []
    assert program.get(f"commitments?organization={stranger.public_id}").status_code == 404


@pytest.mark.parametrize("verb", ["accept", "decline"])
def test_an_offer_is_answered_once_however_often_its_answer_was_lost(whole: Tenant, verb: str) -> None:
    owner, path = whole.programs["owner"], f"commitments/{whole.ids['commitment']}/{verb}"
    first, again = owner.post(path, {}, key="k"), owner.post(path, {}, key="k")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert owner.post(path, {}, key="another").status_code == 409


@pytest.mark.usefixtures("seller")
def test_the_proof_shows_the_tiers_behind_a_line(program: Program, acme: Organization) -> None:
    pay_in(acme, 100_000_000)
    leave_little_credit(acme)
    use(acme, begin=NOON, hours=150, price=tiered(name="H100"), quantity=1)
    issuing.issue_due(at=APRIL + 2 * HOUR)
    proof = program.get(f"invoices/{Invoice.objects.get().public_id}/proof").json()
    found = next(line for line in proof["data"] if line["adjustment"])
    assert found["agrees"] is True
    assert {name: found["adjustment"][name] for name in ("listed", "charged", "amount", "commitment")} == {
        "listed": "350.000000", "charged": "375.000000", "amount": "-25.000000", "commitment": None,
    }  # fmt: skip
    assert [tier["unit_milliseconds"] for tier in found["adjustment"]["tiers"]] == [360_000_000, 180_000_000]


def test_a_proposal_is_nobodys_business_yet(program: Program, acme: Organization) -> None:
    in_force(item(), begins=NOON - HOUR)
    made = committed(acme, agreed=False)
    assert program.get("commitments").json()["data"] == []
    commitments.agree(commitment=made, by=person("bob"), at=NOON)
    assert len(program.get("commitments").json()["data"]) == 1
