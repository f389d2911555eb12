import pytest

from billing.models import Card
from billing.payments import gateway
from billing.test_processor.client import InProcess
from tests.billing.makers import make_organization
from tests.billing.payments.stage import Processor


@pytest.fixture(autouse=True)
def _keys(settings):
    """Keys of the card processor; nothing answers behind them unless a test puts something there."""
    settings.STRIPE_API_KEY = "sk_test_ours"
    settings.STRIPE_WEBHOOK_SECRET = "whsec_ours"
    settings.STRIPE_API_BASE = ""


@pytest.fixture
def customer(db):
    """An organization without any money."""
    return make_organization()


def make_card(organization, *, processor_id="pm_1", is_default=True, **overrides):
    ordinary = {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2030}
    return Card.objects.create(
        organization=organization, processor_id=processor_id, is_default=is_default, **(ordinary | overrides)
    )


@pytest.fixture
def processor(monkeypatch):
    """The bundled processor, to which the real SDK talks in this process."""
    played = Processor()
    monkeypatch.setattr(gateway, "transport", lambda: InProcess(played.world))
    return played
