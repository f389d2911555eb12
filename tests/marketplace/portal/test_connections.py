"""How to get into an instance: exact commands, ports as links, and what to do without a key."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace import tokens
from marketplace.access import Actor
from marketplace.models import Offer, Project, User
from provisioning.models import Assignment, Heartbeat, Instance
from tests.conftest import Fleet, Rent, Run
from tests.marketplace.api.tenant import ssh_key
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read

GATEWAY = {"host": "n1.example", "ssh_port": 2222, "host_key": "ssh-ed25519 AAAAnode"}


@pytest.fixture
def reachable(running: Instance) -> Instance:
    Heartbeat.objects.update(access=GATEWAY)
    Assignment.objects.filter(instance=running).update(ports={"8080": 31001, "5432": 31002})
    return running


def test_the_box_holds_the_exact_commands(owner: Client, reachable: Instance, actor: Actor, project: Project) -> None:
    tokens.add_ssh_key(actor=actor, project=project, name="k", public_key=ssh_key(b"one"))
    page = read(owner.get(reverse("instance", args=[reachable.public_id])))
    assert faults(page) == []
    said = {element.text for element in page.elements if element.tag in {"pre", "code"}}
    user = f"{reachable.public_id}@n1.example"
    assert {
        f"gpumarket ssh {reachable.name}", f"ssh -p 2222 {user}", f"scp -P 2222 FILE {user}:",
        f"ssh -p 2222 -N -L 8888:localhost:8888 {user}", "[n1.example]:2222 ssh-ed25519 AAAAnode",
    } <= said  # fmt: skip
    assert page.all("a", href="http://n1.example:31001")
    assert not page.all("a", href="http://n1.example:31002")
    assert "n1.example:31002" in page.text
    assert "no SSH key yet" not in page.text


def test_without_a_key_it_says_where_to_add_one(owner: Client, reachable: Instance) -> None:
    page = read(owner.get(reverse("instance", args=[reachable.public_id])))
    assert "The project has no SSH key yet" in page.text
    assert page.all("a", href=reverse("ssh-keys"))


def test_a_node_without_a_gateway_promises_none(owner: Client, running: Instance) -> None:
    assert "gpumarket ssh" not in owner.get(reverse("instance", args=[running.public_id])).content.decode()


def test_before_it_runs_and_after_it_ended_there_is_no_way_in(
    owner: Client, reachable: Instance, rent: Rent, run_until_idle: Run
) -> None:
    assert "gpumarket ssh" not in owner.get(reverse("instance", args=[rent().public_id])).content.decode()
    owner.post(reverse("instance-stop", args=[reachable.public_id]))
    assert "gpumarket ssh" not in owner.get(reverse("instance", args=[reachable.public_id])).content.decode()


def test_the_open_page_leaves_the_box_alone_while_it_is_copied_from(owner: Client, reachable: Instance) -> None:
    path = reverse("instance", args=[reachable.public_id])
    asks = next(e for e in read(owner.get(path)).elements if "door=" in e.attributes.get("hx-get", ""))
    again = read(owner.get(asks.attributes["hx-get"], headers={"HX-Request": "true"}))
    assert not again.all("div", id="doors")
    Assignment.objects.filter(instance=reachable).update(ports={})
    changed = read(owner.get(asks.attributes["hx-get"], headers={"HX-Request": "true"}))
    assert changed.all("div", id="doors")


def test_each_replica_has_its_own_way_in(owner: Client, rent: Rent, run_until_idle: Run) -> None:
    gang = rent(replicas=2, name="gang")
    run_until_idle()
    Heartbeat.objects.update(access=GATEWAY)
    html = owner.get(reverse("instance", args=[gang.public_id])).content.decode()
    assert "gpumarket ssh gang --replica 1" in html
    assert f"ssh -p 2222 {gang.public_id}.1@n1.example" in html
    assert faults(read(owner.get(reverse("instance", args=[gang.public_id])))) == []


def test_a_pull_is_shown_with_what_is_known(owner: Client, rent: Rent) -> None:
    instance = rent()
    Instance.objects.filter(pk=instance.pk).update(phase="provisioning")
    instance.refresh_from_db()
    instance.events.create(at=timezone.now(), run=1, old_phase="placing", new_phase="provisioning")
    told = {"step": "pull", "done_bytes": 1_200_000_000, "total_bytes": 3_400_000_000, "bytes_per_s": 80_000_000}
    Assignment.objects.update(observed="preparing", progress=told)
    page = read(owner.get(reverse("instance", args=[instance.public_id])))
    assert "Pull the image: 1.2 GB of 3.4 GB, 35 %, 80.0 MB/s" in page.text
    assert page.all("progress", value="1200000000")
    Assignment.objects.update(progress={**told, "total_bytes": None})
    page = read(owner.get(reverse("instance", args=[instance.public_id])))
    assert "Pull the image: 1.2 GB, 80.0 MB/s" in page.text
    assert faults(page) == []


@pytest.mark.parametrize(
    ("kind", "seconds", "words"),
    [
        ("sticky", 1800, "it goes on for 30 minutes"),
        ("strict", 60, "it stops itself after 1 minute"),
        ("strict", 90, "it stops itself after 90 seconds"),
    ],
)
def test_how_long_a_lease_is_stands_in_the_settings(
    owner: Client, running: Instance, settings: Any, kind: str, seconds: int, words: str
) -> None:
    settings.ASSIGNMENT_LEASE_S = {"strict": 120, "sticky": 900} | {kind: seconds}
    Instance.objects.update(lease=kind)
    assert words in read(owner.get(reverse("instance", args=[running.public_id]))).text
    assert words.removeprefix("it ") in read(owner.get(reverse("launch"))).text


def test_how_it_runs_is_among_the_details(owner: Client, running: Instance) -> None:
    Instance.objects.update(image="registry.example.com/a:1", command=[], ports=[80], on_failure="restart", restarts=2)
    page = read(owner.get(reverse("instance", args=[running.public_id])))
    for words in ("registry.example.com/a:1", "the image's own", "it goes on for 15 minutes", "starts again elsewhere",
                  "2 so far"):  # fmt: skip
        assert words in page.text


def test_an_image_that_cannot_be_pulled_is_explained(
    owner: Client, fleet: Fleet, rent: Rent, run_until_idle: Run
) -> None:
    for node in fleet.nodes.values():
        node.fails_to_prepare = "registry.example.com/a:1: manifest unknown"
    Offer.objects.update(runtime="podman")
    fleet.h200.refresh_from_db()
    instance = rent(image="registry.example.com/a:1", command=[])
    run_until_idle()
    page = read(owner.get(reverse("instance", args=[instance.public_id])))
    for words in ("manifest unknown", "Nothing was charged.", "check the name registry.example.com/a:1"):
        assert words in page.text
    assert len(page.all("a", href=reverse("registries"))) == 3
    assert faults(page) == []


def test_what_starts_again_by_itself_says_when(owner: Client, running: Instance) -> None:
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    Instance.objects.update(phase="failed", reason="gpu_fault", on_failure="restart", restart_at=at, message="XID 79")
    page = read(owner.get(reverse("instance", args=[running.public_id])))
    for words in (
        "A GPU broke",
        "XID 79",
        "It starts again elsewhere by itself, at 2030-01-01 12:00:00 at the earliest",
    ):
        assert words in page.text
    assert "it may get another node" not in page.text
    assert faults(page) == []


def test_a_note_on_the_machine_stands_in_the_history_of_both_doors(
    owner: Client, running: Instance, carol: User
) -> None:
    running.events.create(
        at=timezone.now(),
        run=1,
        kind="health",
        old_phase="running",
        new_phase="running",
        message="GPU 3 reported XID 13",
    )
    Instance.objects.update(health="degraded", on_failure="restart")
    page = read(owner.get(reverse("instance", args=[running.public_id])))
    for words in ("A note on the machine", "GPU 3 reported XID 13", "its machine reported a fault",
                  "it starts again elsewhere by itself"):  # fmt: skip
        assert words in page.text
    seen = read(browser(carol).get(reverse("console-instance", args=[running.public_id]))).text
    assert "A note on the machine" in seen
    assert "Running → Running" not in seen
