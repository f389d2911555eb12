"""The worst case of an order against budgets: the arithmetic, whose budgets count, and two orders at once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import charging
from billing.models import Outcome
from marketplace import rentals, spend, tokens, volumes
from marketplace.access import Actor
from marketplace.budget_counters import whose
from marketplace.errors import BudgetExceeded
from marketplace.models import ApiToken, Budget, Organization, Project
from provisioning.models import Instance, Volume
from tests.billing.makers import at_the_same_moment, make_organization
from tests.conftest import Fleet, Rent, Storage, order
from tests.marketplace.api.tables import every_row
from tests.standing import frozen

pytestmark = pytest.mark.django_db

H200_HOUR = 2_490_000
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def budget(
    owner: Organization | Project | ApiToken, *, month: int | None = None, hour: int | None = None, **settings: Any
) -> None:
    """Give an owner budgets, in place of those that it has; what differs from the ordinary settings is named."""
    organization = organization_of(owner)
    spend.budgets_of(owner, organization).delete()
    if month is not None:
        key = whose(owner, organization)
        Budget.objects.create(
            organization=organization, project_id=key.project_id, token_id=key.token_id, amount=month, **settings
        )
    type(owner)._default_manager.filter(pk=owner.pk).update(
        has_monthly_budget=month is not None, hourly_budget_micros=hour
    )
    owner.refresh_from_db()


def organization_of(owner: Organization | Project | ApiToken) -> Organization:
    if isinstance(owner, ApiToken):
        return owner.membership.organization
    return owner.organization if isinstance(owner, Project) else owner


clock = frozen(NOON)


@pytest.fixture
def with_token(actor: Actor, acme: Organization) -> Actor:
    """Alice's program, by a token of hers."""
    token, _ = tokens.create_token(
        actor=actor, organization=acme, name="agent", scopes=("rent", "manage"), at=timezone.now()
    )
    return Actor(user=actor.user, token=token)


def rent_as(actor: Actor, project: Project, fleet: Fleet, **overrides: Any) -> Instance:
    with transaction.atomic():
        return rentals.rent(actor=actor, project=project, order=order(fleet.h200, **overrides), at=timezone.now())


def test_what_fits_the_budget_to_the_micro_is_let_in(rent: Rent, project: Project) -> None:
    budget(project, month=2 * H200_HOUR, hour=2 * H200_HOUR)
    rent(gpus=2)
    with pytest.raises(BudgetExceeded):
        rent()


def test_a_refusal_shows_the_arithmetic_and_holds_nothing(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Callable[[], None]
) -> None:
    rent(gpus=2)
    run_until_idle()
    clock.shift(timedelta(minutes=30))
    budget(project, month=7_000_000)
    before = every_row()
    with pytest.raises(BudgetExceeded) as refusal:
        rent()
    assert str(refusal.value) == (
        "It would pass the monthly budget of the project default: $2.49 used since 2026-11-01 (UTC) + $2.49 set aside "
        "+ $2.49 for this = $7.47 of $7.00."
    )
    assert every_row() == before


def test_charging_moves_nothing_between_used_and_set_aside(
    clock: time_machine.Traveller, rent: Rent, project: Project, acme: Organization, run_until_idle: Callable[[], None]
) -> None:
    rent(gpus=2)
    run_until_idle()
    clock.shift(timedelta(minutes=20))
    before = spend.committed(project, acme, at=timezone.now())
    charging.charge_due(at=timezone.now())
    after = spend.committed(project, acme, at=timezone.now())
    assert (before.spent_micros, before.aside_micros) == (1_660_000, 3_320_000)
    assert before == after


def test_after_its_first_hour_an_instance_goes_on_and_nothing_new_starts(
    clock: time_machine.Traveller, rent: Rent, project: Project, run_until_idle: Callable[[], None], fleet: Fleet
) -> None:
    running = rent()
    run_until_idle()
    budget(project, month=2 * H200_HOUR)
    clock.shift(timedelta(hours=3))
    fleet.sync()
    with pytest.raises(BudgetExceeded):
        rent()
    running.refresh_from_db()
    assert running.phase == "running"


def test_the_month_is_a_calendar_month_of_utc(
    clock: time_machine.Traveller, rent: Rent, project: Project, acme: Organization, run_until_idle: Callable[[], None]
) -> None:
    clock.move_to(datetime(2026, 11, 30, 22, tzinfo=UTC))
    rent()
    run_until_idle()
    clock.shift(timedelta(hours=3))
    found = spend.committed(project, acme, at=timezone.now())
    assert (found.since, found.spent_micros) == (datetime(2026, 12, 1, tzinfo=UTC), H200_HOUR)


def test_an_hourly_budget_counts_what_is_held(rent: Rent, acme: Organization, project: Project) -> None:
    budget(acme, hour=3 * H200_HOUR)
    project.organization.refresh_from_db()
    rent(gpus=2)
    with pytest.raises(BudgetExceeded, match=r"\$4.98 an hour committed \+ \$4.98 for this = \$9.96 of \$7.47 an hour"):
        rent(gpus=2)


def test_a_token_is_held_to_its_own_budget_and_to_its_makers(
    actor: Actor, with_token: Actor, acme: Organization, project: Project, fleet: Fleet
) -> None:
    assert with_token.token is not None
    budget(with_token.token, month=2 * H200_HOUR)
    made, _ = tokens.create_token(
        actor=with_token, organization=acme, name="child", scopes=("rent",), at=timezone.now()
    )
    rent_as(with_token, project, fleet)
    rent_as(Actor(user=actor.user, token=made), project, fleet)
    for one in (with_token, Actor(user=actor.user, token=made)):
        with pytest.raises(BudgetExceeded, match="the token agent"):
            rent_as(one, project, fleet)
    rent_as(actor, project, fleet)


