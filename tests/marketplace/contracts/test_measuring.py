"""Units of a result, counted from its output; what cannot be counted is not paid."""

import json
from typing import Any

import pytest
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import claims, sweeping
from marketplace.models import Claim, Project
from provisioning import artifacts
from provisioning.agent import manifest
from provisioning.agent.manifest import Entry
from tests.conftest import Fleet
from tests.outcomes import make_deal, make_work

pytestmark = pytest.mark.django_db
UNIT = {"name": "tokens", "per": 1000, "price_micros": 333, "most": 5000}
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("said", "units", "micros"),
    [
        ("1500", 1500, 500),
        (json.dumps({"units": 1500, "model": "m"}), 1500, 500),
        ("0", 0, 0),
        ("99999", 5000, 1665),
        *((wrong, None, 0) for wrong in ("", "1.5", "-1", "true", "[1]", '{"units": "7"}', "NaN", "{", HUGE)),
    ],
)
def test_units_are_counted_from_an_output_and_what_is_no_count_does_not_pass(
    acme: Any, actor: Actor, project: Project, fleet: Fleet, settings: Any, tmp_path: Any,
    said: str, units: int | None, micros: int,
) -> None:  # fmt: skip
    settings.ARTIFACTS = tmp_path
    at = timezone.now()
    data = said.encode()
    file = artifacts.keep(project_id=project.pk, data=data, at=at)
    folder = artifacts.keep(
        project_id=project.pk, at=at,
        data=manifest.written([Entry(path="units.json", sha256=file, size=len(data), mode=0o644)]),
    )  # fmt: skip
    deal = make_deal(acme, kind="per_unit", unit=UNIT, measured={"kind": "output", "path": "units.json"})
    work = make_work(deal, project, fleet.h200, actor, tasks=1, at=at)
    claim = claims.open(task=work.succeeds(0, outputs=folder), at=at)
    assert (claim.units, claim.amount_micros) == (5000, 1665), "until it is counted it may be the most"
    sweeping.advance(at=at, limit=10)
    found = Claim.objects.get(pk=claim.pk)
    if units is None:
        assert found.state == "failed"
    else:
        assert (found.state, found.units, found.amount_micros) == ("verified", units, micros)
        assert found.evidence["units"] == int(json.loads(said)["units"] if "{" in said else said)
