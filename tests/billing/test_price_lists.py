"""Price lists: from a draft to prices in force, by two people, never for the past and never changed."""

import json
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction

from billing import books, floating, price_lists, prices
from billing.errors import (
    BadPrice,
    KeyReused,
    PriceAlreadyPublished,
    PriceListMoved,
    RetroactivePrice,
    SecondPersonNeeded,
)
from billing.models import PriceList, PriceListItem, PriceVersion, SimulatedBill
from billing.price_lists import Phase
from tests.billing.makers import HOUR, NOON, PRICE, USD, make_organization, make_price, start
from tests.billing.pricing import SKU, TIERS, approved, committed, drafted, in_force, item, person, tiered, used

pytestmark = pytest.mark.django_db
DAY = 24 * HOUR


def schedule(made, *, begins=NOON + HOUR, at=NOON):
    return price_lists.schedule(price_list=made, effective_from=begins, by="ann@example.com", at=at)


def test_a_draft_begins_as_a_copy_of_what_is_in_force():
    tiered()
    make_price(sku="site/storage", unit="gib", micros_per_unit_hour=100)
    floating.open_series(sku="ofr_1/spot", currency="USD", micros_per_unit_hour=9, by="x", at=NOON - HOUR)
    made = price_lists.draft(currency="USD", by=person(), key=uuid4(), at=NOON, names={"site/storage": "Storage"})
    said = {row.name: (row.model, row.tiers, row.unit) for row in price_lists.items(made)}
    assert said == {
        SKU: ("graduated", [[0, 2_500_000], [100, 2_000_000], [1000, 1_500_000]], "gpu"),
        "Storage": ("flat", [], "gib"),
    }
    assert made.number == 2
    assert price_lists.changes(before=price_lists.in_force(currency="USD", at=NOON), after=made) == []


def test_a_list_goes_through_two_people_to_its_day():
    make_price()
    made = drafted(item(rows=TIERS, model="graduated"))
    assert price_lists.phases([made], at=NOON) == {made.pk: Phase.DRAFT}
    price_lists.simulate(price_list=made, at=NOON)
    price_lists.approve(price_list=made, by=person("bob"), at=NOON)
    (published,) = schedule(made)
    assert (published.micros_per_unit_hour, published.price_list, published.effective_from) == (
        2_500_000, made, NOON + HOUR,
    )  # fmt: skip
    assert prices.current(skus=[SKU], currency="USD", at=NOON)[SKU].model == "flat"
    assert prices.current(skus=[SKU], currency="USD", at=NOON + HOUR)[SKU] == published
    assert price_lists.phases([made], at=NOON) == {made.pk: Phase.SCHEDULED}
    assert price_lists.phases([made], at=NOON + HOUR) == {made.pk: Phase.IN_FORCE}
    assert books.check(at=NOON + DAY) == []


def test_a_later_list_supersedes_and_going_back_is_a_list_with_the_earlier_content():
    in_force(item(), begins=NOON - 9 * DAY)
    in_force(item(rows=TIERS, model="graduated"), begins=NOON - DAY)
    first, second = PriceList.objects.order_by("pk")
    assert price_lists.phases([first, second], at=NOON) == {first.pk: Phase.SUPERSEDED, second.pk: Phase.IN_FORCE}
    back = price_lists.draft(currency="USD", by=person(), key=uuid4(), at=NOON, restores=first)
    price_lists.simulate(price_list=back, at=NOON)
    price_lists.approve(price_list=back, by=person("bob"), at=NOON)
    (published,) = schedule(back)
    assert (published.model, published.tiers) == ("flat", [])
    assert back.restores == first


def test_what_does_not_change_keeps_its_version():
    make_price()
    other = make_price(sku="other", micros_per_unit_hour=7)
    made = approved(item(rows=((0, None, 3_000_000),)), item("other", rows=((0, None, 7),)))
    assert [version.sku for version in schedule(made)] == [SKU]
    assert prices.current(skus=["other"], currency="USD", at=NOON + DAY)["other"] == other


def test_a_list_never_begins_in_the_past_or_now():
    made = approved(item())
    for moment in (NOON - HOUR, NOON):
        with pytest.raises(RetroactivePrice):
            schedule(made, begins=moment)
    assert not PriceVersion.objects.exists()
    made.refresh_from_db()
    assert made.state == PriceList.State.APPROVED


