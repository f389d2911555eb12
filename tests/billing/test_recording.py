"""Use that is told in sets: taken up once, all of it or none, and charged like what was measured here."""

from datetime import timedelta

import pytest

from billing import books, charging, floating, recording
from billing.errors import BadUsage
from billing.models import UsageSpan
from billing.recording import Recorded
from tests.billing.makers import HOUR, NOON, PRICE, USD, make_organization, make_price, start, wallet

pytestmark = pytest.mark.django_db
LATER = NOON + 24 * HOUR


@pytest.fixture
def customers(db):
    return [make_organization(cash=100 * USD) for _ in range(3)]


def told(organization, price, *, resource_id="ext_1", begin=NOON, hours=2, **changes):
    ordinary = Recorded(
        organization.pk, resource_id, "trainer", {"market": "on_demand"}, "gpu", 2, price.pk, begin,
        begin + hours * HOUR,
    )  # fmt: skip
    return ordinary._replace(**changes)


def test_use_of_many_is_taken_up_once_and_the_next_sweep_charges_it(customers, django_assert_num_queries):
    price = make_price()
    many = [told(one, price, resource_id=f"ext_{one.pk}_{n}") for one in customers for n in range(50)]
    with django_assert_num_queries(5):  # a savepoint and its end, the accounts, the prices, the spans
        assert recording.record_many(many, at=LATER) == 150
    assert recording.record_many(many, at=LATER) == 0
    assert charging.charge_due(at=LATER) == 150
    assert set(UsageSpan.objects.values_list("charged_micros", flat=True)) == {4 * PRICE}
    assert [wallet(one).owed_micros for one in customers] == [(50 * 10 - 100) * USD] * 3
    assert books.check(at=LATER) == []


def test_a_floating_price_is_that_of_its_time(customers):
    series = floating.open_series(sku="s", currency="USD", micros_per_unit_hour=USD, by="x", at=NOON - HOUR)
    floating.append(series=series, micros_per_unit_hour=3 * USD, at=NOON + HOUR)
    recording.record_many([told(customers[0], series)], at=LATER)
    charging.charge_due(at=LATER)
    assert UsageSpan.objects.get().charged_micros == 2 * (1 + 3) * USD


@pytest.mark.parametrize(
    "change",
    [
        {"ended_at": NOON - HOUR},
        {"ended_at": LATER + HOUR},
        {"quantity": 0},
        {"meter": "volume"},
        {"meter": "light"},
        {"price_version_id": 0},
        {"started_at": NOON - 2 * HOUR},  # before its price
        {"started_at": NOON + timedelta(microseconds=1)},
        {"resource_id": "ext_0", "started_at": NOON + HOUR},  # in the middle of the first
        {"resource_id": "ins_1"},  # which runs here
    ],
)
def test_what_cannot_be_is_named_and_nothing_of_its_set_is_taken_up(customers, change):
    price = make_price()
    start(customers[1], price_version=price)
    good = told(customers[0], price, resource_id="ext_0")
    with pytest.raises(BadUsage) as refused:
        recording.record_many([good, told(customers[0], price, **change)], at=LATER)
    assert refused.value.place == 1
    assert UsageSpan.objects.count() == 1


def test_a_price_of_another_currency_is_not_for_it(customers):
    with pytest.raises(BadUsage):
        recording.record_many([told(customers[0], make_price(currency="EUR"))], at=LATER)


def test_the_same_told_twice_at_once_counts_once_and_told_otherwise_is_refused(customers):
    price = make_price()
    one = told(customers[0], price)
    assert recording.record_many([one, one], at=LATER) == 1
    with pytest.raises(BadUsage):
        recording.record_many([one._replace(quantity=3)], at=LATER)
    assert recording.record_many([], at=LATER) == 0
