"""A gang that is larger than any place of an offer: one problem at every door of the API, and nothing is made."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace import spot_terms
from tests.conftest import Fleet
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.api.tables import every_row

GANG: dict[str, Any] = {
    "offer": "h200-narvik", "command": ["true"], "gpus": 8, "replicas": 2,
    "placement": {"level": "node", "required": True},
}  # fmt: skip


@pytest.mark.parametrize("path", ["instances", "instances?dry_run=true", "bids", "bids?dry_run=true", "waits"])
def test_it_is_refused_by_its_rule_at_every_door(program: Program, fleet: Fleet, path: str) -> None:
    spot_terms.set_terms(offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=500_000)
    own = {
        "bids": {"max_price": "1"},
        "waits": {"max_price": "3", "until": (timezone.now() + timedelta(hours=1)).isoformat()},
    }
    before = every_row()
    found = problem_of(program.post(path, GANG | own.get(path.partition("?")[0], {}), key="a key"), 409, "never_fits")
    assert "2 × 8 GPUs are larger than one node of H200 in Narvik" in found["detail"]
    assert found["retry"] == "new_request"
    after = every_row()
    # Why it did not fit is kept for whoever ordered it.
    assert {table for table in after if after[table] != before[table]} <= {"provisioning_placementdecision"}
