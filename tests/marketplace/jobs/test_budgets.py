"""Budgets that count results: those that were accepted and paid for, of whoever submitted the job."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from marketplace import budget_counters, budgets, spend, tokens
from marketplace.access import Actor
from marketplace.budget_counters import Measure, whose
from marketplace.errors import BadOrder, BudgetExceeded
from marketplace.models import ApiToken, Organization, Project
from marketplace.models.budgets import OUTCOMES
from tests.billing.makers import USD, make_organization, pay_in
from tests.billing.results import item, reverse, set_aside, settle
from tests.marketplace import test_budget_watch
from tests.marketplace.jobs.conftest import Works
from tests.standing import frozen

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)


clock = frozen(NOON)


@pytest.fixture
def token(clock: time_machine.Traveller, actor: Actor, acme: Organization) -> ApiToken:
    made, _ = tokens.create_token(
        actor=actor, organization=acme, name="agent", scopes=("rent", "manage"), at=timezone.now()
    )
    return made


@pytest.fixture
def paid(token: ApiToken, works: Works, acme: Organization, project: Project) -> str:
    """A job of the token's, of whose results four were accepted: one last month, one a week ago, two today. The last
    was given back whole, and of the one before it a part."""
    pay_in(acme, 100 * USD)
    job = replace(works, actor=Actor(user=works.actor.user, token=token)).one()
    set_aside(acme, 10 * USD, resource_id=job.public_id)
    made = [
        settle(acme, item(f"task {number}", project=project.public_id), resource_id=job.public_id, at=at)
        for number, at in enumerate((NOON - 30 * DAY, NOON - 7 * DAY, NOON, NOON))
    ]
    reverse(made[2], USD // 2, at=NOON)
    reverse(made[3], at=NOON)
    return job.public_id


def measured(*owners: Organization | Project | ApiToken, organization: Organization) -> list[Measure]:
    return budget_counters.measure_outcomes([whose(owner, organization) for owner in owners], NOON)


def test_results_of_this_month_count_less_what_was_given_back_whole(
    paid: str, token: ApiToken, acme: Organization, project: Project
) -> None:
    # One of the last 24 hours, and four days and a half are left.
    assert measured(acme, project, token, organization=acme) == [Measure(2, 6)] * 3


def test_of_others_nothing_counts(paid: str, actor: Actor, acme: Organization) -> None:
    other, _ = tokens.create_token(actor=actor, organization=acme, name="idle", scopes=("rent",), at=timezone.now())
    empty = Project.objects.create(organization=acme, name="empty")
    stranger: Organization = make_organization()
    assert measured(other, empty, organization=acme) == [Measure(0, 0)] * 2
    assert measured(stranger, organization=stranger) == [Measure(0, 0)]


def test_the_money_of_results_counts_for_the_token_that_submitted_the_job(
    paid: str, token: ApiToken, acme: Organization
) -> None:
    spent = spend.committed(token, acme, at=NOON).spent_micros
    assert spent == spend.committed(acme, acme, at=NOON).spent_micros > 0
    (money,) = budget_counters.measure_money([whose(token, acme)], NOON)
    assert money.used == spent


def test_a_budget_of_results_is_told_of_and_blocks_like_one_of_money(
    paid: str, works: Works, actor: Actor, acme: Organization, project: Project
) -> None:
    budgets.change(actor=actor, owner=project, organization=acme, amount=2, hourly_micros=None, counts=OUTCOMES)
    assert test_budget_watch.look() == 4  # 50, 80 and 100 % used, and the forecast
    standing = next(one for one in budgets.listed(actor, acme, at=NOON) if one.counts == OUTCOMES)
    assert (standing.used, standing.amount, standing.used_percent) == ("2 results", "2 results", 100)
    project.refresh_from_db()
    with pytest.raises(BudgetExceeded):
        spend.check(project=project, token=None, worst_case_micros=0, hourly_micros=0, at=NOON)
    assert {one.counts for one in budgets.listed(actor, acme, at=NOON) if one.owner != project} == {"money"}


@pytest.mark.parametrize("text", ["1.5", "-1", "many", "1e3", "９", "1" * 10])
def test_a_number_of_results_is_whole(text: str, acme: Organization, project: Project) -> None:
    with pytest.raises(BadOrder) as refused:
        budgets.read(budgets.of(project, acme, counts=OUTCOMES, at=NOON), text)
    assert str(refused.value) == "Type a whole number such as 1000."
