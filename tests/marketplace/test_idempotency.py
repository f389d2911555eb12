"""An order is carried out once for its key, however often and from however many sides it is sent."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from billing import books
from billing.models import Hold
from marketplace import idempotency, tasks
from marketplace.celery import app
from marketplace.models import AuditEntry, IdempotencyRecord, Organization, Project, User
from provisioning.models import GpuHold, Instance, Quota
from tests.billing.makers import at_the_same_moment
from tests.conftest import Fleet, make_token
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db

SIDES = 20


@pytest.fixture
def program(alice: User, acme: Organization, fleet: Fleet) -> Program:
    return Program(make_token(alice, acme))


def test_the_same_order_again_gets_the_same_bytes_and_says_so(program: Program) -> None:
    first = program.rent(key="order-1", env={"ZULU": "1", "ALPHA": "2"})
    before = every_row()
    again = program.rent(key="order-1", env={"ALPHA": "2", "ZULU": "1"})
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert every_row() == before


def test_what_was_left_out_and_what_is_ordinary_are_the_same_order(program: Program) -> None:
    first = program.rent(key="order-1")
    assert program.rent(key="order-1", gpus=1, replicas=1).content == first.content


def test_a_key_cannot_be_used_for_another_order(program: Program) -> None:
    assert program.rent(key="order-1").status_code == 202
    before = every_row()
    for change in ({"gpus": 2}, {"name": "other"}, {"command": ["true"]}, {"env": {"A": "1"}}):
        document = problem_of(program.rent(key="order-1", **change), 422, "idempotency_key_reused")
        assert "Idempotency-Key" in document["detail"]
    assert every_row() == before


def test_a_key_is_one_organization_s_own(program: Program, charlie: User) -> None:
    other = Program(make_token(charlie, Organization.objects.get(name="Other")))
    first, second = program.rent(key="order-1"), other.rent(key="order-1", gpus=2)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]


def test_a_key_is_one_route_s_own(program: Program) -> None:
    instance = program.rent(key="order-1").json()
    stopped = program.post(f"instances/{instance['id']}/stop", key="order-1")
    assert (stopped.status_code, stopped.json()["phase"]) == (202, "stopping")


def test_a_refused_order_may_be_tried_again_with_its_key(program: Program, project: Project) -> None:
    Quota.objects.update(limit=0)
    before = every_row()
    problem_of(program.rent(key="order-1"), 409, "quota_exceeded")
    assert every_row() == before
    Quota.objects.update(limit=16)
    answer = program.rent(key="order-1")
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (202, False)


def test_an_error_of_ours_leaves_nothing_and_its_key_unused(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    before = every_row()
    with monkeypatch.context() as broken:
        broken.setattr("marketplace.audit.record", lambda **entry: 1 / 0)
        problem_of(program.rent(key="order-1"), 500, "internal_error")
    assert every_row() == before
    assert program.rent(key="order-1").status_code == 202


def test_an_answer_is_given_again_even_if_the_offer_is_sold_no_more(program: Program, fleet: Fleet) -> None:
    first = program.rent(key="order-1")
    type(fleet.h200).objects.update(is_listed=False)
    assert program.rent(key="order-1").content == first.content


def test_stopping_needs_no_key_and_is_safe_to_repeat(program: Program) -> None:
    instance = program.rent().json()
    for _ in range(2):
        assert program.post(f"instances/{instance['id']}/stop").json()["phase"] == "stopping"
    assert AuditEntry.objects.filter(verb="instance.stop").count() == 1


def test_starting_needs_a_key(program: Program) -> None:
    instance = program.rent().json()
    problem_of(program.post(f"instances/{instance['id']}/start"), 400, "idempotency_key_required")


def send_at_the_same_moment(program: Program) -> list[Any]:
    """Send one order from many sides, each with a connection of its own."""
    answers: list[Any] = []
    calls = [lambda: answers.append(Program(program.secret).rent(key="order-1")) for _ in range(SIDES)]
    assert at_the_same_moment(*calls) == ["done"] * SIDES
    return answers


@pytest.mark.django_db(transaction=True)
def test_one_order_from_twenty_sides_at_the_same_moment_rents_once(program: Program) -> None:
    answers = send_at_the_same_moment(program)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == SIDES - 1
    assert Instance.objects.count() == GpuHold.objects.count() == Hold.objects.count() == 1
    assert set(Quota.objects.filter(held__gt=0).values_list("held", flat=True)) == {1}
    assert books.check(at=timezone.now()) == []


@pytest.mark.django_db(transaction=True)
def test_without_the_constraint_the_same_order_rents_many_times(program: Program) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE marketplace_idempotencyrecord DROP CONSTRAINT idempotency_key_used_once")
    try:
        send_at_the_same_moment(program)
        assert Instance.objects.count() > 1
    finally:
        IdempotencyRecord.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE marketplace_idempotencyrecord ADD CONSTRAINT idempotency_key_used_once"
                " UNIQUE (organization_id, route, key)"
            )


def make_record(organization: Organization, key: str, *, age: timedelta) -> IdempotencyRecord:
    return IdempotencyRecord.objects.create(
        organization=organization, route="POST /", key=key, fingerprint="f", created_at=timezone.now() - age
    )


def test_answers_are_kept_for_seventy_two_hours(acme: Organization) -> None:
    make_record(acme, "old", age=timedelta(hours=72, seconds=1))
    make_record(acme, "young", age=timedelta(hours=71, minutes=59))
    assert idempotency.purge(at=timezone.now()) == 1
    assert [record.key for record in IdempotencyRecord.objects.all()] == ["young"]
    assert idempotency.purge(at=timezone.now()) == 0


def test_a_purge_is_bounded_and_begins_with_the_oldest(acme: Organization) -> None:
    for number in range(3):
        make_record(acme, str(number), age=timedelta(days=9 - number))
    assert idempotency.purge(at=timezone.now(), limit=2) == 2
    assert [record.key for record in IdempotencyRecord.objects.all()] == ["2"]


def test_beat_purges(acme: Organization) -> None:
    make_record(acme, "old", age=timedelta(days=4))
    assert "marketplace.tasks.purge_idempotency" in {entry["task"] for entry in app.conf.beat_schedule.values()}
    tasks.purge_idempotency()
    assert not IdempotencyRecord.objects.exists()


def test_a_purged_key_is_new_again(program: Program) -> None:
    first = program.rent(key="order-1")
    idempotency.purge(at=timezone.now() + timedelta(hours=73))
    assert program.rent(key="order-1").json()["id"] != first.json()["id"]


def test_a_dry_run_needs_no_key_and_uses_none_up(program: Program) -> None:
    order = {"offer": "h200-narvik", "command": ["sleep", "1000"]}
    assert program.post("instances?dry_run=true", order, key="order-1").status_code == 200
    assert not IdempotencyRecord.objects.exists()
    assert program.rent(key="order-1").status_code == 202