def test_two_prices_cannot_begin_at_the_same_moment():
    make_price()
    prices.publish(sku=SKU, currency="USD", micros_per_unit_hour=1, effective_from=NOON + HOUR, by="x", at=NOON)
    made = approved(item(rows=((0, None, 3),)))
    with pytest.raises(PriceAlreadyPublished):
        schedule(made)
    made.refresh_from_db()
    assert made.state == PriceList.State.APPROVED


@pytest.mark.parametrize("name", ["ann", "cleo"])
def test_whoever_drafted_or_edited_a_list_does_not_approve_it(name):
    made = drafted(item())
    price_lists.save(price_list=made, content=[item()], note="", by=person("cleo"))
    price_lists.simulate(price_list=made, at=NOON)
    with pytest.raises(SecondPersonNeeded):
        price_lists.approve(price_list=made, by=person(name), at=NOON)
    made.refresh_from_db()
    assert (made.state, made.approved_by) == (PriceList.State.SIMULATED, None)
    price_lists.approve(price_list=made, by=person("bob"), at=NOON)


def test_the_database_refuses_approval_by_the_author_too():
    made = drafted(item())
    price_lists.simulate(price_list=made, at=NOON)
    with pytest.raises(IntegrityError, match="price_list_needs_a_second_person"), transaction.atomic():
        PriceList.objects.filter(pk=made.pk).update(state="approved", approved_by=person(), approved_at=NOON)


def test_two_lists_cannot_begin_at_the_same_moment():
    schedule(approved(item()))
    with pytest.raises(PriceAlreadyPublished):
        schedule(approved(item("other")))
    assert PriceVersion.objects.count() == 1


def test_only_what_was_simulated_is_approved_and_editing_asks_for_another_simulation():
    made = drafted(item())
    with pytest.raises(PriceListMoved):
        price_lists.approve(price_list=made, by=person("bob"), at=NOON)
    price_lists.simulate(price_list=made, at=NOON)
    price_lists.save(price_list=made, content=[item(rows=((0, None, 9),))], note="", by=person())
    with pytest.raises(PriceListMoved):
        price_lists.approve(price_list=made, by=person("bob"), at=NOON)
    with pytest.raises(PriceListMoved):
        schedule(made)


def test_an_approved_list_is_never_edited_and_the_database_agrees():
    made = approved(item())
    with pytest.raises(PriceListMoved):
        price_lists.save(price_list=made, content=[item(rows=((0, None, 9),))], note="", by=person())
    for change in (
        "UPDATE billing_pricelistitem SET micros_per_unit_hour = 9",
        "DELETE FROM billing_pricelistitem",
        "UPDATE billing_pricelist SET note = 'x'",
        "UPDATE billing_pricelist SET state = 'draft'",
        "DELETE FROM billing_pricelist",
    ):
        with pytest.raises(IntegrityError, match="refused"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(change)
    with pytest.raises(IntegrityError, match="refused"), transaction.atomic():
        PriceListItem.objects.create(price_list=made, sku="x", name="x", micros_per_unit_hour=1)


def test_what_was_scheduled_stays_so():
    made = approved(item())
    schedule(made)
    for move in (
        lambda: price_lists.withdraw(price_list=made),  # not by one person
        lambda: schedule(made, begins=NOON + DAY),
        lambda: price_lists.approve(price_list=made, by=person("cleo"), at=NOON),
    ):
        with pytest.raises(PriceListMoved):
            move()


def test_a_list_can_be_given_up_before_it_is_scheduled():
    made = approved(item())
    price_lists.withdraw(price_list=made)
    assert price_lists.phases([made], at=NOON) == {made.pk: Phase.WITHDRAWN}
    with pytest.raises(PriceListMoved):
        schedule(made)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (item(rows=((0, 10, 5), (20, None, 4)), model="graduated"), "gap"),
        (item(rows=((0, 10, 5), (5, None, 4)), model="volume"), "overlap"),
        (item(rows=TIERS, model="flat"), "flat"),
        (item(model="daily"), "model"),
        (item(unit="kWh"), "model"),
        (item(minimum_micros=1), "minimum"),
        (item(minimum_micros=-10_000), "minimum"),
        (item("spot"), "floats"),
        (item("storage"), "unit"),
    ],
)
def test_what_cannot_be_a_price_is_refused_and_nothing_changes(bad, problem):
    floating.open_series(sku="spot", currency="USD", micros_per_unit_hour=9, by="x", at=NOON - HOUR)
    make_price(sku="storage", unit="gib")
    made = drafted(item("other"))
    with pytest.raises(BadPrice) as refusal:
        price_lists.save(price_list=made, content=[item("fine"), bad], note="", by=person())
    assert refusal.value.problem == problem
    assert [row.sku for row in price_lists.items(made)] == ["other"]


