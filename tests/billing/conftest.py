import pytest

from tests.billing.makers import USD, make_organization


@pytest.fixture
def acme(db):
    """A customer with ten dollars of credit and five in cash."""
    return make_organization(promo=10 * USD, cash=5 * USD)
