"""Bids that are changed under quotas that were lowered meanwhile: nothing ends by that, and no more is spent."""

import pytest
from django.db import transaction
from django.utils import timezone

from billing import accounts
from marketplace import spot, spot_terms
from marketplace.access import Actor
from marketplace.errors import BudgetExceeded
from marketplace.models import Bid, Project
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Quota, QuotaHold
from tests.conftest import Fleet, order
from tests.marketplace.api.tables import every_row
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db

CENT, USD = 10_000, 1_000_000
SPEND = Quota.Unit.MICROS_PER_HOUR


@pytest.fixture
def bid(actor: Actor, project: Project, fleet: Fleet) -> Bid:
    """Eight H200 for a dollar each."""
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
    )  # fmt: skip
    with transaction.atomic():
        return spot.bid(
            actor=actor, project=project, order=order(fleet.h200, gpus=8), max_price_micros=USD, at=timezone.now()
        )


def change(actor: Actor, bid: Bid, cents: int) -> None:
    spot.change(actor=actor, bid=Bid.objects.get(pk=bid.pk), max_price_micros=cents * CENT, at=timezone.now())


def test_a_bid_is_raised_though_fewer_gpus_are_allowed_by_now(actor: Actor, project: Project, bid: Bid) -> None:
    Quota.objects.update(limit=4)
    change(actor, bid, 150)
    hold = QuotaHold.objects.get()
    assert (hold.gpus, hold.micros_per_hour) == (8, 12 * USD)
    assert quotas.miscounted() == []
    assert accounts.wallet(organization=project.organization).held_micros == 12 * USD * 420 // 3600


def test_a_bid_is_raised_to_no_more_than_may_be_spent_and_lowered_whatever_that_is(
    actor: Actor, project: Project, bid: Bid
) -> None:
    quotas.set_limit(project_id=project.pk, limit=10 * USD, unit=SPEND)
    before = every_row()
    with pytest.raises(QuotaExceeded) as refusal:
        change(actor, bid, 126)
    assert (refusal.value.wanted, refusal.value.held, refusal.value.limit) == (10_080_000, 0, 10 * USD)
    assert every_row() == before
    change(actor, bid, 125)
    quotas.set_limit(project_id=project.pk, limit=2 * USD, unit=SPEND)
    change(actor, bid, 60)
    assert Quota.objects.get(unit=SPEND).held == 480 * CENT
    assert quotas.miscounted() == []


def test_a_budget_counts_the_bid_that_is_changed_once(actor: Actor, project: Project, bid: Bid) -> None:
    budget(project, hour=10 * USD)
    change(actor, bid, 125)
    with pytest.raises(BudgetExceeded):
        change(actor, bid, 126)
