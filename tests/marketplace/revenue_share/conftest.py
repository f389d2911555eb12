"""Hours of the operator's own GPUs, which Acme may rent for a share of what it earns."""

from datetime import UTC, datetime, timedelta

import pytest

from billing import books, daily
from marketplace.models import Acceptance, Organization, RevenuePeriod
from tests.agreed import share_revenue

NOON = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
DUE = APRIL + timedelta(days=5)
FINAL = APRIL + timedelta(days=10)
USD = 1_000_000
PRICE = 2_490_000  # an hour of one H200
COVERS = {"offers": ["h200-narvik"], "gpus": 8}
METERED = {"true_up": "metered_cost", "minimum_micros": 0, "covers": COVERS, "share_bps": 1_500}


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    at = APRIL + timedelta(days=200)
    daily.sum_up(at=at)
    assert books.check(at=at) == []


@pytest.fixture
def seller(clock, operator):
    """The operator sells its own GPUs for a share of what its customers earn."""
    Organization.objects.filter(pk=operator.pk).update(is_supplier=True)
    operator.refresh_from_db()
    return operator


@pytest.fixture
def agree(seller, acme, alice):
    def agreed(**revenue):
        version = share_revenue(seller, acme, alice, NOON, **METERED | revenue)
        return Acceptance.objects.select_related("version__contract", "organization").get(version=version)

    return agreed


def period(at=NOON):
    return RevenuePeriod.objects.select_related("organization", "version__contract").get(
        starts_at__lte=at, ends_at__gt=at
    )
