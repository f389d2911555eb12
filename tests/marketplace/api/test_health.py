"""What customers read about the machines under their instances."""

from typing import Any

from django.test import Client
from django.urls import reverse

from marketplace.models import User
from provisioning import tasks
from provisioning.models import Instance
from tests.conftest import Fleet, make_token


def break_its_gpu(fleet: Fleet, instance: Instance, code: str) -> None:
    played = fleet.nodes[instance.assignments.get().node.name]
    played.breaks(0, code)
    played.sync()
    tasks.decide_health_events()


def events_of(client: Client, user: User, acme: Any, instance: Instance) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {make_token(user, acme)}"}
    answer = client.get(f"/api/v1/instances/{instance.public_id}/events", headers=headers)
    assert answer.status_code == 200, answer.content
    return list(answer.json()["data"])


def test_a_note_is_an_event_of_its_own_kind(
    client: Client, alice: User, acme: Any, fleet: Fleet, running: Instance
) -> None:
    break_its_gpu(fleet, running, "xid:31")
    latest = events_of(client, alice, acme, running)[0]
    assert (latest["kind"], latest["old_phase"], latest["new_phase"]) == ("health", "running", "running")
    assert "xid:31" in latest["message"]


def test_a_broken_gpu_is_a_move_with_its_reason(
    client: Client, alice: User, acme: Any, fleet: Fleet, running: Instance
) -> None:
    break_its_gpu(fleet, running, "xid:79")
    latest = events_of(client, alice, acme, running)[0]
    assert (latest["kind"], latest["new_phase"], latest["reason"]) == ("phase", "failed", "gpu_fault")
    assert "not charged since" in latest["message"]


def test_the_page_of_an_instance_says_so(client: Client, alice: User, fleet: Fleet, running: Instance) -> None:
    client.force_login(alice)
    break_its_gpu(fleet, running, "xid:31")
    page = client.get(reverse("instance", args=[running.public_id])).content.decode()
    assert "A note on the machine" in page
    assert "its machine reported a fault" in page
    break_its_gpu(fleet, running, "xid:79")
    page = client.get(reverse("instance", args=[running.public_id])).content.decode()
    assert "A GPU broke." in page
    assert "not charged since" in page
