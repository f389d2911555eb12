"""Programs of the cast."""

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
