"""Programs of the cast, and a whole tenant."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from marketplace.models import Organization, User
from tests.conftest import Fleet, make_token, run_fleet
from tests.marketplace.api.program import Program
from tests.marketplace.api.tenant import Tenant, make_tenant
from tests.standing import standing


@pytest.fixture
def program(alice: User, acme: Organization, fleet: Fleet) -> Program:
    """Alice's, with every scope."""
    return Program(make_token(alice, acme))


@pytest.fixture
def nobody() -> Program:
    return Program()


@pytest.fixture(autouse=True)
def _cards(settings: Any) -> None:
    """Cards can be used; nothing answers behind the keys."""
    settings.STRIPE_API_KEY, settings.STRIPE_WEBHOOK_SECRET = "sk_test_ours", "whsec_ours"


@standing
def whole(fleet: Fleet) -> Tenant:
    """A tenant with one of everything, and the ids that the table of routes names beside its own."""
    tenant = make_tenant("acme", fleet, partial(run_fleet, fleet))
    return replace(tenant, ids=tenant.ids | {"offer": fleet.h200.public_id, "task": "0"})
