"""Budgets in the browser: set, seen with bars and alerts, and told of where what runs is going to be stopped."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from marketplace import budget_watch, spend
from marketplace.models import Budget, Organization, Project
from provisioning.models import Instance
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.test_spend import H200_HOUR, budget

SETTINGS = {"action": "block", "grace_minutes": "60", "used_shares": "50, 80, 100", "forecast_shares": "100"}


def test_a_budget_is_set_and_taken_away(owner: Client, project: Project) -> None:
    path = reverse("budget", args=[project.public_id])
    assert faults(read(owner.get(path))) == []
    form = {"monthly": "1,000.50", "hourly": "2", "action": "stop", "grace_minutes": "30", "used_shares": "70, 90 %",
            "forecast_shares": ""}  # fmt: skip
    assert owner.post(path, form).status_code == 302
    project.refresh_from_db()
    made = spend.budgets_of(project, project.organization).get()
    assert (made.amount, made.action, made.grace_minutes, made.used_shares, made.forecast_shares) == (
        1_000_500_000, "stop", 30, [70, 90], []
    )  # fmt: skip
    assert (project.has_monthly_budget, project.hourly_budget_micros) == (True, 2_000_000)
    page = read(owner.get(reverse("budgets")))
    assert faults(page) == []
    for words in ("$1,000.50", "stop what runs", "after 30 minutes", "No alerts"):
        assert words in page.text, words
    owner.post(path, SETTINGS | {"monthly": "", "hourly": ""})
    project.refresh_from_db()
    assert not project.has_budget
    assert Budget.objects.count() == 0


@pytest.mark.parametrize(
    "change",
    [{"monthly": "much"}, {"monthly": "-1"}, {"monthly": "0.0000001"}, {"monthly": "NaN"}, {"monthly": "9" * 30},
     {"action": "explode"}, {"grace_minutes": "-5"}, {"grace_minutes": "soon"}, {"used_shares": "50, 50"},
     {"used_shares": "0"}, {"forecast_shares": "lots"}, {"used_shares": "9999"}],
)  # fmt: skip
def test_a_bad_budget_changes_nothing(owner: Client, project: Project, change: dict[str, str]) -> None:
    form = SETTINGS | {"monthly": "5", "hourly": "5"} | change
    answer = owner.post(reverse("budget", args=[project.public_id]), form)
    assert answer.status_code == 422
    assert faults(read(answer)) == []
    project.refresh_from_db()
    assert not project.has_budget


def test_the_pages_tell_what_is_used_what_was_sent_and_what_is_stopped_when(
    owner: Client, running: Instance, acme: Organization, project: Project
) -> None:
    budget(project, month=H200_HOUR // 1000, action="stop")
    at = timezone.now() + timedelta(minutes=10)
    budget_watch.look(at=at)
    page = read(owner.get(reverse("budgets")))
    assert faults(page) == []
    for words in ("used up", "100 % used", "The forecast reaches 100 %", "on its way", "What runs on it is stopped at"):
        assert words in page.text, words
    for name, ids in (("balance", []), ("instances", []), ("instance", [running.public_id])):
        assert "The budget of default is used up." in read(owner.get(reverse(name, args=ids))).text, name


def test_a_budget_of_results_stands_beside_the_one_of_money(owner: Client, project: Project) -> None:
    path = reverse("budget", args=[project.public_id])
    assert read(owner.get(path)).all("a", href="?counts=outcomes")
    page = read(owner.get(f"{path}?counts=outcomes"))
    assert faults(page) == []
    assert "Results that are paid for in a calendar month" in page.text
    owner.post(path, SETTINGS | {"monthly": "50", "hourly": ""})
    assert owner.post(f"{path}?counts=outcomes", SETTINGS | {"monthly": "1,200", "hourly": ""}).status_code == 302
    assert owner.post(f"{path}?counts=outcomes", SETTINGS | {"monthly": "2.5", "hourly": ""}).status_code == 422
    assert owner.get(f"{path}?counts=widgets").status_code == 404
    made = spend.budgets_of(project, project.organization).order_by("counts")
    assert [(one.counts, one.amount) for one in made] == [("money", 50_000_000), ("outcomes", 1_200)]
    budget_watch.look(at=timezone.now())
    page = read(owner.get(reverse("budgets")))
    assert faults(page) == []
    for words in ("$50.00", "1,200 results", "0 results"):
        assert words in page.text, words


def test_the_page_asks_as_often_however_many_budgets_there_are(owner: Client, acme: Organization) -> None:
    def questions() -> int:
        owner.get(reverse("budgets"))
        with CaptureQueriesContext(connection) as captured:
            owner.get(reverse("budgets"))
        return len(captured)

    few = questions()
    for number in range(10):
        made: Any = Project.objects.create(organization=acme, name=f"p{number}")
        budget(made, month=number)
    assert questions() == few
