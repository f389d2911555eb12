"""Claims that sellers file: what they may name, and what they may show for it."""

import json
from typing import Any

import pytest
from django.utils import timezone

from marketplace.access import Actor
from marketplace.contracts import claims
from marketplace.errors import BadOrder
from marketplace.models import Organization, Project
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
