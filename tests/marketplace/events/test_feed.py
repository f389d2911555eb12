"""The feed: everything that happened, once, in one order, to those who may see it."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from marketplace.access import Actor
from marketplace.events import endpoints, feed
from marketplace.events.sources import SOURCES, TYPES, are_types, matches
from marketplace.models import Event, Noted, Organization
from provisioning.models import Instance, InstanceEvent, Interruption, Phase
from tests.conftest import Rent, Run
from tests.marketplace.events.conftest import Listening, published


def test_every_move_of_an_instance_is_an_event_once(rent: Rent, run_until_idle: Run) -> None:
    instance = rent(name="trainer")
    run_until_idle()
    told = [event for event in published() if event.subject_id == instance.public_id]
    moves = InstanceEvent.objects.filter(instance=instance).order_by("pk")
    assert [event.type for event in told] == [f"instance.{move.new_phase}" for move in moves]
    assert told[-1].type == "instance.running"
    assert told[-1].data["name"] == "trainer"
    assert told[-1].organization == instance.project.organization
    assert len(published()) == Event.objects.count()
    assert not Noted.objects.exists()


def test_what_is_rolled_back_is_no_event(rent: Rent) -> None:
    with transaction.atomic():
        rent()
        transaction.set_rollback(True)
    assert published() == []


def test_an_event_that_commits_late_comes_later_and_is_not_missed(rent: Rent) -> None:
    rent()
    first = Noted.objects.order_by("pk").first()
    assert first is not None
    late = (first.pk, first.source, first.row)
    first.delete()
    before = published()
    Noted(pk=late[0], source=late[1], row=late[2]).save(force_insert=True)
    after = published()
    assert [one.pk for one in after[: len(before)]] == [one.pk for one in before]
    assert after[-1].row == late[2]


@pytest.mark.django_db(transaction=True)
def test_two_publishers_at_once_publish_each_row_once(rent: Rent, run_until_idle: Run) -> None:
    rent()
    run_until_idle()
    noted = Noted.objects.count()

    def publish() -> None:
        try:
            for _ in range(20):
                feed.publish(at=timezone.now(), limit=2)
        finally:
            connection.close()

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(published()) == noted
    assert Event.objects.values("source", "row").distinct().count() == noted


@pytest.mark.django_db(transaction=True)
def test_a_test_event_comes_after_what_is_being_published_and_is_not_seen_before(
    actor: Actor, rent: Rent, run_until_idle: Run, listening: Listening
) -> None:
    rent()
    run_until_idle()

    def test() -> None:
        try:
            endpoints.test(actor=actor, endpoint=listening.endpoint, at=timezone.now())
        finally:
            connection.close()

    trying = threading.Thread(target=test)
    with transaction.atomic():
        assert feed.publish(at=timezone.now(), limit=1000)
        trying.start()
        trying.join(0.5)
        assert trying.is_alive()  # Whoever reads on from it now would miss what is not visible yet.
        assert not Event.objects.filter(type="webhook.test").exists()
    trying.join()
    assert published()[-1].type == "webhook.test"


def test_publishing_takes_the_same_queries_for_many_as_for_one(
    rent: Rent, run_until_idle: Run, django_assert_num_queries: Any
) -> None:
    for _ in range(3):
        rent()
    run_until_idle()
    assert Noted.objects.count() > 10
    with django_assert_num_queries(8):  # lock, noted, rows, insert, delete, endpoints, and a savepoint's two
        feed.publish(at=timezone.now(), limit=1000)


def test_old_events_are_forgotten(rent: Rent) -> None:
    rent()
    published()
    assert feed.purge(at=timezone.now(), limit=100) == 0
    assert feed.purge(at=timezone.now() + timedelta(days=91), limit=1) == 1


def test_an_announced_interruption_is_told_with_its_deadline(acme: Organization, rent: Rent) -> None:
    instance = rent()
    at = timezone.now()
    found = Interruption.objects.create(
        instance=instance, run=instance.run, reason="outbid", min_notice_s=30, since=at, notice_at=at,
        deadline_at=at + timedelta(seconds=30), state="notified",
    )  # fmt: skip
    InstanceEvent.objects.create(instance=instance, at=at, run=instance.run, new_phase=Phase.NOTIFIED)
    (event,) = [one for one in published() if one.type == "instance.notified"]
    assert event.data["interruption"]["id"] == found.public_id
    assert event.data["interruption"]["min_notice_s"] == 30


def test_each_type_is_of_one_source_and_every_phase_has_one() -> None:
    assert len(TYPES) == len(set(TYPES)) == sum(len(source.types) for source in SOURCES.values())
    assert {f"instance.{phase}" for phase in Phase.values} <= set(TYPES)
    assert are_types(["instance.*", "invoice.issued", "nosuch.*", "instance"]) == ["nosuch.*", "instance"]
    assert matches([], "instance.failed")
    assert matches(["instance.*"], "instance.failed")
    assert not matches(["instance.running"], "instance.failed")


def test_no_row_is_noted_that_has_no_source(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgargs FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid WHERE proname LIKE 'marketplace_note%'"
        )
        named = {bytes(args).rstrip(b"\x00").decode() for (args,) in cursor.fetchall()}
    assert named == set(SOURCES) - {"test"}
    assert Instance.objects.count() == 0
