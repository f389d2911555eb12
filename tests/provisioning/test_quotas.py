"""What a project may hold at once."""

import pytest
from django.db import IntegrityError, transaction

from marketplace.models import Project
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Quota

pytestmark = pytest.mark.django_db


def held(project: Project) -> int:
    return Quota.objects.get(project=project).held


def test_what_is_taken_is_held_until_it_is_given_back(project: Project) -> None:
    quotas.take(project_id=project.pk, gpus=5)
    quotas.take(project_id=project.pk, gpus=3)
    assert held(project) == 8
    quotas.give_back(project_id=project.pk, gpus=5)
    assert held(project) == 3


def test_the_limit_itself_may_be_held(project: Project) -> None:
    quotas.take(project_id=project.pk, gpus=quotas.DEFAULT_LIMIT)
    assert held(project) == quotas.DEFAULT_LIMIT


def test_one_more_than_the_limit_is_refused_with_the_numbers_and_nothing_is_held(project: Project) -> None:
    quotas.take(project_id=project.pk, gpus=10)
    with pytest.raises(QuotaExceeded) as refusal:
        quotas.take(project_id=project.pk, gpus=7)
    assert (refusal.value.wanted, refusal.value.held, refusal.value.limit) == (7, 10, 16)
    assert held(project) == 10


def test_a_project_without_a_row_has_the_default_limit(project: Project) -> None:
    Quota.objects.all().delete()
    quotas.take(project_id=project.pk, gpus=quotas.DEFAULT_LIMIT)
    with pytest.raises(QuotaExceeded):
        quotas.take(project_id=project.pk, gpus=1)


def test_a_lower_limit_stops_nothing_and_refuses_more(project: Project) -> None:
    quotas.take(project_id=project.pk, gpus=4)
    quotas.set_limit(project_id=project.pk, limit=2)
    assert held(project) == 4
    with pytest.raises(QuotaExceeded):
        quotas.take(project_id=project.pk, gpus=1)


def test_a_raised_limit_is_used_at_once(project: Project) -> None:
    quotas.set_limit(project_id=project.pk, limit=100)
    quotas.take(project_id=project.pk, gpus=100)
    assert held(project) == 100


def test_more_cannot_be_given_back_than_is_held(project: Project) -> None:
    quotas.take(project_id=project.pk, gpus=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        quotas.give_back(project_id=project.pk, gpus=2)
    assert held(project) == 1
