"""A scheduled list is withdrawn by two people before its moment; then it is as if it had never been scheduled."""

from functools import partial
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.utils import IntegrityError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import books, price_lists, price_withdrawals, prices
from billing.errors import (
    AlreadyDecided,
    AlreadyProposed,
    KeyReused,
    PriceAlreadyHolds,
    PriceListMoved,
    SecondPersonNeeded,
)
from billing.models import PriceList, PriceVersion
from billing.price_lists import Phase
from tests.billing.makers import HOUR, NOON, USD, at_the_same_moment, behind, make_organization, make_price, start
from tests.billing.pricing import SKU, approved, person
from tests.billing.test_scheduled_lists import DAY, costs, said, schedule

pytestmark = pytest.mark.django_db
ANN, BOB = "ann", "bob"


def proposed(made, *, by=ANN, key=None, reason="Wrong site", at=NOON):
    return price_withdrawals.propose(price_list=made, reason=reason, by=person(by), key=key or uuid4(), at=at)


def withdrawn(made, *, at=NOON):
    return price_withdrawals.approve(
        withdrawal=proposed(made, at=at), by=person(BOB), name="bob@example.com", at=at
    )  # fmt: skip


def test_it_never_holds_and_its_moment_is_free_again():
    make_price(micros_per_unit_hour=10 * USD)
    made, _ = schedule(said(8), said(3, "new"), begins=NOON + 10 * DAY)
    assert withdrawn(made) == []
    made.refresh_from_db()
    assert (made.state, price_lists.phases([made], at=NOON + 11 * DAY)) == ("withdrawn", {made.pk: Phase.WITHDRAWN})
    assert costs(NOON + 11 * DAY) == 10
    assert prices.current(skus=["new"], currency="USD", at=NOON + 11 * DAY) == {}
    assert list(prices.history(sku="new")) == []
    assert schedule(said(7), begins=NOON + 10 * DAY)[1] == [(SKU, 7, NOON + 10 * DAY)]
    assert costs(NOON + 10 * DAY) == 7
    assert books.check(at=NOON + 40 * DAY) == []


def test_a_later_list_still_holds_with_all_that_it_says():
    make_price(micros_per_unit_hour=10 * USD)
    early, _ = schedule(said(8), begins=NOON + 10 * DAY)
    late, then = schedule(said(8), said(5, "new"), begins=NOON + 30 * DAY)
    assert then == [("new", 5, NOON + 30 * DAY)]
    again = [(one.sku, one.micros_per_unit_hour // USD, one.price_list) for one in withdrawn(early)]
    assert again == [(SKU, 8, late)]
    assert [costs(NOON + days * DAY) for days in (10, 29, 30)] == [10, 10, 8]
    assert books.check(at=NOON + 40 * DAY) == []


def test_what_a_later_list_had_to_say_again_goes_with_it_so_that_no_tiers_begin_anew():
    first = make_price(micros_per_unit_hour=10 * USD)
    schedule(said(10), begins=NOON + 30 * DAY)
    early, then = schedule(said(8), begins=NOON + 10 * DAY)
    assert then == [(SKU, 8, NOON + 10 * DAY), (SKU, 10, NOON + 30 * DAY)]
    withdrawn(early)
    assert prices.current(skus=[SKU], currency="USD", at=NOON + 31 * DAY) == {SKU: first}
    assert books.check(at=NOON + 40 * DAY) == []


def test_it_takes_two_people_and_says_why():
    made, _ = schedule(said(8), begins=NOON + 10 * DAY)
    key = uuid4()
    asked = proposed(made, key=key)
    assert proposed(made, key=key) == asked
    with pytest.raises(KeyReused):
        proposed(made, key=key, reason="Another")
    with pytest.raises(AlreadyProposed):
        proposed(made)
    with pytest.raises(SecondPersonNeeded):
        price_withdrawals.approve(withdrawal=asked, by=person(ANN), name="ann@example.com", at=NOON)
    price_withdrawals.decline(withdrawal=asked, by=person(ANN), at=NOON)
    with pytest.raises(AlreadyDecided):
        price_withdrawals.approve(withdrawal=asked, by=person(BOB), name="bob@example.com", at=NOON)
    assert costs(NOON + 11 * DAY) == 8
    with pytest.raises(IntegrityError, match="says_why"), transaction.atomic():
        proposed(made, reason="")


def test_what_is_in_force_or_in_a_minute_will_be_is_not_withdrawn():
    made, _ = schedule(said(8), begins=NOON + DAY)
    asked = proposed(made)
    for late in (NOON + DAY - HOUR / 60, NOON + DAY, NOON + 2 * DAY):
        with pytest.raises(PriceAlreadyHolds):
            price_withdrawals.approve(withdrawal=asked, by=person(BOB), name="bob@example.com", at=late)
    asked.refresh_from_db()
    assert asked.state == "proposed"
    price_withdrawals.decline(withdrawal=asked, by=person(BOB), at=NOON + 2 * DAY)
    with pytest.raises(PriceAlreadyHolds):
        proposed(made, at=NOON + 2 * DAY)
    assert costs(NOON + 2 * DAY) == 8


def test_what_is_not_scheduled_needs_no_second_person_and_is_refused_here():
    with pytest.raises(PriceListMoved):
        proposed(approved(said(8)))
    made, _ = schedule(said(8), begins=NOON + DAY)
    withdrawn(made)
    with pytest.raises(PriceListMoved):
        proposed(made)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing_pricelist SET state = 'withdrawn', effective_from = NULL",
        "UPDATE billing_priceversion SET micros_per_unit_hour = 1",
        "UPDATE billing_priceversion SET withdrawn_at = NULL",
        "UPDATE billing_priceversion SET withdrawn_at = effective_from",
        "UPDATE billing_priceversion SET withdrawn_at = published_at, name = 'x'",
        "DELETE FROM billing_priceversion",
    ],
)
def test_the_database_lets_nobody_do_it_alone_or_afterwards(change):
    schedule(said(8), begins=NOON + DAY)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)


