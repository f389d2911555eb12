"""Blocks of H200 for sale, and Acme who buys them."""

from datetime import timedelta

import pytest
from django.utils import timezone

from marketplace.access import Actor, person
from marketplace.models import Offer, Project, User
from provisioning import quotas
from provisioning.calendar import hour_of
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet


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