def test_another_projects_use_does_not_count(
    rent: Rent, project: Project, acme: Organization, actor: Actor, fleet: Fleet
) -> None:
    other = Project.objects.select_related("organization").create(organization=acme, name="other")
    budget(other, month=H200_HOUR, hour=H200_HOUR)
    rent(gpus=4)
    rent_as(actor, other, fleet)
    with pytest.raises(BudgetExceeded):
        rent_as(actor, other, fleet)


def test_volumes_are_held_to_the_budgets_of_a_month(storage: Storage, project: Project) -> None:
    first_hour = 100 * 100  # GiB, micros
    budget(project, month=first_hour - 1)
    with pytest.raises(BudgetExceeded, match=r"\$0\.01 for this"):
        storage.make()
    assert not Volume.objects.exists()
    budget(project, month=first_hour, hour=0)
    data = storage.make()
    budget(project, month=2 * first_hour - 1)
    with pytest.raises(BudgetExceeded), transaction.atomic():
        volumes.resize(actor=storage.actor, volume=data, size_gib=200, at=timezone.now())
    budget(project, month=first_hour - 1)
    with pytest.raises(BudgetExceeded):
        volumes.snapshot(actor=storage.actor, volume=data, name="copy", at=timezone.now())
    assert Volume.objects.get().size_gib == 100


def test_a_volume_is_restored_within_the_budgets_of_a_month(
    clock: time_machine.Traveller, storage: Storage, project: Project
) -> None:
    first_hour = 100 * 100
    data = storage.make()
    volumes.delete(actor=storage.actor, volume=data, at=timezone.now())
    clock.shift(timedelta(hours=2))  # These cost what it would have cost, as it is restored.
    budget(project, month=3 * first_hour - 1)
    data = storage.settle(data)
    with pytest.raises(BudgetExceeded), transaction.atomic():
        volumes.restore(actor=storage.actor, volume=data, at=timezone.now())
    assert Volume.objects.get().state == Volume.State.DELETING
    budget(project, month=3 * first_hour)
    volumes.restore(actor=storage.actor, volume=data, at=timezone.now())
    assert Volume.objects.get().state != Volume.State.DELETING


def test_what_is_set_aside_for_volumes_and_what_they_cost_counts_for_the_token_that_made_them(
    clock: time_machine.Traveller, storage: Storage, with_token: Actor, project: Project
) -> None:
    first_hour = 100 * 100
    assert with_token.token is not None
    budget(with_token.token, month=3 * first_hour)
    storage.make("hers")
    storage.actor = with_token
    storage.make()
    assert spend.committed(with_token.token, project.organization, at=timezone.now()).month_micros == first_hour
    assert spend.committed(project, project.organization, at=timezone.now()).month_micros == 2 * first_hour
    clock.shift(timedelta(hours=2, seconds=1))
    with pytest.raises(BudgetExceeded, match="the token agent"):
        storage.make("more")


def test_a_start_again_is_held_to_the_budget(
    rent: Rent, actor: Actor, project: Project, run_until_idle: Callable[[], None]
) -> None:
    stopped = rent()
    run_until_idle()
    stopped.refresh_from_db()
    rentals.stop(actor=actor, instance=stopped, at=timezone.now())
    run_until_idle()
    budget(project, hour=H200_HOUR - 1)
    stopped.refresh_from_db()
    with pytest.raises(BudgetExceeded):
        rentals.start(actor=actor, instance=stopped, at=timezone.now())
    stopped.refresh_from_db()
    assert (stopped.phase, stopped.quota_held) == ("stopped", 0)


def test_no_budget_costs_no_statement(project: Project, django_assert_num_queries: Any) -> None:
    assert project.organization
    with django_assert_num_queries(0):
        spend.check(project=project, token=None, worst_case_micros=1, hourly_micros=1, at=NOON)


@pytest.mark.django_db(transaction=True)
def test_two_orders_at_once_cannot_both_pass(actor: Actor, project: Project, fleet: Fleet) -> None:
    budget(project, month=H200_HOUR)

    def one() -> None:
        rent_as(actor, Project.objects.select_related("organization").get(pk=project.pk), fleet)

    assert at_the_same_moment(one, one) == ["BudgetExceeded", "done"]


def test_what_results_cost_an_organization_lately_comes_from_an_index_whatever_it_ever_paid(acme: Organization) -> None:
    now = timezone.now()
    Outcome.objects.bulk_create(
        Outcome(
            key=f"{owner} {n}", kind="outcome", organization_id=owner, resource_id="job_1", version="ctv_1",
            subject=f"{n}", name="Frame", currency="USD", unit="frames", quantity=1, micros_per_unit=1,
            asked_micros=1, amount_micros=1, promo_micros=0, shares=[], at=now - n * step,
        )
        for owner, step in ((acme.pk, timedelta(hours=1)), (make_organization().pk, timedelta(seconds=1)))
        for n in range(2_000)
    )  # fmt: skip
    with connection.cursor() as cursor, CaptureQueriesContext(connection) as asked:
        cursor.execute("ANALYZE billing_outcome")
        ((micros, _),) = spend.cost(acme, [(now - timedelta(hours=5), now)], at=now)
    assert micros == 5
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {asked.captured_queries[-1]['sql']}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "outcome_of_an_organization" in plan
    assert "Seq Scan on billing_outcome" not in plan
