"""What becomes of budgets: each alert once, the forecast, the end of what runs, and e-mails."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import charging
from billing.models import Charge, UsageSpan
from marketplace import budget_counters, budget_mail, budget_watch, budgets, rentals, spend, tokens
from marketplace.access import Actor
from marketplace.budget_counters import Counter, Measure, whose
from marketplace.errors import BudgetExceeded
from marketplace.models import Budget, BudgetAlert, Organization, Project
from provisioning.models import Instance
from tests.billing.makers import at_the_same_moment
from tests.conftest import Fleet, Rent, Run, order
from tests.marketplace.test_spend import H200_HOUR, budget
from tests.standing import frozen

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LEFT = datetime(2026, 12, 1, tzinfo=UTC) - NOON


clock = frozen(NOON)


def told() -> list[tuple[str, int]]:
    return list(BudgetAlert.objects.order_by("kind", "share").values_list("kind", "share"))


def look() -> int:
    return budget_watch.look(at=timezone.now())


def test_each_share_is_told_once_a_month_and_the_forecast_too(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Run
) -> None:
    rent()
    run_until_idle()
    budget(project, month=10 * H200_HOUR, used_shares=[50, 80, 100], forecast_shares=[100])
    assert (look(), told()) == (1, [("forecast", 100)])
    clock.shift(timedelta(hours=4, minutes=59))
    assert look() == 0
    clock.shift(timedelta(minutes=1))
    assert (look(), look(), told()) == (1, 0, [("forecast", 100), ("used", 50)])
    clock.shift(5 * HOUR)
    assert (look(), told()) == (2, [("forecast", 100), ("used", 50), ("used", 80), ("used", 100)])
    clock.move_to(datetime(2026, 12, 1, 5, tzinfo=UTC))
    assert look() == 2  # half of it is used again, and the forecast reaches it again
    assert BudgetAlert.objects.filter(period=datetime(2026, 12, 1, tzinfo=UTC)).count() == 2


def test_the_forecast_is_used_plus_what_runs_until_the_month_ends(
    clock: time_machine.Traveller, rent: Rent, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    rent(gpus=2)
    run_until_idle()
    clock.shift(3 * HOUR)
    for owner in (acme, project):
        (found,) = budget_counters.measure_money([whose(owner, acme)], timezone.now())
        hours_left = (LEFT - 3 * HOUR) // HOUR
        assert found == Measure(used=6 * H200_HOUR, forecast=6 * H200_HOUR + 2 * H200_HOUR * hours_left)


def test_what_is_used_is_what_orders_are_held_against(
    clock: time_machine.Traveller, rent: Rent, actor: Actor, acme: Organization, project: Project, fleet: Fleet,
    run_until_idle: Run,
) -> None:  # fmt: skip
    maker, _ = tokens.create_token(actor=actor, organization=acme, name="agent", scopes=("rent", "manage"), at=NOON)
    by_token = Actor(user=actor.user, token=maker)
    made, _ = tokens.create_token(actor=by_token, organization=acme, name="child", scopes=("rent",), at=NOON)
    other = Project.objects.select_related("organization").create(organization=acme, name="other")
    for who, where in ((actor, project), (by_token, project), (Actor(user=actor.user, token=made), other)):
        with transaction.atomic():
            rentals.rent(actor=who, project=where, order=order(fleet.h200), at=timezone.now())
    run_until_idle()
    clock.shift(2 * HOUR)
    at = timezone.now()
    owners = [acme, project, other, maker, made]
    with CaptureQueriesContext(connection) as captured:
        found = budget_counters.measure_money([whose(owner, acme) for owner in owners], at)
    assert len(captured) == 2  # One of them for shares of revenue, which are the organization's.
    assert [one.used for one in found] == [spend.committed(owner, acme, at=at).spent_micros for owner in owners]
    assert [one.used for one in found] == [hours * H200_HOUR for hours in (6, 4, 2, 4, 2)]


def test_a_look_takes_as_many_statements_however_many_budgets_there_are(acme: Organization) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            look()
        return len([one for one in captured.captured_queries if "SAVEPOINT" not in one["sql"]])

    budget(acme, month=1)
    few = statements()
    for number in range(30):
        budget(Project.objects.create(organization=acme, name=f"p{number}"), month=number)
    assert (few, statements()) == (6, 6)


@pytest.mark.django_db(transaction=True)
def test_sixteen_looks_at_once_tell_each_share_once(
    rent: Rent, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    rent()
    run_until_idle()
    for owner in (acme, project):
        budget(owner, month=1, used_shares=[50, 80, 100], forecast_shares=[100])
    later = timezone.now() + HOUR

    def one() -> None:
        budget_watch.look(at=later)
        budget_mail.send_due(at=later, limit=100)

    assert at_the_same_moment(*[one] * 16) == ["done"] * 16
    assert BudgetAlert.objects.count() == 8
    budget_mail.send_due(at=later, limit=100)
    assert len(mail.outbox) == 8


def test_what_runs_is_stopped_after_its_grace_with_a_reason_and_nothing_is_charged_after(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Run
) -> None:
    instance = rent()
    run_until_idle()
    budget(project, month=2 * H200_HOUR, action="stop", grace_minutes=30)
    clock.shift(2 * HOUR)
    look()
    assert budget_watch.stop_what_is_over(at=timezone.now(), limit=10) == 0
    clock.shift(timedelta(minutes=30))
    stopped_at = timezone.now()
    assert budget_watch.stop_what_is_over(at=stopped_at, limit=10) == 1
    instance.refresh_from_db()
    assert (instance.phase, instance.reason) == ("stopping", "budget")
    assert "The budget of default for this month is used up" in instance.message
    run_until_idle()
    clock.shift(5 * HOUR)
    charging.charge_due(at=timezone.now())
    span = UsageSpan.objects.get(resource_id=instance.public_id)
    assert (span.ended_at, span.charged_through) == (stopped_at, stopped_at)
    assert sum(Charge.objects.filter(span=span).values_list("amount_micros", flat=True)) == 5 * H200_HOUR // 2
    assert budget_watch.stop_what_is_over(at=timezone.now(), limit=10) == 0
    with pytest.raises(BudgetExceeded):
        rent()


@pytest.mark.parametrize("action", ["alert", "block"])
def test_a_budget_that_does_not_stop_lets_run(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Run, action: str
) -> None:
    instance = rent()
    run_until_idle()
    budget(project, month=1, action=action, grace_minutes=0)
    clock.shift(HOUR)
    look()
    assert Budget.objects.get().passed_at == timezone.now()
    assert budget_watch.stop_what_is_over(at=timezone.now(), limit=10) == 0
    instance.refresh_from_db()
    assert instance.phase == "running"
    if action == "block":
        with pytest.raises(BudgetExceeded):
            rent()
    else:
        rent()


def test_another_projects_instances_and_those_inside_a_reservation_are_not_stopped(
    clock: time_machine.Traveller, rent: Rent, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    mine = rent()
    run_until_idle()
    other = Project.objects.create(organization=acme, name="other")
    budget(other, month=0, action="stop", grace_minutes=0)
    Budget.objects.update(passed_at=NOON)
    assert budget_watch.stop_what_is_over(at=NOON + HOUR, limit=10) == 0
    assert list(budget_watch.running_on(Budget(organization=acme, project=project))) == [mine]
    assert list(budget_watch.running_on(Budget(organization=acme, project=other))) == []


def test_a_budget_that_is_raised_or_a_month_that_begins_ends_the_grace(
    clock: time_machine.Traveller, actor: Actor, rent: Rent, acme: Organization, project: Project, run_until_idle: Run
) -> None:
    rent()
    run_until_idle()
    budget(project, month=H200_HOUR, action="stop")
    clock.shift(HOUR)
    look()
    assert [one.owner for one in budget_watch.coming_stops(acme)] == [project]
    budgets.change(actor=actor, owner=project, organization=acme, amount=99 * H200_HOUR, hourly_micros=None)
    look()
    assert budget_watch.coming_stops(acme) == []
    budgets.change(actor=actor, owner=project, organization=acme, amount=H200_HOUR, hourly_micros=None)
    look()
    assert len(budget_watch.coming_stops(acme)) == 1
    clock.move_to(datetime(2026, 12, 1, 0, 30, tzinfo=UTC))
    look()
    assert budget_watch.coming_stops(acme) == []


def test_an_instance_is_told_of_every_budget_that_will_stop_it_and_of_no_other(
    clock: time_machine.Traveller, actor: Actor, acme: Organization, project: Project, fleet: Fleet,
    run_until_idle: Run,
) -> None:  # fmt: skip
    maker, _ = tokens.create_token(actor=actor, organization=acme, name="agent", scopes=("rent", "manage"), at=NOON)
    by_token = Actor(user=actor.user, token=maker)
    made, _ = tokens.create_token(actor=by_token, organization=acme, name="child", scopes=("rent",), at=NOON)
    with transaction.atomic():
        of_child, of_person = (
            rentals.rent(actor=who, project=project, order=order(fleet.h200), at=timezone.now())
            for who in (Actor(user=actor.user, token=made), actor)
        )
    run_until_idle()
    for owner, month in ((maker, H200_HOUR), (project, H200_HOUR), (acme, 100 * H200_HOUR)):
        budget(owner, month=month, action=Budget.Action.STOP)
    clock.shift(2 * HOUR)
    look()
    of_child, of_person = (Instance.objects.get(pk=one.pk) for one in (of_child, of_person))
    assert {one.owner for one in budget_watch.coming_stops_of(of_child)} == {maker, project}
    assert {one.owner for one in budget_watch.coming_stops_of(of_person)} == {project}


def test_the_message_says_how_much_and_what_follows(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Run
) -> None:
    rent()
    run_until_idle()
    budget(project, month=H200_HOUR, action="stop", grace_minutes=60, used_shares=[100], forecast_shares=[])
    clock.shift(HOUR)
    look()
    assert budget_mail.send_due(at=timezone.now(), limit=10) == 1
    assert budget_mail.send_due(at=timezone.now() + HOUR, limit=10) == 0
    (message,) = mail.outbox
    assert message.to == ["alice@acme.example"]
    assert message.subject == "100 % of the budget of default is used"
    for words in ("$2.49 of $2.49 is used in 2026-11 (UTC)", "stopped at 2026-11-26 14:00 UTC", "/budgets"):
        assert words in message.body, words


def test_something_else_to_count_joins_by_one_entry(
    monkeypatch: pytest.MonkeyPatch, actor: Actor, acme: Organization, project: Project, rent: Rent
) -> None:
    def measured(owners: Any, at: datetime) -> list[Measure]:
        return [Measure(7, 9) for _ in owners]

    widgets: Callable[[int, str], str] = lambda amount, currency: f"{amount} widgets"  # noqa: E731
    words: Any = {"label": "Widgets", "field": "Widgets", "wrong": "Type some."}
    counter = Counter(**words, measure=measured, shown=widgets, written=str, typed=str, read=int)
    monkeypatch.setitem(budget_counters.COUNTERS, "widgets", counter)  # type: ignore[arg-type]
    budgets.change(actor=actor, owner=project, organization=acme, amount=7, hourly_micros=None, counts="widgets")
    assert look() == 4  # 50, 80 and 100 % used, and the forecast
    standing = budgets.of(project, acme, counts="widgets", at=timezone.now())
    assert (standing.used, standing.amount, standing.used_percent) == ("7 widgets", "7 widgets", 100)
    project.refresh_from_db()
    with pytest.raises(BudgetExceeded):
        rent()
    assert Instance.objects.count() == 0
