"""A price has a beginning, never changes, and never reaches back."""

from datetime import timedelta

import pytest
from django.db import IntegrityError

from billing import prices
from billing.errors import PriceAlreadyPublished, RetroactivePrice
from billing.models import PriceVersion
from tests.billing.makers import HOUR, NOON

pytestmark = pytest.mark.django_db


def publish(micros, *, at=NOON, effective_from=None, sku="ofr_1/on_demand", currency="USD"):
    return prices.publish(
        sku=sku,
        currency=currency,
        micros_per_unit_hour=micros,
        effective_from=effective_from or at,
        by="operator@example.com",
        at=at,
    )


def test_the_price_in_force_is_the_latest_that_has_begun():
    publish(100)
    publish(200, effective_from=NOON + HOUR)
    asked = {"skus": ["ofr_1/on_demand"], "currency": "USD"}
    assert prices.current(**asked, at=NOON - timedelta(microseconds=1)) == {}
    assert prices.current(**asked, at=NOON)["ofr_1/on_demand"].micros_per_unit_hour == 100
    assert prices.current(**asked, at=NOON + HOUR)["ofr_1/on_demand"].micros_per_unit_hour == 200


def test_many_prices_are_one_question(django_assert_num_queries):
    for number in range(5):
        publish(100 + number, sku=f"ofr_{number}/on_demand")
        publish(200 + number, sku=f"ofr_{number}/on_demand", effective_from=NOON + HOUR)
    publish(7, currency="EUR", sku="ofr_1/on_demand")
    skus = [f"ofr_{number}/on_demand" for number in range(6)]
    with django_assert_num_queries(1):
        found = prices.current(skus=skus, currency="USD", at=NOON)
    assert {sku: price.micros_per_unit_hour for sku, price in found.items()} == {
        f"ofr_{number}/on_demand": 100 + number for number in range(5)
    }


def test_history_shows_the_newest_first():
    publish(100)
    publish(200, effective_from=NOON + HOUR)
    assert [price.micros_per_unit_hour for price in prices.history(sku="ofr_1/on_demand")] == [200, 100]


def test_publishing_the_same_price_again_changes_nothing_however_late():
    first = publish(100)
    assert publish(100, at=NOON + HOUR, effective_from=NOON).pk == first.pk


def test_another_price_for_the_same_moment_is_refused():
    publish(100)
    with pytest.raises(PriceAlreadyPublished):
        publish(101)


def test_no_price_can_be_published_for_the_past():
    with pytest.raises(RetroactivePrice):
        publish(100, at=NOON, effective_from=NOON - timedelta(microseconds=1))


@pytest.mark.parametrize(
    "change",
    [
        {"effective_from": NOON - HOUR},
        {"micros_per_unit_hour": 0},
        {"micros_per_unit_hour": -1},
        {"currency": "usd"},
        {"effective_from": NOON + HOUR},
    ],
)
def test_the_database_refuses_a_price_that_breaks_the_rules(change):
    publish(100, effective_from=NOON + HOUR)
    ordinary = {
        "sku": "ofr_1/on_demand",
        "currency": "USD",
        "micros_per_unit_hour": 100,
        "effective_from": NOON,
        "published_at": NOON,
        "published_by": "operator@example.com",
    }
    with pytest.raises(IntegrityError, match="price_"):
        PriceVersion.objects.create(**(ordinary | change))
