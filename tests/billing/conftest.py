import pytest

from tests.billing.makers import USD, make_organization, meeting


@pytest.fixture
def acme(db):
    """A customer with ten dollars of credit and five in cash."""
    return make_organization(promo=10 * USD, cash=5 * USD)


@pytest.fixture
def meet(request):
    """Wait until the other thread got here too, once.

    Behind a guard it cannot come, because it waits for us: then go on alone
    after a moment. Without the guard it comes, however slow the machine is.
    """
    return meeting(patience_s=20 if "without" in request.node.name else 0.3)
