"""What a project and its organization may hold at once."""

from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from marketplace import tenants
from marketplace.access import Actor
from marketplace.models import Organization, Project
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Quota, QuotaHold
from tests.billing.makers import at_the_same_moment

pytestmark = pytest.mark.django_db

H200_MICROS = 2_490_000


def take(project: Project, gpus: int, *, holder: str = "", gpu_model: str = "H200", **words: Any) -> str:
    """Take GPUs for a holder, who is new unless named; return the holder."""
    holder = holder or f"ins_{QuotaHold.objects.count()}_{gpus}"
    quotas.take(
        holder=holder, project_id=project.pk, gpu_model=gpu_model, gpus=gpus, micros_per_hour=gpus * H200_MICROS,
        **words,
    )  # fmt: skip
    return holder


def held(owner: Project | Organization, **words: str) -> int:
    mine = Quota.objects.filter(**quotas.FIRST | words)
    found = mine.get(project=owner) if isinstance(owner, Project) else mine.get(organization=owner, project=None)
    return found.held


@pytest.fixture
def other(actor: Actor, acme: Organization) -> Project:
    """Another project of Acme."""
    return tenants.create_project(actor=actor, organization=acme, name="other")


def test_what_is_taken_is_held_of_project_and_organization_until_it_is_given_back(
    project: Project, acme: Organization
) -> None:
    five, three = take(project, 5), take(project, 3)
    assert (held(project), held(acme)) == (8, 8)
    quotas.give_back(holder=five)
    assert (held(project), held(acme)) == (3, 3)
    quotas.give_back(holder=three)
    assert (held(project), held(acme), QuotaHold.objects.count()) == (0, 0, 0)


def test_the_limit_itself_may_be_held(project: Project) -> None:
    take(project, quotas.DEFAULT_LIMIT)
    assert held(project) == quotas.DEFAULT_LIMIT


def test_one_more_than_the_limit_is_refused_with_the_numbers_and_nothing_is_held(
    project: Project, acme: Organization
) -> None:
    take(project, 10)
    with pytest.raises(QuotaExceeded) as refusal:
        take(project, 7)
    assert (refusal.value.wanted, refusal.value.held, refusal.value.limit) == (7, 10, 16)
    assert not refusal.value.is_organization
    assert (held(project), held(acme), QuotaHold.objects.count()) == (10, 10, 1)


def test_many_projects_share_what_their_organization_may_hold(
    project: Project, other: Project, acme: Organization
) -> None:
    quotas.set_limit(organization_id=acme.pk, limit=20)
    take(project, 16)
    with pytest.raises(QuotaExceeded) as refusal:
        take(other, 5)
    assert (refusal.value.is_organization, refusal.value.held, refusal.value.limit) == (True, 16, 20)
    assert held(other) == 0
    take(other, 4)
    assert (held(project), held(other), held(acme)) == (16, 4, 20)


def test_a_limit_of_a_model_and_a_market_counts_only_those(project: Project) -> None:
    quotas.set_limit(project_id=project.pk, limit=4, gpu_model="H200", market="spot")
    spot = take(project, 4, market="spot")
    take(project, 2)
    take(project, 2, gpu_model="L40S", market="spot")
    with pytest.raises(QuotaExceeded) as refusal:
        take(project, 1, market="spot")
    assert (refusal.value.gpu_model, refusal.value.market, refusal.value.held) == ("H200", "spot", 4)
    assert "the project's quota for H200 for spot: 4 of 4 are held" in str(refusal.value)
    assert held(project) == 8
    quotas.give_back(holder=spot)
    assert (held(project), held(project, gpu_model="H200", market="spot")) == (4, 0)


def test_spend_per_hour_is_a_limit_like_any_other(project: Project, acme: Organization) -> None:
    spend = {"unit": Quota.Unit.MICROS_PER_HOUR}
    quotas.set_limit(organization_id=acme.pk, limit=3 * H200_MICROS, **spend)
    two = take(project, 2)
    with pytest.raises(QuotaExceeded) as refusal:
        take(project, 2)
    assert (refusal.value.unit, refusal.value.wanted, refusal.value.held) == (
        "micros_per_hour", 2 * H200_MICROS, 2 * H200_MICROS,
    )  # fmt: skip
    assert held(acme, **spend) == 2 * H200_MICROS
    quotas.give_back(holder=two)
    assert held(acme, **spend) == 0


