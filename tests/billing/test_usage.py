"""A meter opens once, closes once, and never runs twice for the same thing."""

from datetime import timedelta

import pytest
from django.db import DatabaseError, IntegrityError, transaction

from billing import books, usage
from billing.errors import CurrencyMismatch
from billing.models import UsageSpan
from tests.billing.makers import HOUR, NOON, USD, hold_money, make_organization, make_price, start, wallet

pytestmark = pytest.mark.django_db

MS = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=NOON + 100 * HOUR) == []


def stop(*, at, resource_id="ins_1"):
    return usage.stop(resource_id=resource_id, at=at)


def test_a_span_runs_from_start_to_stop(acme):
    start(acme, at=NOON)
    span = stop(at=NOON + 90 * MS)
    span.refresh_from_db()
    assert (span.during.lower, span.during.upper) == (NOON, NOON + 90 * MS)
    assert (span.during.lower_inc, span.during.upper_inc) == (True, False)


def test_starting_an_open_meter_again_changes_nothing(acme):
    first = start(acme, at=NOON)
    again = start(acme, at=NOON + HOUR, quantity=7)
    assert (again.pk, again.quantity, again.started_at) == (first.pk, 2, NOON)
    assert UsageSpan.objects.count() == 1


def test_stopping_twice_changes_nothing(acme):
    start(acme)
    first = stop(at=NOON + HOUR)
    paid = wallet(acme)
    assert stop(at=NOON + 2 * HOUR) is None
    assert UsageSpan.objects.get().ended_at == first.ended_at
    assert wallet(acme) == paid


def test_stopping_what_never_ran_is_none(db):
    assert stop(at=NOON) is None


def test_times_are_cut_to_the_millisecond(acme):
    start(acme, at=NOON + timedelta(microseconds=1999))
    span = stop(at=NOON + timedelta(microseconds=5001))
    assert (span.started_at, span.ended_at) == (NOON + MS, NOON + 5 * MS)
    assert usage.unit_milliseconds(span=span, at=NOON + HOUR) == 2 * 4


def test_a_stop_before_the_start_gives_an_empty_span_that_costs_nothing(acme):
    start(acme, at=NOON)
    span = stop(at=NOON - HOUR)
    span.refresh_from_db()
    assert (span.started_at, span.ended_at) == (NOON, NOON)
    assert span.during.isempty
    assert span.charged_micros == 0
    assert wallet(acme).available_micros == 15 * USD


def test_a_resource_may_run_again_even_in_the_same_millisecond(acme):
    price = make_price()
    for _ in range(3):
        start(acme, at=NOON, price_version=price)
        stop(at=NOON)
    start(acme, at=NOON, price_version=price)
    assert UsageSpan.objects.count() == 4


def test_a_span_never_begins_before_the_one_before_it_ended(acme):
    price = make_price()
    start(acme, at=NOON, price_version=price)
    stop(at=NOON + HOUR)
    assert start(acme, at=NOON + HOUR - 5 * MS, price_version=price).started_at == NOON + HOUR


def test_use_is_measured_while_the_meter_runs(acme):
    span = start(acme, at=NOON, quantity=3)
    assert usage.unit_milliseconds(span=span, at=NOON - HOUR) == 0
    assert usage.unit_milliseconds(span=span, at=NOON + 10 * MS) == 30
    assert usage.amount_micros(span=span, at=NOON + HOUR) == 3 * 2_500_000
    span = stop(at=NOON + 20 * MS)
    assert usage.unit_milliseconds(span=span, at=NOON + HOUR) == 60


def test_a_price_in_another_currency_is_refused(acme):
    with pytest.raises(CurrencyMismatch):
        start(acme, price_version=make_price(currency="EUR"))


def test_stopping_gives_back_what_is_left_of_the_resource_s_holds(acme):
    hold_money(acme, 5 * USD, resource_id="ins_1")
    hold_money(acme, USD, resource_id="ins_2")
    start(acme, at=NOON)
    stop(at=NOON + HOUR / 10)
    has = wallet(acme)
    assert has.held_micros == USD
    assert has.promo_micros == 10 * USD - USD // 2


def test_stopping_what_never_ran_gives_back_its_holds(acme):
    hold_money(acme, 12 * USD, resource_id="ins_1")
    hold_money(acme, USD, resource_id="ins_2")
    assert stop(at=NOON) is None
    assert wallet(acme).held_micros == USD


def write_span(organization, **overrides):
    ordinary = {
        "resource_id": "ins_1",
        "resource_name": "trainer",
        "quantity": 1,
        "price_version": make_price(),
        "started_at": NOON,
        "charged_through": NOON,
    }
    return UsageSpan.objects.create(organization=organization, **(ordinary | overrides))


@pytest.mark.parametrize(
    "broken",
    [
        {"quantity": 0},
        {"ended_at": NOON - MS},
        {"started_at": NOON + timedelta(microseconds=1), "charged_through": NOON + MS},
        {"ended_at": NOON + timedelta(microseconds=1)},
        {"charged_through": NOON - MS},
        {"ended_at": NOON + MS, "charged_through": NOON + 2 * MS},
        {"charged_micros": -1},
    ],
)
def test_the_database_refuses_a_span_that_breaks_its_rules(acme, broken):
    with pytest.raises(DatabaseError, match=r"usage_span_|range lower bound"), transaction.atomic():
        write_span(acme, **broken)


@pytest.mark.parametrize("ended_at", [None, NOON + HOUR])
def test_the_database_refuses_spans_of_one_resource_that_overlap(acme, ended_at):
    write_span(acme, started_at=NOON - HOUR, ended_at=NOON + MS, charged_through=NOON + MS)
    with pytest.raises(IntegrityError, match="usage_span_no_overlap"), transaction.atomic():
        write_span(acme, ended_at=ended_at)
    write_span(acme, resource_id="ins_2")
    UsageSpan.objects.all().delete()


def test_the_database_refuses_a_second_open_span(acme):
    start(acme)
    with pytest.raises(IntegrityError, match="usage_span_"), transaction.atomic():
        write_span(acme, started_at=NOON + HOUR, charged_through=NOON + HOUR)


def test_a_span_starts_in_few_statements(acme, django_assert_num_queries):
    price = make_price()
    with django_assert_num_queries(8):
        start(acme, price_version=price)


def test_labels_and_names_are_kept_as_they_were_given(acme):
    made = start(acme, labels={"project": "prj_9", "market": "on_demand"}, resource_name="été")
    span = UsageSpan.objects.get(pk=made.pk)
    assert span.labels == {"project": "prj_9", "market": "on_demand"}
    assert span.resource_name == "été"
    assert span.public_id.startswith("spn_")


def test_organizations_do_not_share_a_meter(acme):
    other = make_organization(promo=USD)
    start(acme, resource_id="ins_1")
    span = start(other, resource_id="ins_2")
    stop(at=NOON + MS, resource_id="ins_1")
    span.refresh_from_db()
    assert span.is_open
