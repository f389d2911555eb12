"""Programs of the cast."""

from typing import Any

import pytest

from marketplace.models import Organization, User
from tests.conftest import Fleet, make_token
from tests.marketplace.api.program import Program


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
