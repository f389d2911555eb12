"""Statements that are planned once: they answer what the query sets would, and nothing is lost on the way."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import (
    DataError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connection,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.utils import timezone

from billing.models import Account, PriceVersion
from billing.models.usage import PriceModel
from billing.prepared import Asking, Prepared, Steps, ask, insertion, together, values_of
from tests.billing.makers import make_organization, make_price

pytestmark = pytest.mark.django_db

OF_CURRENCY = Prepared(
    lambda currency, least: (
        Account.objects.select_related("organization")
        .filter(currency=currency, balance_micros__gte=least)
        .order_by("pk")
    ),
    str,
    int,
)


def prepared() -> list[str]:
    return [row[0] for row in ask("SELECT statement FROM pg_prepared_statements", {})]


def test_it_returns_what_the_query_set_would_with_what_was_selected_beside(django_assert_num_queries: Any) -> None:
    organization = make_organization(promo=5)
    wanted = list(Account.objects.filter(currency="USD", balance_micros__gte=5).order_by("pk"))
    with django_assert_num_queries(1):
        found = OF_CURRENCY("USD", 5)
        assert [account.organization for account in found] == [organization]
    columns = [field.attname for field in Account._meta.concrete_fields]
    assert [[getattr(account, name) for name in columns] for account in found] == [
        [getattr(account, name) for name in columns] for account in wanted
    ]
    assert OF_CURRENCY("EUR", 0) == []


def test_a_number_of_any_size_is_the_same_statement() -> None:
    make_organization(promo=2**40)
    for least in (1, 2**17, 2**40, -(2**62)):
        assert [account.balance_micros for account in OF_CURRENCY("USD", max(1, least))] == [2**40]
    assert OF_CURRENCY("USD", 2**40 + 1) == []
    assert len([statement for statement in prepared() if '"balance_micros" >=' in statement]) == 1


def test_json_comes_back_as_it_was_written() -> None:
    price = make_price()
    copied = {"sku", "currency", "unit", "micros_per_unit_hour", "effective_from", "published_at"}
    fresh = PriceVersion(**{name: getattr(price, name) for name in copied})
    fresh.effective_from += timedelta(days=1)
    fresh.model = PriceModel.GRADUATED
    fresh.published_by, fresh.tiers = '100 % {me}, \\ "you"', [[0, price.micros_per_unit_hour], [10, 3]]
    ((pk,),) = ask(f"{insertion(PriceVersion)} RETURNING id", values_of(fresh))
    kept = PriceVersion.objects.get(pk=pk)
    assert (kept.published_by, kept.tiers) == (fresh.published_by, fresh.tiers)
    by_sku = Prepared(lambda sku: PriceVersion.objects.filter(sku=sku).order_by("pk"), str)
    assert by_sku(price.sku)[-1].tiers == fresh.tiers


def test_a_percent_sign_in_a_condition_stays_one() -> None:
    make_price()
    likely = Prepared(lambda sku: PriceVersion.objects.filter(sku__gte=sku).extra(where=["sku LIKE '%%'"]), str)
    assert len(likely("")) == 1


def test_a_value_that_is_in_no_condition_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="somewhere"):
        Prepared(lambda _: Account.objects.all(), str)("USD")


def test_a_refusal_of_the_database_has_djangos_name_and_ends_the_transaction() -> None:
    organization = make_organization()
    account = Account.objects.filter(organization=organization)[0]
    with pytest.raises(IntegrityError, match="account_one_per_kind"), transaction.atomic():
        ask(insertion(Account), values_of(Account(organization=organization, kind=account.kind, currency="USD")))
    assert OF_CURRENCY("USD", 0)


@Asking
def doubled(number: int, *, times: int = 1, limit: int = 100) -> Steps[int]:
    """Double a number so often, each time by asking."""
    for _ in range(times):
        ((number,),) = yield "SELECT 2 * %(number)s::bigint", {"number": number}
        if number > limit:
            raise ValueError(number)
    return number


def test_verbs_run_together_in_one_round_trip_as_they_do_alone(django_assert_num_queries: Any) -> None:
    account = Account.objects.create(kind=Account.Kind.FEES, currency="CHF")
    assert doubled(3, times=3) == 24
    with transaction.atomic(), django_assert_num_queries(5):
        assert together(doubled.steps(1), doubled.steps(2, times=3), doubled.steps(5)) == [2, 16, 10]
    with transaction.atomic():
        assert together(renamed.steps(account, "JPY"), doubled.steps(4)) == [None, 8]
    account.refresh_from_db()
    assert account.currency == "JPY"


@Asking
def renamed(account: Account, currency: str) -> Steps[None]:
    yield (
        "UPDATE billing_account SET currency = %(currency)s::text WHERE id = %(id)s",
        {
            "currency": currency,
            "id": account.pk,
        },
    )


def test_of_verbs_that_run_together_the_first_that_refuses_speaks_and_its_transaction_undoes_the_others() -> None:
    account = Account.objects.create(kind=Account.Kind.FEES, currency="CHF")
    with pytest.raises(ValueError, match=r"^14$"), transaction.atomic():
        together(doubled.steps(7, limit=10), doubled.steps(9, limit=10), renamed.steps(account, "JPY"))
    account.refresh_from_db()
    assert account.currency == "CHF"
    with pytest.raises(IntegrityError, match="account_currency_is_an_iso_code"), transaction.atomic():
        together(doubled.steps(7), renamed.steps(account, "yen"), doubled.steps(7))
    assert doubled(1) == 2, "the connection is as before"


def test_what_was_prepared_is_used_again_in_the_next_transaction() -> None:
    at = timezone.now()
    with transaction.atomic():
        assert ask("SELECT %(at)s::timestamptz", {"at": at}) == [(at,)]
    assert ask("SELECT %(at)s::timestamptz", {"at": at + timedelta(1)}) == [(at + timedelta(1),)]
    with pytest.raises(DataError), transaction.atomic():
        ask("SELECT %(at)s::timestamptz", {"at": "yesterday, or so"})
    assert ask("SELECT %(at)s::timestamptz", {"at": at}) == [(at,)], "after a rollback too"
    assert len([name for name, text in prepared_with_names() if text == "SELECT $1::timestamptz"]) == 2, "by type"


def prepared_with_names() -> list[tuple[str, str]]:
    return [(name, text) for name, text in ask("SELECT name, statement FROM pg_prepared_statements", {})]


def test_what_somebody_else_discarded_is_prepared_anew_after_one_failure() -> None:
    assert doubled(4) == 8
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    with pytest.raises(ProgrammingError, match="does not exist"), transaction.atomic():
        doubled(4)
    assert doubled(4) == 8


def test_a_table_that_has_another_column_since_is_read_anew_after_one_failure() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE thing AS SELECT 1 AS one")
        assert ask("SELECT * FROM thing", {}) == [(1,)]
        cursor.execute("ALTER TABLE thing ADD COLUMN two int")
    with pytest.raises(NotSupportedError, match="cached plan"), transaction.atomic():
        ask("SELECT * FROM thing", {})
    assert ask("SELECT * FROM thing", {}) == [(1, None)]


def test_a_text_with_a_zero_byte_is_refused_whole() -> None:
    with pytest.raises(DataError, match="NUL"):
        ask("SELECT %(text)s::text", {"text": "rm\0 -rf"})
    assert ask("SELECT %(text)s::text", {"text": "rm"}) == [("rm",)]


def test_in_a_transaction_that_is_broken_nothing_is_asked() -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            doubled(4)


@pytest.mark.django_db(transaction=True)
def test_what_is_asked_first_begins_the_transaction_and_its_refusal_undoes_all() -> None:
    account = Account.objects.create(kind=Account.Kind.FEES, currency="CHF")
    with transaction.atomic():
        together(renamed.steps(account, "JPY"), doubled.steps(1))
        transaction.set_rollback(True)
    with pytest.raises(IntegrityError), transaction.atomic():
        together(renamed.steps(account, "JPY"), renamed.steps(account, "yen"))
    account.refresh_from_db()
    assert account.currency == "CHF"


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_was_cut_is_a_failure_and_the_next_one_prepares_its_own() -> None:
    assert doubled(4) == 8
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])
    other.close()
    with pytest.raises(OperationalError), transaction.atomic():
        doubled(4)
    assert doubled(4) == 8
