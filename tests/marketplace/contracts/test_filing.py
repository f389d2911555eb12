"""Claims that sellers file: what they may name, and what they may show for it."""

import json
from typing import Any
from unittest.mock import MagicMock

import pytest
from django.utils import timezone

from billing.errors import InsufficientFunds, PaymentsPastDue
from billing.outcomes import escrows
from marketplace import numbers
from marketplace.access import Actor
from marketplace.contracts import claims
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Claim, Organization, Project
from tests.conftest import Fleet
from tests.outcomes import BY_CUSTOMER, PRICE, make_deal, make_work

pytestmark = pytest.mark.django_db


def test_the_result_of_a_task_is_not_filed_beside_its_job(
    acme: Organization, actor: Actor, project: Project, fleet: Fleet
) -> None:
    deal = make_deal(acme, **BY_CUSTOMER)
    job = make_work(deal, project, fleet.h200, actor, tasks=1, at=timezone.now()).job
    with pytest.raises(BadOrder, match="by its job alone") as refused:
        deal.claim(project, f" {job.public_id}/0")
    assert refused.value.field == "subject"
    assert deal.claim(project, "frames/0").subject_key == "frames/0"


def test_a_seller_learns_nothing_of_what_a_customer_has_or_owes(
    acme: Organization, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal, said = make_deal(acme, **BY_CUSTOMER), []
    owes = PaymentsPastDue(owed_micros=77_000_000, currency="USD", number="INV-77")
    lacks = InsufficientFunds(needed_micros=PRICE, available_micros=33_000_000, currency="USD")
    for refusal in (owes, lacks):
        monkeypatch.setattr(escrows, "escrow", MagicMock(side_effect=refusal))
        with pytest.raises(Conflict) as refused:
            deal.claim(project, "frame 1")
        said.append(numbers.said(refused.value))
        assert not Claim.objects.exists()
    assert said[0] == said[1]
    assert "cannot cover" in said[0]
    assert not any(character.isdigit() for character in said[0])


def test_what_no_book_can_hold_is_neither_written_into_terms_nor_ordered(acme: Organization) -> None:
    unit = {"name": "token", "per": 1, "price_micros": 10**9, "most": 10**9}
    kept: dict[str, Any] = {"kind": "per_unit", "measured": {"kind": "output", "path": "out/units.json"}}
    with pytest.raises(BadOrder) as refused:
        make_deal(acme, **kept, unit=unit | {"most": 10**9 + 1})
    assert refused.value.field == "unit/most"
    for cap in (None, {"period": "month", "micros": PRICE}):
        version_id = make_deal(acme, **kept, unit=unit, cap=cap).version.public_id
        claims.check(version_id=version_id, organization=acme, tasks=1)
        with pytest.raises(BadOrder, match="fewer at once"):
            claims.check(version_id=version_id, organization=acme, tasks=2)


def test_evidence_that_is_not_the_same_for_everybody_is_refused(acme: Organization, project: Project) -> None:
    deal = make_deal(acme, **BY_CUSTOMER)
    for wrong in ("1e400", '"\\ud800"', str(2**53 + 1), "1e22"):
        with pytest.raises(BadOrder) as refused:
            deal.claim(project, "frame 1", evidence={"result": json.loads(wrong)})
        assert refused.value.field == "evidence"
    assert deal.claim(project, "frame 1", evidence={"result": 0.25, "names": {"é": 1}}).evidence["result"] == 0.25
