"""Money set aside is taken or given back, and never both."""

from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import accounts, books, holds, rating
from billing.errors import HoldClosed, InsufficientFunds, KeyReused
from billing.models import Account, Hold
from tests.billing.makers import HOUR, NOON, USD, account, hold_money, make_organization, move, wallet

pytestmark = pytest.mark.django_db


def post(hold, amount_micros, *, key="post-1"):
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    return holds.post(key=key, hold=hold, target=revenue, amount_micros=amount_micros, reason="Test", at=NOON)


@pytest.fixture(autouse=True)
def the_books_balance(db):
    yield
    assert books.check(at=NOON) == []


def test_a_hold_takes_promotional_credit_first_and_then_cash(acme):
    promo, cash = hold_money(acme, 12 * USD)
    assert (promo.account.kind, promo.amount_micros) == ("promo", 10 * USD)
    assert (cash.account.kind, cash.amount_micros) == ("cash", 2 * USD)
    assert wallet(acme).held_micros == 12 * USD
    assert wallet(acme).available_micros == 3 * USD


def test_a_hold_that_credit_covers_leaves_cash_alone(acme):
    (hold,) = hold_money(acme, 10 * USD)
    assert hold.account.kind == "promo"
    assert Hold.objects.get().pk == hold.pk
    assert account(acme, "cash").held_micros == 0


def test_too_small_a_balance_is_refused_with_both_amounts_and_without_effects(acme):
    with pytest.raises(InsufficientFunds) as refusal:
        hold_money(acme, 15 * USD + 1)
    assert (refusal.value.needed_micros, refusal.value.available_micros) == (15 * USD + 1, 15 * USD)
    assert refusal.value.currency == "USD"
    assert not Hold.objects.exists()
    assert wallet(acme).held_micros == 0


@pytest.mark.django_db(transaction=True)
def test_money_is_set_aside_in_a_transaction_of_the_caller_or_not_at_all(acme):
    with pytest.raises(AssertionError, match="transaction"):
        holds.place(
            key="k", organization=acme, amount_micros=USD, purpose="first hour", resource_id="ins_1", expires_at=None
        )
    assert not Hold.objects.exists()


def test_what_is_owed_cannot_be_held(acme):
    move(account(acme, "receivable"), "revenue", 4 * USD)
    with pytest.raises(InsufficientFunds):
        hold_money(acme, 11 * USD + 1)
    assert sum(hold.amount_micros for hold in hold_money(acme, 11 * USD)) == 11 * USD


def test_a_refusal_leaves_the_caller_s_transaction_usable(acme):
    with transaction.atomic():
        with pytest.raises(InsufficientFunds):
            hold_money(acme, 100 * USD)
        hold_money(acme, USD)
    assert wallet(acme).held_micros == USD


def test_repeating_a_hold_changes_nothing_even_when_the_money_is_split_another_way(acme):
    first = hold_money(acme, 10 * USD, key="k")
    assert {hold.pk for hold in hold_money(acme, 10 * USD, key="k")} == {hold.pk for hold in first}
    assert wallet(acme).held_micros == 10 * USD


def test_repeating_a_hold_works_when_nothing_more_is_available(acme):
    first = hold_money(acme, 15 * USD, key="k")
    assert {hold.pk for hold in hold_money(acme, 15 * USD, key="k")} == {hold.pk for hold in first}


def test_the_same_key_for_another_amount_or_organization_is_refused(acme):
    hold_money(acme, USD, key="k")
    with pytest.raises(KeyReused):
        hold_money(acme, USD + 1, key="k")
    with pytest.raises(KeyReused):
        hold_money(make_organization(promo=USD), USD, key="k")


def test_holding_nothing_needs_no_hold(acme):
    assert hold_money(acme, 0) == []


def test_placing_a_hold_is_one_statement(acme, django_assert_num_queries):
    with django_assert_num_queries(1):
        hold_money(acme, 12 * USD)


