"""Sending what an attempt left behind: it takes nothing of the time limit, and does not go on for ever."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from billing import accounts, books, charging, credits
from marketplace.models import Attempt
from provisioning.models import Assignment, Instance
from tests.marketplace.jobs.conftest import Works, latest, tries
from tests.standing import frozen

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


clock = frozen(NOON)


def test_sending_the_outputs_takes_nothing_of_the_time_limit(works: Works, clock: time_machine.Traveller) -> None:
    job = works.one(time_limit="90s")
    works.go()
    (attempt,) = works.running(job)
    sends = {"step": "outputs", "done_bytes": 1, "total_bytes": 2, "bytes_per_s": 1}
    parts = Assignment.objects.filter(instance=attempt.instance)
    parts.update(progress=sends)
    clock.shift(timedelta(seconds=100))
    works.go()
    assert tries(job) == [(1, "running", "")]
    look_at = latest(job).look_at
    assert look_at is not None
    assert look_at >= timezone.now() + timedelta(seconds=5)
    parts.update(progress=None)
    works.go()
    assert tries(job) == [(1, "failed", "time_limit")]


@pytest.mark.parametrize("time_limit", ["1h", None])
def test_a_node_that_sends_for_ever_is_at_fault_and_the_task_is_tried_elsewhere(
    works: Works, clock: time_machine.Traveller, time_limit: str | None
) -> None:
    job = works.one(time_limit=time_limit)
    works.go()
    (attempt,) = works.running(job)
    clock.shift(timedelta(minutes=30))
    sends = {"step": "outputs", "done_bytes": 1, "total_bytes": 2, "bytes_per_s": 1}
    Assignment.objects.filter(instance=attempt.instance).update(progress=sends, sending_since=timezone.now())
    clock.shift(timedelta(hours=24) - timedelta(seconds=1))
    charging.charge_due(at=timezone.now())
    works.go()
    assert tries(job) == [(1, "running", "")]
    clock.shift(timedelta(seconds=1))
    works.go()
    assert tries(job) == [(1, "faulted", "fault"), (2, "running", "")]
    ended = Attempt.objects.get(pk=attempt.pk)
    assert ended.ended_at == timezone.now() - timedelta(hours=24), "what is charged ended with its command"
    assert Instance.objects.get(pk=attempt.instance_id).reason == "timed_out"
    first, second = (Assignment.objects.get(instance=one.instance).node_id for one in Attempt.objects.order_by("pk"))
    assert first != second
    assert latest(job).spent_micros == 0
    wallet = accounts.wallet(organization=works.project.organization)
    assert wallet.promo_micros + wallet.cash_micros == 1_000_000_000, "nothing was paid in the end"
    key = f"attempt:{attempt.instance.public_id}"
    assert credits.compensated([key]) == {key: 2_490_000 // 2}
    assert books.check(at=timezone.now()) == []
