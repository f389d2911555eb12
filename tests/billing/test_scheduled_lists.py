"""Lists that are scheduled out of order: each holds from its moment on with all that it says, or the books find it."""

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, price_lists, prices
from billing.models import PriceList, PriceVersion
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, make_price
from tests.billing.pricing import SKU, approved, item

pytestmark = pytest.mark.django_db
DAY = 24 * HOUR
RULE = "price_list_holds_from_its_moment_on"


def said(dollars, sku=SKU):
    return item(sku, rows=((0, None, dollars * USD),))


def schedule(*content, begins):
    made = approved(*content)
    published = price_lists.schedule(price_list=made, effective_from=begins, by="ann@example.com", at=NOON)
    return made, [(one.sku, one.micros_per_unit_hour // USD, one.effective_from) for one in published]


def costs(at, sku=SKU):
    return prices.current(skus=[sku], currency="USD", at=at)[sku].micros_per_unit_hour // USD


def test_a_list_holds_although_an_earlier_one_was_scheduled_after_it():
    make_price(micros_per_unit_hour=10 * USD)
    late, first = schedule(said(10), said(3, "new"), begins=NOON + 30 * DAY)
    early, then = schedule(said(8), begins=NOON + 10 * DAY)
    assert first == [("new", 3, NOON + 30 * DAY)]
    assert then == [(SKU, 8, NOON + 10 * DAY), (SKU, 10, NOON + 30 * DAY)]
    assert [costs(NOON + days * DAY) for days in (9, 10, 29, 30)] == [10, 8, 8, 10]
    again = PriceVersion.objects.get(sku=SKU, effective_from=NOON + 30 * DAY)
    assert (again.price_list, again.published_at) == (late, NOON)
    phases = price_lists.phases([early, late], at=NOON + 30 * DAY)
    assert phases == {early.pk: "superseded", late.pk: "in_force"}
    assert books.check(at=NOON + 40 * DAY) == []


def test_what_a_later_list_says_nothing_of_stays_as_the_earlier_one_says():
    make_price(micros_per_unit_hour=10 * USD)
    schedule(said(3, "new"), begins=NOON + 30 * DAY)
    assert schedule(said(8), begins=NOON + 10 * DAY)[1] == [(SKU, 8, NOON + 10 * DAY)]
    assert costs(NOON + 40 * DAY) == 8


def test_a_version_that_the_later_list_has_already_is_not_published_again():
    make_price(micros_per_unit_hour=10 * USD)
    schedule(said(9), begins=NOON + 30 * DAY)
    assert schedule(said(8), begins=NOON + 10 * DAY)[1] == [(SKU, 8, NOON + 10 * DAY)]
    assert costs(NOON + 30 * DAY) == 9


@given(lists=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 3), min_size=2, max_size=2)),
                      min_size=1, max_size=5, unique_by=lambda one: one[0]))  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_whichever_order_lists_are_scheduled_each_holds_with_all_that_it_says(lists):
    from django.db import transaction

    with transaction.atomic():
        for day, figures in lists:
            content = [said(dollars, sku) for sku, dollars in zip(("a", "b"), figures, strict=True) if dollars]
            schedule(*(content or [said(1, "c")]), begins=NOON + day * DAY)
        known = {}
        for day, figures in sorted(lists):
            known |= {sku: dollars for sku, dollars in zip(("a", "b"), figures, strict=True) if dollars}
            assert {sku: costs(NOON + day * DAY, sku) for sku in known} == known
        assert books.check(at=NOON + 40 * DAY) == []
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM billing_priceversion WHERE sku = 'ofr_1/on_demand' AND price_list_id IS NOT NULL",
        "INSERT INTO billing_priceversion (public_id, sku, name, currency, unit, model, micros_per_unit_hour, tiers,"
        " minimum_micros, is_floating, effective_from, published_at, published_by)"
        " SELECT 'prv_x', sku, name, currency, unit, model, 7, tiers, 0, false,"
        " effective_from + interval '2 days', published_at, '' FROM billing_priceversion WHERE sku = 'same'",
    ],
)
def test_the_audit_finds_a_list_that_does_not_hold(harm):
    make_price(micros_per_unit_hour=10 * USD)
    prices.publish(
        sku="same", currency="USD", micros_per_unit_hour=5 * USD, effective_from=NOON - DAY, by="x", at=NOON - DAY
    )
    schedule(said(8), said(5, "same"), begins=NOON + 10 * DAY)
    assert books.check(at=NOON + DAY) == []
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE billing_priceversion DISABLE TRIGGER USER")
        cursor.execute(harm)
    assert [finding.rule for finding in books.check(at=NOON + DAY)] == [RULE]


@pytest.mark.django_db(transaction=True)
def test_two_lists_that_are_scheduled_at_once_both_hold():
    make_price(micros_per_unit_hour=10 * USD)
    late, early = approved(said(10), said(3, "new")), approved(said(8))

    def publish(made, begins):
        return lambda: price_lists.schedule(price_list=made, effective_from=begins, by="x", at=NOON)

    calls = publish(late, NOON + 30 * DAY), publish(early, NOON + 10 * DAY)
    assert at_the_same_moment(*calls) == ["done", "done"]
    assert (costs(NOON + 10 * DAY), costs(NOON + 30 * DAY)) == (8, 10)
    assert PriceList.objects.filter(state="scheduled").count() == 2
    assert books.check(at=NOON + 40 * DAY) == []
