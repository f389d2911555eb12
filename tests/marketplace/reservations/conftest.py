"""Blocks of H200 for sale, and Acme who buys them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from marketplace import reservations, spot_terms
from marketplace.access import Actor, person
from marketplace.models import Offer, Project, Reservation, User
from provisioning import quotas
from provisioning.calendar import hour_of
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet

CENT = 10_000
INTERVAL_S, NOTICE_S = 60, 30


@pytest.fixture
def offer(fleet: Fleet) -> Offer:
    """An offer of 16 GPUs, of which blocks are sold at 2 dollars a GPU-hour."""
    sell_blocks(fleet.h200)
    return fleet.h200


@pytest.fixture
def acme_buys(actor: Actor, project: Project, offer: Offer) -> Buyer:
    return Buyer(actor, project, offer, hour_of(timezone.now()) + timedelta(hours=1))


@pytest.fixture
def other_buys(charlie: User, acme_buys: Buyer) -> Buyer:
    """Another customer, on the same clock."""
    project = Project.objects.select_related("organization").get(organization__name="Other")
    quotas.set_limit(project_id=project.pk, limit=100)
    return Buyer(person(charlie), project, acme_buys.offer, acme_buys.noon)


@pytest.fixture
def clock(acme_buys: Buyer) -> Iterator[Any]:
    """The second hour after noon, and a hand that moves it."""
    spot_terms.set_terms(
        offer=acme_buys.offer, by="test", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S, hysteresis_bp=1000, rise_bp=10_000,
    )  # fmt: skip
    quotas.set_limit(project_id=acme_buys.project.pk, limit=1000)
    with time_machine.travel(acme_buys.at(2), tick=False) as hand:
        yield hand


@pytest.fixture
def lent(other_buys: Buyer, clock: Any) -> Reservation:
    """All sixteen GPUs are Other's for four hours, stand idle, and are lent."""
    reservation = other_buys.buy(16, 2, 6, at=1.5)
    other_buys.go_to(2)
    reservations.lend(actor=other_buys.actor, reservation=reservation, is_lent=True, at=timezone.now())
    reservation.refresh_from_db()
    assert reservation.state == "active"
    return reservation
