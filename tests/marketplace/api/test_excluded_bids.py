"""A bid that a policy keeps out: refused when it is placed, shown with its reason where the policy came later."""

from typing import Any

import pytest
from django.utils import timezone

from marketplace import spot_terms
from marketplace.models import Bid, Project
from provisioning.models import Instance
from tests.conftest import Fleet
from tests.marketplace.api.program import Program

BID = {"offer": "h200-narvik", "command": ["true"], "max_price": "1"}


@pytest.fixture
def sold(fleet: Fleet) -> Fleet:
    spot_terms.set_terms(offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=500_000)
    return fleet


def rule(program: Program, project: Project, document: dict[str, Any]) -> None:
    assert program.ask("put", f"projects/{project.public_id}/policy", document).status_code == 200


def test_a_bid_that_a_later_policy_excludes_is_shown_with_its_reason(
    program: Program, sold: Fleet, project: Project
) -> None:
    placed = program.post("bids", BID, key="first").json()
    assert (placed["state"], placed["reason"]) == ("waiting", None)
    rule(program, project, {"power_sources": {"deny": ["hydro"]}})
    (row,) = program.get("bids").json()["data"]
    assert row == program.get(f"bids/{placed['id']}").json()
    assert row["state"] == "excluded"
    assert "on a power source that a policy excludes" in row["reason"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_bid_that_a_policy_excludes_is_refused_and_explained(
    program: Program, sold: Fleet, project: Project, dry_run: bool
) -> None:
    rule(program, project, {"countries": {"deny": ["NO"]}})
    refused = program.post(f"bids{'?dry_run=true' if dry_run else ''}", BID, key="second")
    assert (refused.status_code, refused.json()["code"]) == (409, "policy_excludes")
    assert not Bid.objects.exists()
    assert not Instance.objects.exists()
    if not dry_run:
        decision = program.get(f"placements/{refused.json()['placement']}").json()
        assert [row["rule"] for row in decision["rejected"]] == ["countries"]