@given(
    promo=st.integers(0, 3), cash=st.integers(0, 3), limit=st.integers(0, 3), owed=st.integers(0, 3),
    held=st.integers(0, 9), amount=st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_money_is_set_aside_in_the_order_of_paying_and_all_of_it_or_none(promo, cash, limit, owed, held, amount):
    with transaction.atomic():
        organization = make_organization(promo=promo, cash=cash)
        receivable = account(organization, "receivable")
        Account.objects.filter(pk=receivable.pk).update(credit_limit_micros=limit)
        if owed:
            move(receivable, "revenue", owed)
        with suppress(InsufficientFunds):
            hold_money(organization, held)
        payer = accounts.lock(organization_id=organization.pk, currency="USD")
        shares, _ = rating.take_in_turn(amount, [source.free_micros for source in payer.sources])
        if amount > payer.wallet.available_micros:
            with pytest.raises(InsufficientFunds) as refusal:
                hold_money(organization, amount)
            assert refusal.value.available_micros == payer.wallet.available_micros
            shares = [0, 0, 0]
        else:
            placed = {hold.account.kind: hold.amount_micros for hold in hold_money(organization, amount)}
            assert [placed.get(source.kind, 0) for source in payer.sources] == shares
        after = accounts.lock(organization_id=organization.pk, currency="USD")
        assert [source.held_micros for source in after.sources] == [
            source.held_micros + share for source, share in zip(payer.sources, shares, strict=True)
        ]
        transaction.set_rollback(True)


def test_a_hold_can_be_posted_in_parts_until_nothing_is_left(acme):
    (hold,) = hold_money(acme, 5 * USD)
    post(hold, 2 * USD, key="a")
    assert (hold.state, hold.left_micros, wallet(acme).held_micros) == ("pending", 3 * USD, 3 * USD)
    post(hold, 3 * USD, key="b")
    assert (hold.state, hold.left_micros, wallet(acme).held_micros) == ("posted", 0, 0)
    assert wallet(acme).promo_micros == 5 * USD


def test_posting_the_same_key_again_takes_nothing(acme):
    (hold,) = hold_money(acme, 5 * USD)
    first = post(hold, 2 * USD)
    assert post(hold, 2 * USD).pk == first.pk
    assert wallet(acme).promo_micros == 8 * USD
    with pytest.raises(KeyReused):
        post(hold, USD)


def test_no_more_than_what_is_left_can_be_posted(acme):
    (hold,) = hold_money(acme, 5 * USD)
    post(hold, 4 * USD, key="a")
    with pytest.raises(HoldClosed) as refusal:
        post(hold, USD + 1, key="b")
    assert (refusal.value.needed_micros, refusal.value.left_micros) == (USD + 1, USD)


@pytest.mark.parametrize("close", ["void", "expire"])
def test_a_closed_hold_gives_back_what_is_left_and_cannot_be_posted(acme, close):
    (hold,) = hold_money(acme, 5 * USD)
    post(hold, 2 * USD)
    for _ in range(2):
        if close == "void":
            holds.void_for(resource_id="ins_1", at=NOON)
        else:
            holds.expire(at=NOON + HOUR)
    assert wallet(acme).held_micros == 0
    assert wallet(acme).available_micros == 13 * USD
    with pytest.raises(HoldClosed):
        post(hold, 1, key="late")
    hold.refresh_from_db()
    assert hold.state == {"void": "voided", "expire": "expired"}[close]


@pytest.mark.parametrize("close", ["void", "expire"])
def test_money_that_was_given_back_does_not_count_as_set_aside(acme, close):
    hold_money(acme, 12 * USD, key="first-hour:ins_1:1")
    if close == "void":
        holds.void_for(resource_id="ins_1", at=NOON)
    else:
        holds.expire(at=NOON + HOUR)
    with pytest.raises(HoldClosed) as refusal:
        hold_money(acme, 12 * USD, key="first-hour:ins_1:1")
    assert (refusal.value.needed_micros, refusal.value.left_micros) == (12 * USD, 0)
    with pytest.raises(KeyReused):
        hold_money(acme, USD, key="first-hour:ins_1:1")
    assert wallet(acme).held_micros == 0


def test_money_that_was_taken_counts_as_set_aside(acme):
    promo, _ = hold_money(acme, 12 * USD, key="first-hour:ins_1:1")
    post(promo, 10 * USD)
    again = hold_money(acme, 12 * USD, key="first-hour:ins_1:1")
    assert sorted(hold.state for hold in again) == ["pending", "posted"]
    assert wallet(acme).held_micros == 2 * USD


def test_holds_expire_when_their_time_is_over_and_not_before(acme):
    hold_money(acme, USD, expires_at=NOON + HOUR)
    assert holds.expire(at=NOON + HOUR - timedelta(microseconds=1)) == 0
    assert holds.expire(at=NOON + HOUR) == 1
    assert wallet(acme).held_micros == 0


def test_a_sweep_expires_no_more_than_its_limit_the_oldest_first(acme):
    late, early = (hold_money(acme, USD, expires_at=NOON + timedelta(minutes=minutes))[0] for minutes in (30, 10))
    assert holds.expire(at=NOON + HOUR, limit=1) == 1
    early.refresh_from_db()
    late.refresh_from_db()
    assert (early.state, late.state) == ("expired", "pending")


def test_voiding_for_a_resource_leaves_the_holds_of_others(acme):
    hold_money(acme, 12 * USD, resource_id="ins_1")
    hold_money(acme, USD, resource_id="ins_2")
    assert holds.void_for(resource_id="ins_1", at=NOON) == 2
    assert holds.void_for(resource_id="ins_1", at=NOON) == 0
    assert wallet(acme).held_micros == USD


def test_money_that_becomes_free_pays_what_is_owed(acme):
    hold_money(acme, 12 * USD)
    move(account(acme, "receivable"), "revenue", 11 * USD)
    holds.void_for(resource_id="ins_1", at=NOON)
    has = wallet(acme)
    assert (has.owed_micros, has.promo_micros, has.cash_micros) == (0, 0, 4 * USD)


@pytest.mark.parametrize(
    "change",
    [
        {"posted_micros": 5 * USD + 1},
        {"posted_micros": -1},
        {"amount_micros": 0},
        {"state": "posted"},
        {"key": "other"},
    ],
)
def test_the_database_refuses_a_hold_that_breaks_its_rules(acme, change):
    (hold,) = hold_money(acme, 5 * USD)
    hold_money(acme, USD, key="other", resource_id="ins_2")
    if "key" in change:
        change = {"key": "other/promo"}
    with pytest.raises(IntegrityError), transaction.atomic():
        Hold.objects.filter(pk=hold.pk).update(**change)
