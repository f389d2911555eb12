"""Money moves once, never out of nothing, and stays written down."""

import pytest
from django.db import IntegrityError, connection, transaction

from billing import accounts, books
from billing.errors import CurrencyMismatch, InsufficientFunds, KeyReused
from billing.models import Account, PriceVersion, Transfer
from tests.billing.makers import NOON, USD, account, grant, hold_money, make_organization, make_price, move, wallet

pytestmark = pytest.mark.django_db


def test_a_transfer_moves_money_from_one_account_to_the_other(acme):
    move(account(acme, "cash"), account(acme, "receivable"), 2 * USD)
    assert account(acme, "cash").balance_micros == 3 * USD
    assert account(acme, "receivable").balance_micros == 2 * USD


def test_repeating_a_key_returns_the_first_transfer_and_moves_nothing(acme):
    first = move(account(acme, "cash"), "revenue", USD, key="once")
    again = move(account(acme, "cash"), "revenue", USD, key="once")
    assert again.pk == first.pk
    assert account(acme, "cash").balance_micros == 4 * USD


@pytest.mark.parametrize("change", ["amount", "source", "target"])
def test_the_same_key_with_another_body_is_refused_and_moves_nothing(acme, change):
    move(account(acme, "cash"), "revenue", USD, key="once")
    body = {
        "source": account(acme, "promo" if change == "source" else "cash"),
        "target": "fees" if change == "target" else "revenue",
        "amount_micros": USD + (change == "amount"),
    }
    with pytest.raises(KeyReused):
        move(**body, key="once")
    assert (wallet(acme).promo_micros, wallet(acme).cash_micros) == (10 * USD, 4 * USD)


def test_more_than_there_is_cannot_be_moved(acme):
    with pytest.raises(InsufficientFunds) as refusal:
        move(account(acme, "cash"), "revenue", 5 * USD + 1, key="too much")
    assert (refusal.value.needed_micros, refusal.value.available_micros) == (5 * USD + 1, 5 * USD)
    assert not Transfer.objects.filter(key="too much").exists()


def test_held_money_cannot_be_moved(acme):
    hold_money(acme, 12 * USD)
    with pytest.raises(InsufficientFunds):
        move(account(acme, "cash"), "revenue", 3 * USD + 1)
    move(account(acme, "cash"), "revenue", 3 * USD)


def test_what_is_owed_may_grow_without_bound(acme):
    move(account(acme, "receivable"), "revenue", 1_000_000 * USD)
    assert wallet(acme).owed_micros == 1_000_000 * USD
    assert wallet(acme).available_micros == 0


def test_money_does_not_change_currency(acme):
    tokyo = make_organization(currency="JPY")
    with pytest.raises(CurrencyMismatch):
        move(account(acme, "cash"), account(tokyo, "cash"), USD)


def test_the_database_refuses_a_transfer_between_currencies(acme):
    tokyo = make_organization(currency="JPY")
    with pytest.raises(IntegrityError, match="changes currency"):
        Transfer.objects.create(
            key="fx",
            source=account(acme, "cash"),
            target=account(tokyo, "cash"),
            amount_micros=1,
            reason="x",
            effective_at=NOON,
        )


def test_the_platform_s_accounts_carry_no_balance_and_are_summed_when_asked(acme):
    move(account(acme, "cash"), "revenue", USD)
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    assert revenue.balance_micros == 0
    assert accounts.balance_micros(revenue) == USD
    assert accounts.balance_micros(accounts.platform(Account.Kind.PROMO_EXPENSE, "USD")) == -10 * USD
    assert accounts.balance_micros(account(acme, "cash")) == 4 * USD


@pytest.mark.parametrize("verb", ["UPDATE billing_transfer SET amount_micros = 1", "DELETE FROM billing_transfer"])
def test_no_transfer_can_be_changed_or_deleted(acme, verb):
    with pytest.raises(IntegrityError, match="append-only"), connection.cursor() as cursor:
        cursor.execute(verb)


@pytest.mark.parametrize("table", ["billing_transfer", "billing_charge"])
def test_the_ledger_cannot_be_emptied(acme, table):
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_is_never_emptied")
        with pytest.raises(IntegrityError, match="append-only: TRUNCATE refused"):
            cursor.execute(f"TRUNCATE {table}")


def test_no_price_can_be_changed_or_deleted(acme):
    make_price()
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        PriceVersion.objects.update(micros_per_unit_hour=1)
    with pytest.raises(IntegrityError, match="append-only"):
        PriceVersion.objects.all().delete()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("cash", {"balance_micros": -1}),
        ("cash", {"held_micros": 5 * USD + 1}),
        ("cash", {"held_micros": -1}),
        ("promo", {"balance_micros": -1}),
        ("receivable", {"held_micros": -1}),
        ("cash", {"kind": "revenue"}),
        ("cash", {"organization": None}),
        ("cash", {"kind": "promo"}),
        ("cash", {"currency": "usd"}),
    ],
)
def test_the_database_refuses_an_account_that_breaks_its_rules(acme, kind, change):
    with pytest.raises(IntegrityError):
        Account.objects.filter(organization=acme, kind=kind).update(**change)


def test_the_database_refuses_a_running_balance_on_the_platform_s_accounts(acme):
    revenue = accounts.platform(Account.Kind.REVENUE, "USD")
    with pytest.raises(IntegrityError):
        Account.objects.filter(pk=revenue.pk).update(balance_micros=1)


@pytest.mark.parametrize("change", [{"amount_micros": 0}, {"amount_micros": -5}, {"target": "source"}])
def test_the_database_refuses_a_transfer_that_moves_nothing(acme, change):
    cash = account(acme, "cash")
    ordinary = {"amount_micros": 5, "target": account(acme, "promo")}
    if change.get("target"):
        change = {"target": cash}
    with pytest.raises(IntegrityError):
        Transfer.objects.create(key="odd", source=cash, reason="x", effective_at=NOON, **(ordinary | change))


def test_accounts_are_opened_once(acme):
    accounts.open_for(organization=acme)
    accounts.open_for(organization=acme, is_supplier=True)
    assert sorted(acme.accounts.values_list("kind", flat=True)) == ["cash", "payable", "promo", "receivable", "reserve"]
    assert wallet(acme).available_micros == 15 * USD


def test_an_organization_without_accounts_gets_them_when_it_is_asked_what_it_has():
    stranger = make_organization()
    stranger.accounts.all().delete()
    assert wallet(stranger).available_micros == 0
    assert stranger.accounts.count() == 3


def test_credit_is_granted_once_per_key(acme):
    first = grant(acme, 7 * USD, key="welcome")
    assert grant(acme, 7 * USD, key="welcome").pk == first.pk
    assert wallet(acme).promo_micros == 17 * USD
    assert first.reason == "Welcome (granted by operator@example.com)"
    with pytest.raises(KeyReused):
        grant(acme, 8 * USD, key="welcome")


def test_credit_pays_what_is_owed_first(acme):
    move(account(acme, "receivable"), "revenue", 3 * USD)
    grant(acme, 20 * USD, key="rescue")
    has = wallet(acme)
    assert (has.owed_micros, has.promo_micros, has.cash_micros) == (0, 27 * USD, 5 * USD)
    grant(acme, 20 * USD, key="rescue")
    assert wallet(acme) == has
    assert books.check(at=NOON) == []


def test_a_refused_transfer_leaves_the_caller_s_transaction_usable(acme):
    with pytest.raises(InsufficientFunds):
        move(account(acme, "cash"), "revenue", 100 * USD)
    move(account(acme, "cash"), "revenue", USD)
    assert account(acme, "cash").balance_micros == 4 * USD
