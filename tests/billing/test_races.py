"""Two real connections at the same moment; each guard has a twin test that shows the race without it."""

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models import QuerySet

from billing import accounts, books, charging, holds, ledger, runway, usage
from billing.models import Account, Charge, Hold, Runway, Transfer, UsageSpan
from tests.billing.makers import (
    HOUR,
    NOON,
    USD,
    account,
    at_the_same_moment,
    behind,
    gate,
    grant,
    hold_money,
    make_organization,
    make_price,
    move,
    start,
    wallet,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def the_books_balance(transactional_db, request):
    yield
    if "without" not in request.node.name:
        assert books.check(at=NOON + 100 * HOUR) == []


def wait_after(monkeypatch, owner, name, meet):
    """Let both threads meet each time one of them has done this."""
    original = getattr(owner, name)

    def then_meet(*args, **kwargs):
        result = original(*args, **kwargs)
        meet()
        return result

    monkeypatch.setattr(owner, name, then_meet)


def without_row_locks(monkeypatch):
    monkeypatch.setattr(QuerySet, "select_for_update", lambda self, **options: self)
    monkeypatch.setattr(accounts, "LOCKED", accounts.OF_CUSTOMER)


def change_how_money_is_placed(monkeypatch, old, new):
    assert old in holds.PLACE
    monkeypatch.setattr(holds, "PLACE", holds.PLACE.replace(old, new))


def move_both_ways_at_the_same_moment(monkeypatch, meet):
    ours, theirs = (account(make_organization(cash=10 * USD), "cash") for _ in range(2))
    wait_after(monkeypatch, QuerySet, "update", meet)
    return at_the_same_moment(lambda: move(ours, theirs, USD), lambda: move(theirs, ours, USD))


def test_without_the_lock_two_opposite_transfers_deadlock(monkeypatch, meet):
    monkeypatch.setattr(ledger, "lock", lambda *accounts: None)
    assert move_both_ways_at_the_same_moment(monkeypatch, meet) == ["OperationalError", "done"]


def test_two_opposite_transfers_do_not_deadlock(monkeypatch, meet):
    assert move_both_ways_at_the_same_moment(monkeypatch, meet) == ["done", "done"]


def hold_the_last_credit_twice():
    acme = make_organization(promo=USD)
    outcomes = behind(
        gate(acme),
        lambda: hold_money(acme, USD, resource_id="ins_1"),
        lambda: hold_money(acme, USD, resource_id="ins_2"),
    )
    assert Hold.objects.count() == 1
    return outcomes


def test_without_the_lock_both_pass_and_only_the_database_stops_the_second(monkeypatch):
    change_how_money_is_placed(monkeypatch, "FOR NO KEY UPDATE", "")
    assert hold_the_last_credit_twice() == ["IntegrityError", "done"]


def test_the_last_micro_unit_of_credit_is_held_once():
    assert hold_the_last_credit_twice() == ["InsufficientFunds", "done"]


@pytest.mark.parametrize("is_spent_first", [True, False])
def test_money_is_either_held_or_spent(is_spent_first):
    acme = make_organization(cash=USD)
    cash = account(acme, "cash")
    calls = [lambda: hold_money(acme, USD), lambda: move(cash, "revenue", USD)]
    assert behind(gate(acme), *(reversed(calls) if is_spent_first else calls)) == ["InsufficientFunds", "done"]


def hold_the_same_twice():
    acme = make_organization(promo=10 * USD)
    again = [lambda: hold_money(acme, USD, key="first-hour:ins_1:1")] * 2
    outcomes = behind(gate(acme), *again)
    assert wallet(acme).held_micros == USD
    return outcomes


def test_the_same_hold_asked_for_twice_at_the_same_moment_is_placed_once():
    assert hold_the_same_twice() == ["done", "done"]


def test_without_a_second_look_behind_the_lock_only_its_key_keeps_a_hold_from_being_placed_twice(monkeypatch):
    change_how_money_is_placed(monkeypatch, "there.xmin <> payer.version", "false")
    assert hold_the_same_twice() == ["IntegrityError", "done"]


def test_the_same_transfer_asked_for_by_many_at_the_same_moment_moves_once():
    acme = make_organization(cash=10 * USD)
    cash = account(acme, "cash")
    accounts.platform(Account.Kind.REVENUE, "USD")
    assert at_the_same_moment(*[lambda: move(cash, "revenue", USD, key="once")] * 6) == ["done"] * 6
    assert wallet(acme).cash_micros == 9 * USD


def charge_twice_at_the_same_moment():
    span = start(make_organization(promo=100 * USD))
    same = UsageSpan.objects.filter(pk=span.pk)
    return behind(same, *[lambda: charging.charge_span(span=span, through=NOON + HOUR)] * 2)


def test_without_the_lock_only_a_unique_key_keeps_a_span_from_being_charged_twice(monkeypatch):
    monkeypatch.setattr(accounts, "lock_all", lambda organization_ids: None)
    assert charge_twice_at_the_same_moment() == ["IntegrityError", "done"]


def test_a_span_is_charged_once_by_two_sweeps_at_the_same_moment():
    assert charge_twice_at_the_same_moment() == ["done", "done"]
    assert Charge.objects.get().amount_micros == 5 * USD


def test_stopping_and_charging_at_the_same_moment_takes_the_price_of_the_whole(monkeypatch, meet):
    acme = make_organization(promo=100 * USD)
    hold_money(acme, 3 * USD)
    span = start(acme)
    wait_after(monkeypatch, accounts, "platform", meet)
    outcomes = at_the_same_moment(
        lambda: charging.charge_span(span=span, through=NOON + 2 * HOUR),
        lambda: usage.stop(resource_id="ins_1", at=NOON + HOUR),
    )
    assert outcomes == ["done", "done"]
    assert UsageSpan.objects.get().charged_micros == 5 * USD
    assert (wallet(acme).promo_micros, wallet(acme).held_micros) == (95 * USD, 0)


def test_a_meter_closed_by_two_at_the_same_moment_closes_once(monkeypatch, meet):
    acme = make_organization(promo=100 * USD)
    start(acme)
    wait_after(monkeypatch, accounts, "lock", meet)
    closed = []
    stop = [lambda: closed.append(usage.stop(resource_id="ins_1", at=NOON + HOUR))]
    assert at_the_same_moment(*stop * 2) == ["done", "done"]
    assert closed.count(None) == 1
    assert wallet(acme).promo_micros == 95 * USD


def test_a_meter_opened_by_two_at_the_same_moment_opens_once():
    acme = make_organization(promo=10 * USD)
    price = make_price()
    assert at_the_same_moment(*[lambda: start(acme, price_version=price)] * 4) == ["done"] * 4
    assert UsageSpan.objects.count() == 1


def open_two_meters_at_the_same_moment(monkeypatch, meet):
    acme = make_organization(promo=10 * USD)
    price = make_price()
    wait_after(monkeypatch, runway, "_burn", meet)
    outcomes = at_the_same_moment(
        lambda: start(acme, resource_id="ins_1", price_version=price),
        lambda: start(acme, resource_id="ins_2", price_version=price),
    )
    assert outcomes == ["done", "done"]
    return Runway.objects.get().burn_micros_per_hour


def test_without_the_lock_the_runway_forgets_one_of_two_meters(monkeypatch, meet):
    without_row_locks(monkeypatch)
    assert open_two_meters_at_the_same_moment(monkeypatch, meet) == 5 * USD


def test_two_meters_opened_at_the_same_moment_both_shorten_the_runway(monkeypatch, meet):
    assert open_two_meters_at_the_same_moment(monkeypatch, meet) == 10 * USD


def post_and_void_at_the_same_moment(monkeypatch, meet):
    acme = make_organization(promo=10 * USD)
    (hold,) = hold_money(acme, 4 * USD)
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    wait_after(monkeypatch, ledger, "lock", meet)
    wait_after(monkeypatch, accounts, "lock", meet)

    def post():
        holds.post(key="p", hold=hold, target=revenue, amount_micros=4 * USD, reason="Test", at=NOON)

    outcomes = at_the_same_moment(post, lambda: holds.void_for(resource_id="ins_1", at=NOON))
    taken = Transfer.objects.filter(key="p").exists()
    assert wallet(acme).promo_micros == (6 * USD if taken else 10 * USD)
    assert wallet(acme).held_micros == 0
    return outcomes


def test_a_hold_is_either_posted_or_voided(monkeypatch, meet):
    assert post_and_void_at_the_same_moment(monkeypatch, meet) in (["done", "done"], ["HoldClosed", "done"])


def test_without_the_lock_a_hold_is_given_back_twice_and_only_the_database_notices(monkeypatch, meet):
    monkeypatch.setattr(ledger, "lock", lambda *accounts: None)
    acme = make_organization(promo=10 * USD)
    (hold,) = hold_money(acme, 4 * USD)
    wait_after(monkeypatch, Hold, "refresh_from_db", meet)
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")

    def post(key):
        holds.post(
            key=key, hold=Hold.objects.get(pk=hold.pk), target=revenue, amount_micros=4 * USD, reason="x", at=NOON
        )

    assert at_the_same_moment(lambda: post("a"), lambda: post("b")) == ["IntegrityError", "done"]


def a_cash_hold_to_close_and_one_to_place():
    """An account, and two calls that come by it; the first needs the cash account alone, the second both."""
    acme = make_organization(cash=10 * USD)
    hold_money(acme, 4 * USD)
    grant(acme, 10 * USD)
    calls = (
        lambda: holds.void_for(resource_id="ins_1", at=NOON),
        lambda: hold_money(acme, 12 * USD, resource_id="ins_2"),
    )
    return gate(acme, kinds=["promo"]), *calls


def test_without_one_order_for_all_closing_a_hold_and_placing_one_deadlock(monkeypatch):
    change_how_money_is_placed(monkeypatch, "ORDER BY id\nFOR", "ORDER BY id DESC\nFOR")
    assert behind(*a_cash_hold_to_close_and_one_to_place()) == ["OperationalError", "done"]


def test_closing_a_hold_and_placing_one_do_not_deadlock():
    assert behind(*a_cash_hold_to_close_and_one_to_place()) == ["done", "done"]


def test_one_customer_s_payment_does_not_wait_for_another_s():
    slow, quick = (make_organization(cash=USD) for _ in range(2))
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    with transaction.atomic():
        move(account(slow, "cash"), revenue, USD)
        assert at_the_same_moment(lambda: pay_within_a_second(account(quick, "cash"), revenue)) == ["done"]


def test_without_the_exception_for_the_platform_payments_wait_for_each_other(monkeypatch):
    slow, quick = (make_organization(cash=USD) for _ in range(2))
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    lock_all = Account.objects.select_for_update(no_key=True).order_by("pk")
    monkeypatch.setattr(
        ledger, "lock", lambda *accounts: list(lock_all.filter(pk__in=[account.pk for account in accounts]))
    )
    with transaction.atomic():
        move(account(slow, "cash"), revenue, USD)
        assert at_the_same_moment(lambda: pay_within_a_second(account(quick, "cash"), revenue)) == ["OperationalError"]


def pay_within_a_second(source, target):
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
        move(source, target, USD)


def test_credit_granted_twice_at_the_same_moment_comes_once():
    acme = make_organization(promo=USD)
    assert at_the_same_moment(*[lambda: grant(acme, 5 * USD, key="welcome")] * 3) == ["done"] * 3
    assert wallet(acme).promo_micros == 6 * USD


def test_expiring_and_voiding_the_same_holds_at_the_same_moment_releases_them_once():
    acme = make_organization(promo=10 * USD, cash=10 * USD)
    hold_money(acme, 15 * USD)
    outcomes = at_the_same_moment(
        lambda: holds.expire(at=NOON + HOUR + timedelta(seconds=1)),
        lambda: holds.void_for(resource_id="ins_1", at=NOON + HOUR),
        lambda: holds.expire(at=NOON + HOUR),
    )
    assert outcomes == ["done"] * 3
    assert wallet(acme).held_micros == 0
