"""Statements that are planned once: they answer what the query sets would, and nothing is lost on the way."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
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
    assert OF_CURRENCY("USD", 0), "the next statement is prepared anew"


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
    assert len([statement for statement in prepared() if statement == "SELECT $1::timestamptz"]) == 1
    assert connection.connection.prepare_threshold
