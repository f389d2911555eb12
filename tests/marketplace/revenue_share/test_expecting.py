"""What shares of revenue will ask counts in the budget and the forecast of the month in which they fall due."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from marketplace import budget_counters, spend
from marketplace.access import Actor
from marketplace.budget_counters import whose
from marketplace.errors import BudgetExceeded
from marketplace.models import Organization, Project, RevenuePeriod, RevenueStatement, User
from marketplace.revenue_share import amounts, closing, expecting, periods, statements
from tests.agreed import REVENUE, share_revenue
from tests.conftest import make_organization
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.test_spend import budget

pytestmark = pytest.mark.django_db
MARCH = datetime(2026, 3, 10, 12, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, 0, 1, tzinfo=UTC)
DUE = datetime(2026, 4, 6, tzinfo=UTC)
USD = 1_000_000
Share = Callable[..., RevenuePeriod]


@pytest.fixture
def share(acme: Organization, alice: User, charlie: User) -> Iterator[Share]:
    """Acme shares its revenue of March, which falls due in April; what differs from 15 %, 100 at least, is named."""
    seller = make_organization("Models AS", charlie, credit_micros=0)
    Organization.objects.filter(pk=seller.pk).update(is_supplier=True)
    seller.refresh_from_db()

    def made(**revenue: Any) -> RevenuePeriod:
        share_revenue(seller, acme, alice, MARCH, **revenue)
        periods.open_due(at=MARCH, limit=9)
        return RevenuePeriod.objects.select_related("organization", "version__contract").get()

    with time_machine.travel(MARCH, tick=False):
        yield made


def state(actor: Actor, period: RevenuePeriod, micros: int) -> None:
    statements.submit(
        actor=actor, period=period, revenue_micros=micros, lines=[], source=RevenueStatement.Source.API, at=MARCH
    )


def expected(acme: Organization, at: datetime) -> tuple[int, int, int]:
    """What the terms of budgets, the forecast and the question itself say alike."""
    (money,) = budget_counters.measure_money([whose(acme, acme)], at)
    committed = spend.committed(acme, acme, at=at)
    return expecting.in_month([acme.pk], at=at).get(acme.pk, 0), committed.shares_micros, money.forecast - money.used


def test_a_period_counts_in_the_month_in_which_it_is_due(share: Share, acme: Organization, actor: Actor) -> None:
    period = share()
    assert expected(acme, MARCH) == (0, 0, 0)
    assert expected(acme, APRIL) == (100 * USD,) * 3  # nothing was stated: the minimum
    state(actor, period, 2_000 * USD)
    assert expected(acme, APRIL) == (300 * USD,) * 3


def test_what_is_charged_in_the_end_is_what_was_expected_and_counts_once(
    share: Share, acme: Organization, actor: Actor
) -> None:
    state(actor, share(), 2_000 * USD)
    before = spend.committed(acme, acme, at=DUE)
    assert closing.close_due(at=DUE, limit=9) == 1
    after = spend.committed(acme, acme, at=DUE + timedelta(seconds=1))
    assert (before.spent_micros, before.shares_micros, after.spent_micros, after.shares_micros) == (
        0, 300 * USD, 300 * USD, 0
    )  # fmt: skip
    assert before.month_micros == after.month_micros


def test_a_share_is_of_the_organization_and_of_no_project_or_stranger(
    share: Share, acme: Organization, project: Project, charlie: User
) -> None:
    share()
    assert spend.committed(project, acme, at=APRIL).shares_micros == 0
    (money,) = budget_counters.measure_money([whose(project, acme)], APRIL)
    assert money.forecast == 0
    other = Organization.objects.get(name="Other")
    assert expecting.in_month([other.pk], at=APRIL) == {}


def test_an_order_that_leaves_no_room_for_the_share_is_refused_with_the_sum(
    share: Share, acme: Organization, project: Project
) -> None:
    share()
    budget(acme, month=101 * USD)
    project.refresh_from_db()
    project.organization.refresh_from_db()
    spend.check(project=project, token=None, worst_case_micros=USD, hourly_micros=0, at=APRIL)
    with pytest.raises(BudgetExceeded) as refused:
        spend.check(project=project, token=None, worst_case_micros=2 * USD, hourly_micros=0, at=APRIL)
    assert str(refused.value) == (
        "It would pass the monthly budget of the organization: $0.00 used since 2026-04-01 (UTC) + $0.00 set aside + "
        "$100.00 for shares of revenue that fall due this month + $2.00 for this = $102.00 of $101.00."
    )


def test_the_billing_overview_shows_the_share_in_its_forecast(share: Share, alice: User) -> None:
    share()
    with time_machine.travel(APRIL, tick=False):
        page = read(browser(alice).get(reverse("balance")))
    assert faults(page) == []
    assert "Shares of revenue that fall due this month $100.00 Forecast for the month $100.00" in page.text


def test_any_number_of_owners_asks_one_question_more(
    share: Share, acme: Organization, django_assert_num_queries: Any
) -> None:
    share()
    with django_assert_num_queries(2):
        budget_counters.measure_money([whose(acme, acme)] * 20, APRIL)


terms = st.fixed_dictionaries(
    {
        "share_bps": st.integers(0, 10_000), "minimum_micros": st.integers(0, 10**9),
        "cap_micros": st.none() | st.integers(10**9, 10**10), "true_up": st.sampled_from(["none", "metered_cost"]),
        "if_overdue": st.sampled_from(["last_statement", "minimum", "metered_cost"]),
    }
)  # fmt: skip
micros = st.integers(0, 10**11)


@given(terms, st.none() | micros, st.none() | micros, micros)
def test_what_is_asked_first_is_between_minimum_and_cap_and_goes_by_a_statement_if_there_is_one(
    said: dict[str, Any], stated: int | None, last: int | None, metered: int
) -> None:
    found = amounts.first(REVENUE | said, said_micros=stated, last_micros=last, metered_micros=metered)
    assert said["minimum_micros"] <= found.due.total_micros
    assert found.due.total_micros <= (said["cap_micros"] or found.due.total_micros)
    if stated is not None:
        assert (found.rule, found.revenue_micros) == ("", stated)
    elif said["if_overdue"] == "metered_cost":
        assert found.due.total_micros >= min(metered, said["cap_micros"] or metered)
