"""What an attempt cost that a fault of ours ended comes back once, whoever else would give some of it back."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from billing import accounts, books, charging
from billing.models import GuaranteeHour
from marketplace.guarantees import evaluating, guarding
from marketplace.models import Attempt, Organization, User
from marketplace.sla import closing
from provisioning.models import CounterSample, Instance
from tests.agreed import guarantee
from tests.marketplace.jobs.conftest import Works
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PRICE = 2_490_000  # an hour of one H200
HOUR = timedelta(hours=1)

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


@pytest.fixture
def attempt(
    works: Works, clock: time_machine.Traveller, operator: Organization, acme: Organization, alice: User
) -> Attempt:
    """One that runs from noon on, under a guarantee that its first hour does not keep."""
    version = guarantee(operator, acme, alice, NOON)
    works.one(time_limit="3h")
    works.go()
    instance = Instance.objects.get()
    guarding.begin(actor=works.actor, instance=instance, version_id=version.public_id, at=NOON)
    CounterSample.objects.create(
        instance=instance, assignment=instance.assignments.get(), name="tokens_total", since=NOON, at=NOON + HOUR,
        value=1, increase=1,
    )  # fmt: skip
    return Attempt.objects.get()


def spent(acme: Organization) -> int:
    now = accounts.wallet(organization=acme)
    return 1_000_000_000 - now.cash_micros - now.promo_micros


def credited(attempt: Attempt) -> dict[int, int]:
    rows = GuaranteeHour.objects.filter(resource_id=attempt.instance.public_id)
    return dict(rows.values_list("hour__hour", "credit_micros"))


def test_what_an_hour_below_its_floor_credited_is_not_given_back_again(
    works: Works, clock: time_machine.Traveller, attempt: Attempt, acme: Organization
) -> None:
    clock.shift(timedelta(minutes=65))
    charging.charge_due(at=timezone.now())
    assert evaluating.judge_due(at=timezone.now(), limit=1) == 1
    assert credited(attempt) == {12: PRICE}
    works.lose(attempt)
    works.go()
    attempt.refresh_from_db()
    assert attempt.state == "faulted"
    assert spent(acme) == 0, "it cost 65 minutes, and as much came back"
    assert books.check(at=timezone.now()) == []


def test_what_a_fault_of_ours_gave_back_neither_an_hour_nor_a_month_credits_again(
    works: Works, clock: time_machine.Traveller, attempt: Attempt, acme: Organization
) -> None:
    clock.shift(timedelta(minutes=50))
    charging.charge_due(at=timezone.now())
    works.lose(attempt)
    works.go()
    assert spent(acme) == 0
    clock.shift(timedelta(minutes=15))
    assert evaluating.judge_due(at=timezone.now(), limit=1) == 1
    assert credited(attempt) == {12: 0}
    _, case, _ = closing.so_far([attempt.instance], at=timezone.now())[attempt.instance.public_id]
    assert case.seen.returned_micros == case.seen.paid_micros == PRICE * 50 // 60
    assert books.check(at=timezone.now()) == []