def test_a_new_limit_counts_what_is_held_already_and_gives_it_back_too(project: Project) -> None:
    spot, demand = take(project, 3, market="spot"), take(project, 2)
    quotas.set_limit(project_id=project.pk, limit=1, market="spot")
    assert held(project, market="spot") == 3
    with pytest.raises(QuotaExceeded):
        take(project, 1, market="spot")
    for holder in (spot, demand):
        quotas.give_back(holder=holder)
    assert held(project, market="spot") == held(project) == 0


def test_a_limit_that_is_removed_refuses_no_more(project: Project) -> None:
    quota = quotas.set_limit(project_id=project.pk, limit=0, gpu_model="H200")
    with pytest.raises(QuotaExceeded):
        take(project, 1)
    quotas.remove(quota=quota)
    take(project, 1)
    assert held(project) == 1


def test_a_project_without_a_row_has_the_default_limits(project: Project, acme: Organization) -> None:
    Quota.objects.all().delete()
    take(project, quotas.DEFAULT_LIMIT)
    with pytest.raises(QuotaExceeded):
        take(project, 1)
    assert {quota.limit for quota in acme.quotas.all()} == {
        quotas.DEFAULT_LIMIT,
        quotas.ORGANIZATION_DEFAULT_LIMIT,
    }


def test_a_lower_limit_stops_nothing_and_refuses_more(project: Project) -> None:
    take(project, 4)
    quotas.set_limit(project_id=project.pk, limit=2)
    assert held(project) == 4
    with pytest.raises(QuotaExceeded):
        take(project, 1)


def test_a_raised_limit_is_used_at_once(project: Project, acme: Organization) -> None:
    quotas.set_limit(project_id=project.pk, limit=100)
    quotas.set_limit(organization_id=acme.pk, limit=100)
    take(project, 100)
    assert held(project) == 100


def test_giving_back_twice_changes_nothing(project: Project) -> None:
    one, two = take(project, 1), take(project, 2)
    for _ in range(2):
        quotas.give_back(holder=two)
    assert held(project) == 1
    quotas.give_back(holder=one)
    assert held(project) == 0


def test_one_holder_holds_once(project: Project) -> None:
    take(project, 1, holder="ins_a")
    with pytest.raises(IntegrityError, match="holder"), transaction.atomic():
        take(project, 1, holder="ins_a")
    assert held(project) == 1


def test_a_count_that_is_wrong_is_found(project: Project) -> None:
    take(project, 2)
    assert quotas.miscounted() == []
    Quota.objects.filter(project=project).update(held=3)
    assert [quota.project for quota in quotas.miscounted()] == [project]


RACERS = range(16)


@pytest.mark.django_db(transaction=True)
def test_sixteen_at_once_take_no_more_than_there_is(project: Project, other: Project, acme: Organization) -> None:
    quotas.set_limit(organization_id=acme.pk, limit=11)
    quotas.set_limit(organization_id=acme.pk, limit=9, gpu_model="H200")

    def act(number: int) -> None:
        with transaction.atomic():
            take((project, other)[number % 2], 1, holder=f"ins_{number}")

    assert at_the_same_moment(*(partial(act, number) for number in RACERS)) == ["QuotaExceeded"] * 7 + ["done"] * 9
    assert held(acme) == held(project) + held(other) == held(acme, gpu_model="H200") == 9
    assert quotas.miscounted() == []


@pytest.mark.django_db(transaction=True)
def test_the_sums_stay_exact_while_limits_are_made_and_removed(
    project: Project, other: Project, acme: Organization
) -> None:
    """Takers, givers and a capacity manager at once; a count that missed one would stay wrong for ever."""

    def act(number: int) -> None:
        mine = (project, other)[number % 2]
        if number % 4 == 3:
            quotas.set_limit(organization_id=acme.pk, limit=500, market=("spot", "reserved")[number % 8 > 3])
            return
        for turn in range(6):
            holder = f"ins_{number}_{turn}"
            with transaction.atomic():
                take(mine, 1, holder=holder, market=("spot", "reserved", "on_demand")[turn % 3])
            if turn % 2:
                with transaction.atomic():
                    quotas.give_back(holder=holder)

    for owner in ({"project_id": project.pk}, {"project_id": other.pk}, {"organization_id": acme.pk}):
        quotas.set_limit(limit=1000, **owner)
    assert at_the_same_moment(*(partial(act, number) for number in RACERS)) == ["done"] * 16
    assert quotas.miscounted() == []
    assert held(acme) == QuotaHold.objects.count() == 12 * 3
