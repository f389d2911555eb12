"""Use is paid for once, from the right place, to the micro-unit."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from billing import accounts, books, charging, holds, rating, receivables, runway, usage
from billing.models import Account, Charge, Transfer, UsageSpan
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    account,
    grant,
    hold_money,
    make_organization,
    make_price,
    move,
    pay_in,
    start,
    wallet,
)

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
MS = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def the_books_balance(request):
    yield
    if request.cls is None:
        assert books.check(at=NOON + 1000 * HOUR) == []


def charge(span, through):
    """Charge a span and return what that made, if it made anything."""
    made = charging.charge_span(span=span, through=through)
    return Charge.objects.latest("pk") if made else None


def sources(charge):
    """Where a charge took its money, in the order it took it."""
    transfers = Transfer.objects.filter(key__startswith=f"{charge.posting}:").order_by("pk")
    return [
        ("hold" if transfer.hold_id else transfer.source.kind, transfer.amount_micros)
        for transfer in transfers.select_related("source")
    ]


def test_a_span_is_charged_up_to_the_moment_and_only_once(acme):
    span = start(acme, quantity=2)
    first = charge(span, NOON + HOUR)
    assert (first.amount_micros, first.through) == (5 * USD, NOON + HOUR)
    assert charge(span, NOON + HOUR) is None
    assert charge(span, NOON + HOUR - MS) is None
    assert charge(span, NOON + HOUR + MINUTE).amount_micros == 83_333
    assert wallet(acme).promo_micros == 5 * USD - 83_333
    assert accounts.balance_micros(accounts.platform(Account.Kind.REVENUE, "USD")) == 5 * USD + 83_333


def test_money_is_taken_from_the_own_hold_then_credit_then_cash_and_the_rest_is_owed(acme):
    hold_money(acme, 4 * USD, resource_id="ins_1")
    hold_money(acme, 3 * USD, resource_id="ins_2")
    taken = charge(start(acme, quantity=8), NOON + HOUR)
    assert sources(taken) == [("hold", 4 * USD), ("promo", 3 * USD), ("cash", 5 * USD), ("receivable", 8 * USD)]
    has = wallet(acme)
    assert (has.promo_micros, has.cash_micros, has.held_micros, has.owed_micros) == (3 * USD, 0, 3 * USD, 8 * USD)


def test_a_hold_over_credit_and_cash_is_taken_whole_before_anything_else(acme):
    hold_money(acme, 12 * USD, resource_id="ins_1")
    taken = charge(start(acme, quantity=5), NOON + HOUR)
    assert sources(taken) == [("hold", 10 * USD), ("hold", 2 * USD), ("cash", USD // 2)]


def test_an_expired_hold_is_not_taken_from(acme):
    hold_money(acme, 4 * USD)
    holds.expire(at=NOON + HOUR)
    assert sources(charge(start(acme), NOON + 2 * HOUR)) == [("promo", 10 * USD)]


def test_less_than_half_a_micro_is_not_charged_until_it_is_more(acme):
    span = start(acme, quantity=1, price_version=make_price(micros_per_unit_hour=1))
    assert charge(span, NOON + HOUR / 2 - MS) is None
    span.refresh_from_db()
    assert (span.charged_micros, span.charged_through) == (0, NOON + HOUR / 2 - MS)
    assert charge(span, NOON + HOUR / 2).amount_micros == 1


def test_stopping_charges_the_rest_of_the_span(acme):
    span = start(acme)
    charge(span, NOON + MINUTE)
    span = usage.stop(resource_id="ins_1", at=NOON + HOUR)
    assert span.charged_micros == 5 * USD
    assert span.charged_through == NOON + HOUR
    assert charge(span, NOON + 2 * HOUR) is None


def test_an_ended_span_is_not_charged_beyond_its_end(acme):
    span = start(acme)
    UsageSpan.objects.filter(pk=span.pk).update(ended_at=NOON + MINUTE)
    assert charge(span, NOON + HOUR).through == NOON + MINUTE
    runway.refresh(organization=acme, at=NOON + MINUTE)


def test_what_was_taken_for_time_after_the_end_is_given_back(acme):
    span = start(acme, quantity=8)
    charge(span, NOON + HOUR)
    assert wallet(acme).owed_micros == 5 * USD
    span = usage.stop(resource_id="ins_1", at=NOON + HOUR / 4)
    has = wallet(acme)
    assert (has.promo_micros, has.cash_micros, has.owed_micros) == (5 * USD, 5 * USD, 0)
    assert Charge.objects.get(amount_micros__lt=0).amount_micros == -15 * USD
    assert (span.charged_micros, span.charged_through) == (5 * USD, NOON + HOUR / 4)


def money(organization):
    has = wallet(organization)
    return has.promo_micros, has.cash_micros, has.owed_micros


def pay(organization, amount_micros):
    """Cash comes in and pays what is owed."""
    paid = pay_in(organization, amount_micros)
    receivables.settle(freed=paid.target, cause=paid.key, at=NOON)
    runway.refresh(organization=organization, at=NOON)


def test_what_credit_paid_of_a_debt_returns_as_credit():
    poor = make_organization()
    charge(start(poor, quantity=8), NOON + HOUR)
    grant(poor, 25 * USD)
    usage.stop(resource_id="ins_1", at=NOON + HOUR / 4)
    assert money(poor) == (20 * USD, 0, 0)


def test_what_cash_paid_of_a_debt_returns_as_cash(acme):
    charge(start(acme, quantity=8), NOON + HOUR)
    grant(acme, 2 * USD)
    pay(acme, 4 * USD)
    assert money(acme) == (0, USD, 0)
    usage.stop(resource_id="ins_1", at=NOON)
    assert money(acme) == (12 * USD, 9 * USD, 0)


def test_a_payment_is_for_the_oldest_debt(acme):
    price = make_price()
    first, second = (start(acme, resource_id=f"ins_{number}", quantity=8, price_version=price) for number in (1, 2))
    charge(first, NOON + HOUR)
    charge(second, NOON + HOUR)
    grant(acme, 5 * USD)
    pay(acme, 20 * USD)
    usage.stop(resource_id="ins_2", at=NOON)
    assert money(acme) == (0, 20 * USD, 0)
    usage.stop(resource_id="ins_1", at=NOON)
    assert money(acme) == (15 * USD, 25 * USD, 0)


def test_what_is_given_back_for_one_resource_pays_what_is_owed_for_another(acme):
    price = make_price()
    first, second = (start(acme, resource_id=f"ins_{number}", quantity=6, price_version=price) for number in (1, 2))
    charge(first, NOON + HOUR)
    charge(second, NOON + HOUR)
    usage.stop(resource_id="ins_1", at=NOON)
    assert money(acme) == (0, 0, 0)
    usage.stop(resource_id="ins_2", at=NOON)
    assert money(acme) == (10 * USD, 5 * USD, 0)


def test_what_neither_cash_nor_credit_paid_returns_as_credit():
    poor = make_organization()
    charge(start(poor), NOON + HOUR)
    move("processor", account(poor, "receivable"), 5 * USD)
    usage.stop(resource_id="ins_1", at=NOON)
    assert money(poor) == (5 * USD, 0, 0)


def test_a_correction_may_end_at_the_moment_of_an_earlier_charge(acme):
    span = start(acme)
    charge(span, NOON + MINUTE)
    charge(span, NOON + 2 * MINUTE)
    span = usage.stop(resource_id="ins_1", at=NOON + MINUTE)
    assert span.charged_micros == rating.amount_micros(micros_per_unit_hour=2_500_000, unit_milliseconds=120_000)


def test_the_sweep_charges_what_waits_longest_and_no_more_than_its_limit(acme):
    price = make_price()
    for number in range(4):
        start(acme, resource_id=f"ins_{number}", at=NOON + number * MINUTE, price_version=price)
    at = NOON + 4 * MINUTE
    assert charging.charge_due(at=at, limit=2) == 2
    assert charging.charge_due(at=at, limit=10) == 2
    assert charging.charge_due(at=at, limit=10) == 0
    assert [charge.span.resource_id for charge in Charge.objects.order_by("pk")] == ["ins_0", "ins_1", "ins_2", "ins_3"]


def test_the_sweep_leaves_what_was_charged_within_the_minute(acme):
    start(acme)
    assert charging.charge_due(at=NOON + MINUTE - MS) == 0
    assert charging.charge_due(at=NOON + MINUTE) == 1


def test_the_sweep_finds_a_span_that_ended_without_being_charged(acme):
    span = start(acme)
    UsageSpan.objects.filter(pk=span.pk).update(ended_at=NOON + MS * 10)
    assert charging.charge_due(at=NOON + MS * 20) == 1
    runway.refresh(organization=acme, at=NOON + MINUTE)


def test_one_span_that_cannot_be_charged_does_not_keep_the_others_from_it(acme, caplog):
    price = make_price()
    spans = [start(acme, resource_id=f"ins_{number}", price_version=price) for number in range(5)]
    dear = make_price(micros_per_unit_hour=10**18, sku="more than 64 bits hold")
    UsageSpan.objects.filter(pk=spans[3].pk).update(price_version=dear, quantity=100)
    assert charging.charge_due(at=NOON + HOUR) == 4
    assert [record.args for record in caplog.records] == [(spans[3].public_id,)]
    UsageSpan.objects.filter(pk=spans[3].pk).update(price_version=price, quantity=2)
    assert charging.charge_due(at=NOON + HOUR) == 1


def test_the_database_refuses_a_second_charge_for_a_moment(acme):
    taken = charge(start(acme), NOON + HOUR)
    with pytest.raises(IntegrityError, match="charge_once_per_moment"), transaction.atomic():
        Charge.objects.create(key="x", span=taken.span, through=taken.through, amount_micros=1, cash_micros=1)
    with pytest.raises(IntegrityError, match="charge_says_what_paid_it"), transaction.atomic():
        Charge.objects.create(key="x", span=taken.span, through=NOON, amount_micros=2, cash_micros=1)
    again = [Charge(key="x", span=taken.span, through=NOON + n * MS, amount_micros=-1, cash_micros=-1) for n in (0, 1)]
    with pytest.raises(IntegrityError, match="charge_corrected_once"), transaction.atomic():
        Charge.objects.bulk_create(again)
    with pytest.raises(IntegrityError, match="charge_moves_something"), transaction.atomic():
        Charge.objects.create(key="x", span=taken.span, through=NOON, amount_micros=0)


def test_no_charge_can_be_changed_or_deleted(acme):
    charge(start(acme), NOON + HOUR)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Charge.objects.update(amount_micros=1)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Charge.objects.all().delete()


class ChargingProperties(TestCase):
    """Whatever the slices and the money: the whole is paid, in the promised order."""

    @settings(max_examples=40, deadline=None)
    @given(
        price=st.integers(min_value=1, max_value=50 * USD),
        gpus=st.integers(min_value=1, max_value=16),
        moments=st.lists(st.integers(min_value=0, max_value=7_200_000), max_size=5),
        end=st.integers(min_value=0, max_value=7_200_000),
        funds=st.tuples(*[st.integers(min_value=0, max_value=20 * USD)] * 3),
    )
    def test_any_slicing_of_time_takes_exactly_the_price_of_the_whole(self, price, gpus, moments, end, funds):
        hold, promo, cash = funds
        organization = make_organization(promo=promo + hold, cash=cash)
        hold_money(organization, hold)
        span = start(organization, quantity=gpus, price_version=make_price(micros_per_unit_hour=price))
        for moment in moments:
            charge(span, NOON + moment * MS)
        span = usage.stop(resource_id="ins_1", at=NOON + end * MS)
        cost = rating.amount_micros(micros_per_unit_hour=price, unit_milliseconds=gpus * end)
        has = wallet(organization)
        assert span.charged_micros == cost
        assert has.promo_micros + has.cash_micros - has.owed_micros == hold + promo + cash - cost
        assert has.owed_micros == 0 or has.promo_micros + has.cash_micros == 0
        assert has.held_micros == 0
        assert books.check(at=NOON + 3 * HOUR) == []

    @settings(max_examples=40, deadline=None)
    @given(
        events=st.lists(
            st.tuples(
                st.sampled_from(["charge", "credit", "cash", "take back"]),
                st.integers(min_value=0, max_value=2),
                st.integers(min_value=1, max_value=20),
            ),
            max_size=14,
        )
    )
    def test_when_all_use_is_taken_back_everybody_has_what_they_paid_in(self, events):
        organization, price = make_organization(), make_price()
        spans = [start(organization, resource_id=f"ins_{number}", price_version=price) for number in range(3)]
        credit = cash = 0
        for kind, number, amount in [*events, *[("take back", number, 0) for number in range(3)]]:
            match kind:
                case "charge":
                    charge(spans[number], NOON + amount * HOUR)
                case "credit":
                    grant(organization, amount * USD)
                    credit += amount * USD
                case "cash":
                    pay(organization, amount * USD)
                    cash += amount * USD
                case _:
                    usage.stop(resource_id=f"ins_{number}", at=NOON)
            has = money(organization)
            assert has[0] <= credit
            assert has[1] <= cash
            assert not has[2] or has[:2] == (0, 0)
        assert money(organization) == (credit, cash, 0)
        assert books.check(at=NOON + 1000 * HOUR) == []
