"""How long the money lasts is known without looking at what runs."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import charging, holds, runway, usage
from billing.models import Runway
from billing.runway import Level
from tests.billing.makers import HOUR, NOON, USD, account, grant, hold_money, make_organization, make_price, move, start

MS = timedelta(milliseconds=1)
MINUTE = timedelta(minutes=1)


@pytest.mark.django_db
def test_what_does_not_burn_lasts_for_ever(acme):
    assert Runway.objects.get(organization=acme).exhausts_at is None
    assert runway.level(organization=acme, at=NOON) == Level.ENOUGH


@pytest.mark.django_db
def test_opening_a_span_sets_the_moment_at_which_the_money_is_used_up(acme):
    start(acme, quantity=2)
    runs = Runway.objects.get(organization=acme)
    assert (runs.burn_micros_per_hour, runs.funds_micros, runs.as_of) == (5 * USD, 15 * USD, NOON)
    assert runs.exhausts_at == NOON + 3 * HOUR


@pytest.mark.django_db
def test_a_second_span_brings_the_moment_nearer_and_closing_it_moves_it_away_again(acme):
    price = make_price()
    start(acme, quantity=2, price_version=price)
    start(acme, quantity=2, price_version=price, resource_id="ins_2", at=NOON + HOUR)
    assert Runway.objects.get(organization=acme).exhausts_at == NOON + 2 * HOUR
    usage.stop(resource_id="ins_2", at=NOON + HOUR)
    assert Runway.objects.get(organization=acme).exhausts_at == NOON + 3 * HOUR
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    assert Runway.objects.get(organization=acme).exhausts_at is None


@pytest.mark.django_db
def test_money_that_comes_in_moves_the_moment_away(acme):
    start(acme, quantity=2)
    grant(acme, 10 * USD, at=NOON + HOUR)
    assert Runway.objects.get(organization=acme).exhausts_at == NOON + 5 * HOUR


@pytest.mark.django_db
@pytest.mark.parametrize("charged_at", [[], [MINUTE], [MINUTE, 90 * MINUTE, 7 * MS]])
def test_charging_and_holds_do_not_move_the_moment(acme, charged_at):
    hold_money(acme, 5 * USD, resource_id="ins_1")
    hold_money(acme, 6 * USD, resource_id="ins_2")
    span = start(acme, quantity=2)
    for after in charged_at:
        charging.charge_span(span=span, through=NOON + after)
    holds.void_for(resource_id="ins_2", at=NOON + 2 * HOUR)
    runs = runway.refresh(organization=acme, at=NOON + 2 * HOUR)
    assert runs.exhausts_at == NOON + 3 * HOUR


@pytest.mark.django_db
def test_what_is_owed_shortens_the_runway(acme):
    move(account(acme, "receivable"), "revenue", 10 * USD)
    start(acme, quantity=2)
    assert Runway.objects.get(organization=acme).exhausts_at == NOON + HOUR


@pytest.mark.django_db
def test_who_has_nothing_is_exhausted_at_once():
    poor = make_organization()
    start(poor)
    assert runway.level(organization=poor, at=NOON) == Level.EXHAUSTED


@pytest.mark.django_db
def test_the_exhausted_are_those_whose_moment_has_come(acme):
    start(acme, quantity=2)
    assert runway.level(organization=acme, at=NOON + 3 * HOUR - MS) == Level.CRITICAL
    assert runway.level(organization=acme, at=NOON + 3 * HOUR) == Level.EXHAUSTED


@pytest.mark.django_db
def test_at_the_moment_it_names_the_money_is_really_used_up(acme):
    start(acme, quantity=7, price_version=make_price(micros_per_unit_hour=3_333_333))
    moment = Runway.objects.get(organization=acme).exhausts_at
    span = usage.stop(resource_id="ins_1", at=moment)
    assert 15 * USD - 10 < span.charged_micros <= 15 * USD


@pytest.mark.django_db
def test_warnings_come_an_hour_and_ten_minutes_before_the_end(acme):
    start(acme, quantity=2)
    end = NOON + 3 * HOUR
    assert runway.level(organization=acme, at=end - HOUR - MS) == Level.DAY
    assert runway.level(organization=acme, at=end - HOUR) == Level.LOW
    assert runway.level(organization=acme, at=end - 10 * MINUTE) == Level.CRITICAL
    assert runway.level(organization=acme, at=end) == Level.EXHAUSTED
    assert list(runway.running_low(at=end - HOUR - MS)) == []
    assert [row.organization for row in runway.running_low(at=end - HOUR)] == [acme]
    assert [row.organization for row in runway.running_low(at=end)] == [acme]


@pytest.mark.django_db
def test_whose_money_ends_first_is_named_first():
    price = make_price()
    later, sooner = (make_organization(promo=dollars * USD) for dollars in (4, 2))
    for number, organization in enumerate([later, sooner]):
        start(organization, resource_id=f"ins_{number}", price_version=price)
    assert [row.organization for row in runway.running_low(at=NOON)] == [sooner, later]


@pytest.mark.django_db
def test_how_long_the_money_lasts_is_one_question(acme, django_assert_num_queries):
    start(acme)
    with django_assert_num_queries(1):
        runway.level(organization=acme, at=NOON)


@pytest.mark.django_db
def test_an_organization_that_never_had_anything_has_enough():
    assert runway.level(organization=make_organization(), at=NOON) == Level.ENOUGH


@pytest.mark.django_db
def test_refreshing_asks_the_same_few_questions_however_much_runs(acme, django_assert_num_queries):
    price = make_price()
    for number in range(5):
        start(acme, resource_id=f"ins_{number}", price_version=price)
    with django_assert_num_queries(3):
        runway.refresh(organization=acme, at=NOON)


@given(funds=st.integers(min_value=-(10**15), max_value=10**18), burn=st.integers(min_value=1, max_value=10**15))
def test_the_moment_is_the_last_whole_millisecond_that_can_be_paid(funds, burn):
    moment = runway.exhausts_at(funds_micros=funds, burn_micros_per_hour=burn, at=NOON)
    if moment is None:
        assert funds * 3_600_000 > burn * (runway.HORIZON // MS)
        return
    lasts = (moment - NOON) // MS
    assert lasts == 0 or burn * lasts <= funds * 3_600_000
    assert burn * (lasts + 1) > funds * 3_600_000


def test_what_lasts_longer_than_a_century_has_no_end():
    assert runway.exhausts_at(funds_micros=10**18, burn_micros_per_hour=1, at=NOON) is None
    assert runway.exhausts_at(funds_micros=0, burn_micros_per_hour=0, at=NOON) is None
