"""Paying afterwards: two people allow it, as far as the limit, and what is used is always charged."""

from uuid import uuid4

import pytest
from django.db.utils import IntegrityError

from billing import books, charging, credit_lines, holds, prepayments, usage
from billing.errors import AlreadyDecided, AlreadyProposed, BadCredit, InsufficientFunds, KeyReused, SecondPersonNeeded
from billing.models import CreditLine, Runway
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    at_the_same_moment,
    block,
    hold_money,
    make_organization,
    pay_in,
    start,
    wallet,
)
from tests.billing.people import give_credit_line, two_people

pytestmark = pytest.mark.django_db


def proposed(organization, limit_micros=100 * USD, *, net_days=30, key=None):
    return credit_lines.propose(
        organization=organization, limit_micros=limit_micros, net_days=net_days, reason="Known", by=two_people()[0],
        key=key or uuid4(), at=NOON,
    )  # fmt: skip


def test_nothing_changes_until_somebody_else_approves():
    acme, (carol, dan) = make_organization(), two_people()
    line = proposed(acme)
    assert wallet(acme).available_micros == 0
    with pytest.raises(SecondPersonNeeded):
        credit_lines.approve(line=line, by=carol, at=NOON)
    assert wallet(acme).available_micros == 0
    credit_lines.approve(line=line, by=dan, at=NOON)
    assert (wallet(acme).available_micros, credit_lines.net_days(acme)) == (100 * USD, 30)
    with pytest.raises(AlreadyDecided):
        credit_lines.decline(line=line, by=dan, at=NOON)
    assert books.check(at=NOON) == []


def test_the_database_too_wants_a_second_person():
    line = proposed(make_organization())
    with pytest.raises(IntegrityError, match="credit_line_needs_a_second_person"):
        CreditLine.objects.filter(pk=line.pk).update(state="approved", decided_by=two_people()[0])


def test_a_bad_limit_is_refused_with_its_reason():
    acme = make_organization()
    for limit, days in ((-USD, 30), (USD + 1, 30), (USD, 121), (USD, -1)):
        with pytest.raises(BadCredit):
            proposed(acme, limit, net_days=days)
    key = uuid4()
    assert proposed(acme, USD, key=key) == proposed(acme, USD, key=key)
    with pytest.raises(KeyReused):
        proposed(acme, 2 * USD, key=key)
    with pytest.raises(AlreadyProposed):
        proposed(acme, USD)
    assert wallet(acme).available_micros == 0


def test_a_launch_beyond_the_limit_is_refused_and_says_so():
    acme = make_organization(promo=2 * USD, cash=3 * USD)
    give_credit_line(acme, 10 * USD)
    hold_money(acme, 12 * USD)
    with pytest.raises(InsufficientFunds) as refusal:
        hold_money(acme, 4 * USD)
    assert (refusal.value.available_micros, refusal.value.credit_limit_micros) == (3 * USD, 10 * USD)
    assert wallet(acme).held_micros == 12 * USD


def test_use_is_taken_from_the_first_hour_then_credit_then_cash_then_owed():
    acme = make_organization(promo=2 * USD, cash=3 * USD)
    give_credit_line(acme, 100 * USD)
    hold_money(acme, 7 * USD, resource_id="ins_1", expires_at=NOON + 10 * HOUR)
    span = start(acme)  # 5 USD an hour
    charging.charge_span(span=span, through=NOON + 2 * HOUR)
    have = wallet(acme)
    assert (have.promo_micros, have.cash_micros, have.owed_micros, have.held_micros) == (0, 0, 5 * USD, 0)
    assert have.available_micros == 95 * USD
    usage.stop(resource_id="ins_1", at=NOON + 2 * HOUR)
    pay_in(acme, 20 * USD)
    assert books.check(at=NOON + 3 * HOUR) == []


def test_the_runway_reaches_as_far_as_the_limit():
    acme = make_organization(cash=5 * USD)
    give_credit_line(acme, 10 * USD)
    start(acme)
    assert Runway.objects.get().exhausts_at == NOON + 3 * HOUR


def test_a_lower_limit_stops_nothing_and_lets_nothing_new_start():
    acme = make_organization()
    give_credit_line(acme, 100 * USD)
    charging.charge_span(span=start(acme), through=NOON + 4 * HOUR)
    give_credit_line(acme, 10 * USD, at=NOON + HOUR)
    have = wallet(acme)
    assert (have.owed_micros, have.available_micros) == (20 * USD, 0)
    with pytest.raises(InsufficientFunds):
        hold_money(acme, USD)


def test_a_block_is_bought_on_credit_and_given_back_to_what_is_owed():
    acme = make_organization(cash=3 * USD)
    give_credit_line(acme, 10 * USD)
    hold_money(acme, 8 * USD, resource_id="rsv_1")
    paid = prepayments.collect(organization=acme, resource_id="rsv_1", block=block(), reason="Block", at=NOON)
    assert (paid.promo_micros, paid.cash_micros) == (0, 8 * USD)
    assert wallet(acme).owed_micros == 5 * USD
    prepayments.give_back(
        organization=acme, key="rsv_1:cancelled", back=paid, deferred_micros=8 * USD, reason="Refund", at=NOON,
        block=block("cancelled"),
    )  # fmt: skip
    have = wallet(acme)
    assert (have.cash_micros, have.owed_micros) == (3 * USD, 0)
    assert books.check(at=NOON) == []


@pytest.mark.django_db(transaction=True)
def test_launches_at_once_stay_within_the_limit():
    acme = make_organization()
    give_credit_line(acme, 10 * USD)
    outcomes = at_the_same_moment(
        *[lambda n=n: hold_money(acme, 3 * USD, resource_id=f"ins_{n}", key=f"first-hour:{n}") for n in range(6)]
    )
    assert outcomes == ["InsufficientFunds"] * 3 + ["done"] * 3
    assert wallet(acme).held_micros == 9 * USD
    holds.void_for(resource_id="ins_0", at=NOON)


@pytest.mark.django_db(transaction=True)
def test_two_approvals_at_once_count_once():
    acme, (_, dan) = make_organization(), two_people()
    line = proposed(acme)
    outcomes = at_the_same_moment(
        *[lambda: credit_lines.approve(line=CreditLine.objects.get(pk=line.pk), by=dan, at=NOON)] * 2
    )
    assert outcomes == ["AlreadyDecided", "done"]