def test_the_audit_finds_use_at_a_price_that_was_withdrawn():
    made, _ = schedule(said(8), begins=NOON + DAY)
    withdrawn(made)
    start(make_organization(), price_version=PriceVersion.objects.get(price_list=made), at=NOON + DAY)
    assert "price_that_was_withdrawn_never_held" in [found.rule for found in books.check(at=NOON + DAY)]


@given(lists=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 3), min_size=2, max_size=2), st.booleans()),
                      min_size=1, max_size=5, unique_by=lambda one: one[0]))  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_withdrawn_the_others_hold_as_if_it_had_never_been(lists):
    with transaction.atomic():
        for day, figures, goes in lists:
            content = [said(dollars, sku) for sku, dollars in zip(("a", "b"), figures, strict=True) if dollars]
            made, _ = schedule(*(content or [said(1, "c")]), begins=NOON + day * DAY)
            if goes:
                withdrawn(made)
        known = {}
        for day, figures, goes in sorted(lists):
            if not goes:
                known |= {sku: dollars for sku, dollars in zip(("a", "b"), figures, strict=True) if dollars}
            assert {sku: costs(NOON + day * DAY, sku) for sku in known} == known
        assert books.check(at=NOON + 40 * DAY) == []
        transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_of_two_who_propose_at_once_the_second_is_told_of_the_first():
    made, _ = schedule(said(8), begins=NOON + DAY)
    calls = [partial(proposed, made, by=by) for by in (ANN, BOB)]
    assert behind(PriceList.objects.filter(pk=made.pk), *calls) == ["AlreadyProposed", "done"]


def test_what_was_declined_can_be_proposed_again():
    made, _ = schedule(said(8), begins=NOON + DAY)
    price_withdrawals.decline(withdrawal=proposed(made), by=person(BOB), at=NOON)
    assert withdrawn(made) == []
    made.refresh_from_db()
    assert made.state == "withdrawn"


@pytest.mark.django_db(transaction=True)
def test_of_two_who_approve_at_once_one_is_late():
    made, _ = schedule(said(8), begins=NOON + DAY)
    asked = proposed(made)
    people = person(BOB), person("cleo")
    calls = [
        lambda by=by: price_withdrawals.approve(withdrawal=_read(asked), by=by, name="x", at=NOON) for by in people
    ]
    assert at_the_same_moment(*calls) == ["AlreadyDecided", "done"]
    assert PriceVersion.objects.get(price_list=made).withdrawn_at == NOON


def _read(row):
    return type(row).objects.get(pk=row.pk)