def test_a_thing_is_named_once_and_a_list_names_something():
    made = drafted(item("other"))
    with pytest.raises(BadPrice, match="twice"):
        price_lists.save(price_list=made, content=[item(), item()], note="", by=person())
    empty = price_lists.draft(currency="EUR", by=person(), key=uuid4(), at=NOON)
    price_lists.simulate(price_list=empty, at=NOON)
    with pytest.raises(BadPrice, match="nothing"):
        price_lists.approve(price_list=empty, by=person("bob"), at=NOON)


@pytest.mark.parametrize("tiers", ["[[0, 5], [0, 4]]", "[[1, 5]]", "[[0, 5], [10, 0]]", "[]", "[[0, 6]]"])
def test_the_database_refuses_tiers_that_do_not_hold_together(tiers):
    with pytest.raises(IntegrityError, match="price_tiers_hold_together"), transaction.atomic():
        PriceVersion.objects.create(
            sku="x", currency="USD", micros_per_unit_hour=5, model="volume", tiers=json.loads(tiers),
            effective_from=NOON, published_at=NOON,
        )  # fmt: skip


def test_a_yen_has_no_cents_and_lists_are_of_one_currency():
    made = drafted(item(rows=((0, None, 333_500_000),), minimum_micros=1000 * USD), currency="JPY")
    with pytest.raises(BadPrice, match="minor units"):
        price_lists.save(price_list=made, content=[item(minimum_micros=1_500_000)], note="", by=person())
    make_price()
    assert not price_lists.in_force(currency="JPY", at=NOON)
    assert drafted(currency="USD").number == 1 == made.number


def test_a_draft_is_opened_once_per_key():
    key = uuid4()
    first = price_lists.draft(currency="USD", by=person(), key=key, at=NOON)
    assert price_lists.draft(currency="USD", by=person(), key=key, at=NOON) == first
    with pytest.raises(KeyReused):
        price_lists.draft(currency="EUR", by=person(), key=key, at=NOON)


def test_a_simulation_says_what_each_customer_would_have_paid(django_assert_max_num_queries):
    old = make_price()
    big, small, gone = (make_organization() for _ in range(3))
    at = NOON + 40 * DAY
    used(big, old, begin=at - 10 * DAY, hours=100, quantity=2)
    used(big, old, begin=at - 40 * DAY, hours=11 * 24)  # of which one day lies in the last thirty
    used(small, old, begin=at - DAY, hours=10)
    used(small, old, begin=at - DAY, hours=10, covered_by="rsv_1")
    used(gone, old, begin=at - 39 * DAY, hours=24)
    made = drafted(item(rows=TIERS, model="graduated"), at=at)
    with django_assert_max_num_queries(14):
        price_lists.simulate(price_list=made, at=at)
    rows = SimulatedBill.objects.values_list("organization", "before_micros", "after_micros")
    assert {key: (before, after) for key, before, after in rows} == {
        big.pk: (224 * PRICE, 100 * PRICE + 124 * 2_000_000),
        small.pk: (10 * PRICE, 10 * PRICE),
    }


def test_a_simulation_asks_the_old_tiers_for_what_was_paid_and_leaves_commitments_out():
    old = tiered()
    acme, promised = make_organization(), make_organization()
    committed(promised, months=2)
    at = NOON + 60 * DAY
    used(acme, old, begin=at - 10 * DAY, hours=120)
    used(promised, old, begin=at - 10 * DAY, hours=120)
    made = drafted(item(rows=((0, None, 1_000_000),)), at=at)
    (bill,) = price_lists.simulate(price_list=made, at=at)
    assert (bill.organization, bill.before_micros, bill.after_micros) == (acme, 290 * USD, 120 * USD)


def test_prices_that_float_cannot_have_tiers():
    with pytest.raises(IntegrityError, match="price_that_floats_is_flat"), transaction.atomic():
        PriceVersion.objects.create(
            sku="x", currency="USD", is_floating=True, micros_per_unit_hour=5, model="volume", tiers=[[0, 5]],
            effective_from=NOON, published_at=NOON,
        )  # fmt: skip


def test_a_list_does_not_touch_what_runs(acme):
    old = make_price()
    span = start(acme, price_version=old)
    schedule(approved(item(rows=((0, None, 9_000_000),))))
    span.refresh_from_db()
    assert span.price_version == old
