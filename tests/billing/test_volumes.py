"""The meter of volumes: GiB-hours beside GPU-hours, in one bill and one runway, exact to the micro-unit."""

from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, charging, rating, runway, usage
from billing.errors import PriceAlreadyPublished, UnitMismatch
from billing.models import UNITS, Unit, UsageSpan
from tests.billing.makers import HOUR, NOON, USD, make_price, start, wallet

pytestmark = pytest.mark.django_db

VOLUME = UsageSpan.Meter.VOLUME
MS = timedelta(milliseconds=1)


def storage_price(micros=137):
    return make_price(micros_per_unit_hour=micros, sku=f"storage:sit_{micros}", unit="gib")


def keep(organization, *, resource_id="vol_1", gib=100, price=None, at=NOON):
    return start(
        organization, resource_id=resource_id, quantity=gib, meter=VOLUME, price_version=price or storage_price(), at=at
    )


def test_a_volume_is_charged_for_its_gib_and_milliseconds(acme):
    keep(acme, gib=100)
    span = usage.stop(resource_id="vol_1", meter=VOLUME, at=NOON + 720 * HOUR)
    assert span.unit == Unit.GIB
    assert span.charged_micros == 137 * 100 * 720
    assert books.check(at=NOON + 720 * HOUR) == []


def test_every_meter_has_a_unit():
    assert set(UNITS) == set(UsageSpan.Meter)


def test_a_gpu_cannot_be_metered_at_the_price_of_a_gib_nor_the_other_way_round(acme):
    with pytest.raises(UnitMismatch, match="per gib-hour instead of per gpu-hour"):
        start(acme, price_version=storage_price())
    with pytest.raises(UnitMismatch):
        keep(acme, price=make_price())
    assert not UsageSpan.objects.exists()


def test_the_same_price_for_another_unit_is_another_price():
    make_price(sku="storage:sit_1", unit="gib")
    with pytest.raises(PriceAlreadyPublished):
        make_price(sku="storage:sit_1", unit="gpu")


def test_stopping_one_meter_of_a_resource_leaves_the_other(acme):
    start(acme, resource_id="both_1")
    keep(acme, resource_id="both_1")
    usage.stop(resource_id="both_1", at=NOON + HOUR)
    assert [span.meter for span in UsageSpan.objects.filter(ended_at=None)] == [VOLUME]


def test_a_bigger_volume_is_two_spans_that_touch(acme):
    keep(acme, gib=10)
    usage.stop(resource_id="vol_1", meter=VOLUME, at=NOON + HOUR)
    keep(acme, gib=25, at=NOON + HOUR)
    usage.stop(resource_id="vol_1", meter=VOLUME, at=NOON + 3 * HOUR)
    assert sum(span.charged_micros for span in UsageSpan.objects.all()) == 137 * (10 + 2 * 25)
    assert books.check(at=NOON + 3 * HOUR) == []


def test_the_runway_burns_volumes_and_gpus_together(acme):
    start(acme, quantity=2, price_version=make_price(micros_per_unit_hour=USD))
    keep(acme, gib=1000, price=storage_price(500))
    found = runway.refresh(organization=acme, at=NOON)
    assert found.burn_micros_per_hour == 2 * USD + 1000 * 500
    assert books.check(at=NOON) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    volumes=st.lists(
        st.tuples(
            st.integers(min_value=1, max_value=16_384),
            st.integers(min_value=1, max_value=50_000),
            st.lists(st.integers(min_value=0, max_value=10**8), min_size=1, max_size=4).map(sorted),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_volumes_looked_at_whenever_cost_their_gib_times_hours_and_both_calculators_agree(acme, volumes):
    before = wallet(acme)
    spent = 0
    for gib, price, looks in volumes:
        at = UsageSpan.objects.count()
        span = keep(acme, resource_id=f"vol_{at}_{gib}", gib=gib, price=storage_price(price))
        for look in looks:
            charging.charge_span(span=span, through=NOON + look * MS)
        span = usage.stop(resource_id=span.resource_id, meter=VOLUME, at=NOON + looks[-1] * MS)
        exact = Fraction(gib * looks[-1] * price, 3_600_000)
        assert Fraction(-1, 2) < span.charged_micros - exact <= Fraction(1, 2)
        assert span.charged_micros == rating.amount_micros(
            micros_per_unit_hour=price, unit_milliseconds=gib * looks[-1]
        )
        spent += span.charged_micros
    after = wallet(acme)
    assert spent == (before.cash_micros - after.cash_micros) + (before.promo_micros - after.promo_micros) + (
        after.owed_micros - before.owed_micros
    )
    assert books.check(at=NOON + 10**8 * MS) == []
