"""What does nothing: found from readings, never from their absence; told once; stopped where a project wants it."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core import mail
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing import charging
from billing.models import Charge, UsageSpan
from marketplace import idle, idle_mail
from marketplace.models import IdleSpell, Project
from provisioning import partitions
from provisioning.models import Assignment, GpuHold, Instance, RollUp
from provisioning.telemetry import MINUTE, floor
from tests.billing.makers import at_the_same_moment
from tests.conftest import Rent, Run
from tests.marketplace.api.conftest import program
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.portal.conftest import owner
from tests.marketplace.portal.reading import faults, read

__all__ = ["owner", "program"]
pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
READ = """
INSERT INTO provisioning_minute (gpu_id, at, samples, utilization_percent_min, utilization_percent_max,
    utilization_percent_sum, utilization_percent_count, utilization_percent_last)
SELECT %(gpu)s, %(since)s::timestamptz + n * interval '1 minute', 6, 0, %(most)s, %(most)s, 6, 0
FROM generate_series(0, %(minutes)s - 1) AS n
ON CONFLICT (gpu_id, at) DO UPDATE SET utilization_percent_max = excluded.utilization_percent_max
"""


def reads(gpu_id: int, *, since: datetime, minutes: int = 60, most: int = 1) -> None:
    """Let a GPU have been used this much at most in each of these minutes."""
    partitions.prepare(partitions.MINUTE, since=since, until=since + minutes * MINUTE)
    with connection.cursor() as cursor:
        cursor.execute(READ, {"gpu": gpu_id, "since": since, "minutes": minutes, "most": most})


def gpus(instance: Instance) -> list[int]:
    return list(GpuHold.objects.filter(assignment__instance=instance).order_by("pk").values_list("gpu", flat=True))


@pytest.fixture
def now(db: None) -> datetime:
    """A full minute up to which all readings are summed up."""
    at = floor(timezone.now(), MINUTE)
    RollUp.objects.update_or_create(level="minute", defaults={"until": at})
    return at


@pytest.fixture
def resting(now: datetime, rent: Rent, run_until_idle: Run) -> Instance:
    """Two GPUs that did nothing for an hour."""
    instance = rent(gpus=2)
    run_until_idle()
    Instance.objects.filter(pk=instance.pk).update(ready_at=now - 2 * HOUR)
    UsageSpan.objects.filter(resource_id=instance.public_id).update(
        started_at=now - 2 * HOUR, charged_through=now - 2 * HOUR
    )
    for gpu in gpus(instance):
        reads(gpu, since=now - HOUR)
    instance.refresh_from_db()
    return instance


def test_an_hour_of_nothing_on_every_gpu_is_idle(resting: Instance, now: datetime) -> None:
    assert (idle.look(at=now), idle.look(at=now)) == (1, 0)
    spell = IdleSpell.objects.get()
    assert (spell.instance, spell.since, spell.ended_at) == (resting, now - HOUR, None)


def test_what_verifies_a_result_is_never_idle(resting: Instance, now: datetime) -> None:
    Instance.objects.filter(pk=resting.pk).update(is_off_limits=True)
    assert idle.look(at=now) == 0


@pytest.mark.parametrize("most", [5, 60])
def test_one_gpu_that_was_used_for_a_moment_is_enough(resting: Instance, now: datetime, most: int) -> None:
    reads(gpus(resting)[1], since=now - 30 * MINUTE, minutes=1, most=most)
    assert idle.look(at=now) == 0


def test_a_minute_without_a_reading_is_not_idle(resting: Instance, now: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM provisioning_minute WHERE gpu_id = %s AND at = %s", [gpus(resting)[0], now - 20 * MINUTE]
        )
    assert idle.look(at=now) == 0


def test_where_readings_are_summed_up_late_nothing_is_known(resting: Instance, now: datetime) -> None:
    assert idle.look(at=now + timedelta(minutes=6)) == 0


def test_what_became_ready_within_the_hour_is_not_idle(resting: Instance, now: datetime) -> None:
    Instance.objects.update(ready_at=now - 59 * MINUTE)
    assert idle.look(at=now) == 0


def test_a_spell_ends_once_something_is_done(resting: Instance, now: datetime) -> None:
    idle.look(at=now)
    reads(gpus(resting)[0], since=now, minutes=1, most=90)
    reads(gpus(resting)[1], since=now, minutes=1)
    RollUp.objects.update(until=now + MINUTE)
    assert idle.look(at=now + MINUTE) == 0
    assert IdleSpell.objects.get().ended_at == now + MINUTE


def test_a_spell_ends_with_its_run_also_where_the_next_one_does_nothing_either(
    resting: Instance, now: datetime
) -> None:
    idle.look(at=now)
    IdleSpell.objects.update(sent_at=now)
    Instance.objects.filter(pk=resting.pk).update(run=2)
    Assignment.objects.filter(instance=resting).update(fence=2)
    assert (idle.look(at=now), idle.look(at=now)) == (1, 0)
    before, spell = IdleSpell.objects.order_by("pk")
    assert (before.run, before.ended_at) == (1, now)
    assert (spell.run, spell.ended_at, spell.sent_at) == (2, None, None)


def test_a_look_takes_as_many_statements_however_much_is_idle(resting: Instance, now: datetime, rent: Rent,
                                                              run_until_idle: Run) -> None:  # fmt: skip
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            idle.look(at=now)
        return len([one for one in captured.captured_queries if "SAVEPOINT" not in one["sql"]])

    few = statements()
    for _ in range(3):
        rent()
    run_until_idle()
    Instance.objects.update(ready_at=now - 2 * HOUR)
    for gpu in GpuHold.objects.values_list("gpu", flat=True):
        reads(gpu, since=now - HOUR)
    assert (few, statements()) == (4, 4)
    assert IdleSpell.objects.count() == 4


def test_it_is_told_once_and_stopped_when_its_project_says_and_costs_nothing_after(
    resting: Instance, now: datetime, project: Project, run_until_idle: Run
) -> None:
    idle.look(at=now)
    assert idle_mail.send_due(at=now, limit=10) == 0  # the project only shows it
    Project.objects.update(idle_action="stop", idle_stop_minutes=30)
    assert (idle_mail.send_due(at=now, limit=10), idle_mail.send_due(at=now + HOUR, limit=10)) == (1, 0)
    (message,) = mail.outbox
    assert message.to == ["alice@acme.example"]
    for words in ("did nothing since", "$4.98 an hour", "stopped 30 minutes after this message"):
        assert words in message.body, words
    assert idle.stop_what_is_idle(at=now + 29 * MINUTE, limit=10) == 0
    later = now + 30 * MINUTE
    assert idle.stop_what_is_idle(at=later, limit=10) == 1
    resting.refresh_from_db()
    assert (resting.phase, resting.reason) == ("stopping", "idle")
    run_until_idle()
    charging.charge_due(at=now + 5 * HOUR)
    span = UsageSpan.objects.get(resource_id=resting.public_id)
    assert span.ended_at is not None
    assert span.ended_at <= max(later, resting.phase_since)
    assert Charge.objects.filter(span=span, through__gt=span.ended_at).count() == 0
    assert idle.stop_what_is_idle(at=now + 5 * HOUR, limit=10) == 0


def test_a_project_that_warns_does_not_stop(resting: Instance, now: datetime) -> None:
    Project.objects.update(idle_action="warn")
    idle.look(at=now)
    assert idle_mail.send_due(at=now, limit=10) == 1
    assert idle.stop_what_is_idle(at=now + 99 * HOUR, limit=10) == 0


@pytest.mark.django_db(transaction=True)
def test_many_looks_at_once_begin_one_spell_and_send_one_message(resting: Instance, now: datetime) -> None:
    Project.objects.update(idle_action="warn")

    def one() -> None:
        idle.look(at=now)
        idle_mail.send_due(at=now, limit=10)

    assert at_the_same_moment(*[one] * 8) == ["done"] * 8
    assert IdleSpell.objects.count() == 1
    assert len(mail.outbox) == 1


def test_pages_show_it_with_what_it_costs(owner: Client, resting: Instance, now: datetime, project: Project) -> None:
    idle.look(at=now)
    listed, shown = owner.get(reverse("instances")), owner.get(reverse("instance", args=[resting.public_id]))
    assert faults(read(listed)) == faults(read(shown)) == []
    assert "idle since" in read(listed).text
    assert "Its GPUs did nothing since" in read(shown).text
    path = reverse("project-idle", args=[project.public_id])
    assert faults(read(owner.get(path))) == []
    assert owner.post(path, {"action": "stop", "stop_minutes": "20"}).status_code == 302
    project.refresh_from_db()
    assert (project.idle_action, project.idle_stop_minutes) == ("stop", 20)
    for wrong in ({"action": "melt", "stop_minutes": "20"}, {"action": "stop", "stop_minutes": "9"}):
        assert owner.post(path, wrong).status_code == 422


def test_programs_list_it_and_change_the_setting(
    program: Program, resting: Instance, now: datetime, project: Project
) -> None:
    idle.look(at=now)
    (row,) = program.get("idle").json()["data"]
    assert row["instance"] == {"id": resting.public_id, "name": resting.name}
    assert row["per_hour"] == {"amount": "4.980000", "currency": "USD"}
    assert float(row["for_nothing"]["amount"]) >= 4.98
    path = f"projects/{project.public_id}/idle"
    changed: Any = program.ask("put", path, {"action": "stop", "stop_minutes": 15})
    assert changed.json() == program.get(path).json() == {"action": "stop", "stop_minutes": 15}
    problem_of(program.ask("put", path, {"action": "melt"}), 422, "invalid_request", names="/action")
