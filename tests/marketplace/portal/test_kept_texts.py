"""What instances and volumes say of themselves is English where it is kept, and Japanese for who reads Japanese."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from marketplace import instance_texts, rentals, restarts, volumes
from marketplace.access import Actor
from marketplace.models import User
from provisioning import instances, texts
from provisioning.agent.disk import FILLED
from provisioning.models import Instance, InstanceEvent, Reason, Volume
from tests.conftest import Run, Storage
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import read

ENDS = "Its reservation ends; start it again to run on demand."


def page_of(client: Client, instance: Instance) -> str:
    return read(client.get(reverse("instance", args=[instance.public_id]))).text


def test_why_an_instance_was_stopped_is_read_in_japanese(
    owner: Client, alice: User, running: Instance, run_until_idle: Run
) -> None:
    with translation.override("ja"):
        message = instance_texts.RESERVATION_ENDS()
        instances.stop(instance=running, at=timezone.now(), reason=Reason.RESERVATION_END, message=message)
        run_until_idle()
    running.refresh_from_db()
    assert running.message == ENDS
    assert ENDS in page_of(owner, running)
    japanese = page_of(browser(alice, language="ja"), running)
    assert ENDS not in japanese


def test_who_stops_in_japanese_writes_english(actor: Actor, running: Instance, storage: Storage) -> None:
    volume = storage.make()
    with translation.override("ja"):
        rentals.stop(actor=actor, instance=running, at=timezone.now())
        volumes.delete(actor=actor, volume=volume, at=timezone.now())
    event = InstanceEvent.objects.filter(instance=running).latest("pk")
    assert event.message == f"Stopped by {actor.name}."
    assert Volume.objects.get().message == f"Deleted by {actor.name}."


@pytest.mark.parametrize("reason", ["It went wrong", "Stopped by the way", ENDS])
def test_what_an_operator_wrote_stays_as_it_is(reason: str) -> None:
    with translation.override("ja"):
        assert reason in restarts.told(Instance(message=instance_texts.STOPPED_BY_OPERATOR(text=reason)))


def test_a_volume_that_could_not_be_made_says_why_in_japanese(alice: User, storage: Storage) -> None:
    volume = storage.make()
    Volume.objects.filter(pk=volume.pk).update(state="failed", message=instance_texts.RESERVATION_EXTENDED())
    client = browser(alice, language="ja")
    assert "was extended" not in read(client.get(reverse("volume", args=[volume.public_id]))).text


def test_what_put_a_restart_off_and_what_came_before_are_both_read_in_japanese() -> None:
    quota = "You asked for 2 more GPUs; the project holds 0 of 1."
    notice = {"code": "restart_put_off", "time": "12:00 UTC", "before": ENDS, "reason": "node_lost", "refusal": quota}
    with translation.override("ja"):
        said = restarts.told(Instance(message="English.", notice=notice))
    assert ENDS not in said
    assert quota not in said


def test_a_node_says_that_a_disk_is_full_in_words_that_are_known_again() -> None:
    assert FILLED.fullmatch(texts.DISK_FILLED(used="9.8", most="10.0 GiB"))


def test_what_refused_a_bid_is_any_text_of_ours() -> None:
    quota = "You asked for 2 more GPUs; the project holds 0 of 1."
    kept = instance_texts.BIDS_NOT_YET(refusal=quota)
    assert kept == f"It waits, and does not bid yet: {quota}"
    with translation.override("ja"):
        assert quota not in restarts.told(Instance(message=kept))
