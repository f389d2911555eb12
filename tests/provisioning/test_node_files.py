"""Nodes and the store: what a node may fetch, what it may not, and what becomes of one that lies about a digest."""

from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from marketplace.models import Project
from provisioning import artifacts, instances, reports
from provisioning.health import events
from provisioning.models import Assignment, HealthEvent, Instance
from provisioning.protocol import Progress, Report, Said
from provisioning.work import Work
from tests.conftest import Fleet, Rent, Run
from tests.nodes import PlayedNode, keep_folder

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _store(settings: Any, tmp_path: Path) -> None:
    settings.ARTIFACTS = tmp_path / "store"


def asks(
    node: PlayedNode, method: str, digest: str, content: bytes = b"", *, assignment: Assignment, **changes: Any
) -> Any:
    """Ask for an artifact as this node, or send one."""
    headers = {
        "Authorization": f"Bearer {node.key}", "Gpumarket-Node": node.node.public_id,
        "Gpumarket-Assignment": assignment.public_id, "Gpumarket-Fence": str(assignment.fence),
        "Upload-Offset": "0", "Upload-Length": str(len(content)),
    } | changes  # fmt: skip
    kind = "application/octet-stream"
    return Client().generic(method, f"/agent/v1/artifacts/{digest}", content, kind, headers=headers)


@pytest.fixture
def settle(fleet: Fleet, run_until_idle: Run) -> Run:
    """Let nodes do what they are told, say so, and have all follow from it."""

    def settled() -> None:
        fleet.sync()
        fleet.sync()
        run_until_idle()

    return settled


def played(fleet: Fleet, instance: Instance) -> tuple[PlayedNode, Assignment]:
    row = Assignment.objects.select_related("node").get(instance=instance, fence=instance.run)
    return fleet.nodes[row.node.name], row


def test_a_node_fetches_what_its_assignment_begins_with_and_nothing_else(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet, project: Project
) -> None:
    folder = keep_folder(project.pk, {"in.txt": b"input"})
    other = artifacts.keep(project_id=project.pk, data=b"of another job", at=timezone.now())
    instance = rent(work=Work(inputs=folder))
    run_until_idle()
    node, row = played(fleet, instance)
    assert next(iter(node.desired.values()))["work"]["inputs"] == folder
    [entry] = artifacts.files_of(project.pk, folder)
    assert sha256(asks(node, "GET", folder, assignment=row).getvalue()).hexdigest() == folder
    assert asks(node, "GET", entry.sha256, assignment=row).getvalue() == b"input"
    rest = asks(node, "GET", entry.sha256, assignment=row, Range="bytes=2-")
    assert (rest.status_code, rest.getvalue()) == (206, b"put")
    assert asks(node, "GET", other, assignment=row).status_code == 404
    assert asks(node, "GET", entry.sha256, assignment=row, Authorization="Bearer x").status_code == 401
    stranger = next(one for one in fleet.nodes.values() if one is not node)
    assert asks(stranger, "GET", entry.sha256, assignment=row).status_code == 409
    assert asks(node, "GET", entry.sha256, assignment=row, **{"Gpumarket-Fence": "7"}).status_code == 409
    assert asks(node, "PUT", sha256(b"x").hexdigest(), b"x", assignment=row).status_code == 409  # Nothing is wanted.


def test_outputs_are_written_down_once_all_of_them_are_here(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet, project: Project
) -> None:
    instance = rent(work=Work(outputs=("out/*",)))
    run_until_idle()
    node, _ = played(fleet, instance)
    node.leaves[instance.public_id] = {"out/a": b"1", "log": b"2"}
    node.exit_codes[instance.public_id] = 0
    settle()
    instance = Instance.objects.get()
    assert (instance.phase, instance.reason, instance.exit_code) == ("stopped", "exited", 0)
    assert [entry.path for entry in artifacts.files_of(project.pk, instance.outputs_sha256)] == ["out/a"]


def assert_blamed(instance: Instance, detail: str) -> None:
    """The node's fault, for which nobody pays, and an event that takes it out of placement."""
    instance.refresh_from_db()
    assert (instance.phase, instance.reason, instance.retryable) == ("failed", "node_lost", True)
    assert instance.outputs_sha256 == ""
    events.decide_all(at=timezone.now(), limit=10)
    event = HealthEvent.objects.get()
    assert (event.code, event.source, event.action, event.scope) == ("false_digest", "control", "degrade", "node")
    assert detail in event.detail


def test_a_node_that_sends_other_bytes_than_it_said_fails_its_run_and_is_an_event(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet
) -> None:
    instance = rent(work=Work(outputs=("out",)))
    run_until_idle()
    node, row = played(fleet, instance)
    answer = asks(node, "PUT", sha256(b"what it said").hexdigest(), b"what it sent", assignment=row)
    assert answer.status_code == 422
    node.exit_codes[instance.public_id] = 0
    settle()
    assert_blamed(instance, sha256(b"what it sent").hexdigest())


def test_a_node_that_went_on_from_bytes_of_somebody_else_is_not_accused_and_begins_anew(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet
) -> None:
    instance = rent(work=Work(outputs=("out",)))
    run_until_idle()
    node, row = played(fleet, instance)
    digest, now = sha256(b"honest").hexdigest(), timezone.now()
    artifacts.receive(
        project_id=instance.project_id, sha256=digest, size_bytes=6, offset=0, pieces=[b"x"], at=now
    )  # A customer's, through the API.
    first = asks(node, "PUT", digest, b"honest", assignment=row)
    assert (first.status_code, first["Upload-Offset"]) == (409, "1")
    rest = asks(node, "PUT", digest, b"onest", assignment=row, **{"Upload-Length": "6", "Upload-Offset": "1"})
    assert (rest.status_code, rest["Upload-Offset"]) == (409, "0")
    anew = asks(node, "PUT", digest, b"honest", assignment=row)
    assert (anew.status_code, anew["Upload-Offset"]) == (200, "6")
    row.refresh_from_db()
    assert row.observed != "failed"
    assert not HealthEvent.objects.exists()


def test_a_node_that_names_outputs_which_are_not_here_fails_its_run_and_is_an_event(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = rent(work=Work(outputs=("out",)))
    run_until_idle()
    node, _ = played(fleet, instance)
    monkeypatch.setattr(PlayedNode, "_send", lambda self, entry: "d" * 64)
    node.exit_codes[instance.public_id] = 0
    settle()
    assert_blamed(instance, f"said {'d' * 64}")


def test_success_without_the_outputs_is_none(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = rent(work=Work(outputs=("out",)))
    run_until_idle()
    node, _ = played(fleet, instance)
    monkeypatch.setattr(PlayedNode, "_send", lambda self, entry: None)
    node.exit_codes[instance.public_id] = 0
    settle()
    instance.refresh_from_db()
    assert (instance.phase, instance.reason) == ("failed", "node_lost")
    assert not HealthEvent.objects.exists()


def test_the_next_run_begins_with_the_last_checkpoint_that_is_here_whole(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet, project: Project, actor: Actor
) -> None:
    instance = rent(work=Work(checkpoint="ck"))
    run_until_idle()
    node, row = played(fleet, instance)
    kept = keep_folder(project.pk, {"step": b"7"})
    node.checkpoints[row.public_id] = kept
    settle()
    instance.refresh_from_db()
    assert instance.checkpoint_sha256 == kept
    instances.stop(instance=instance, at=timezone.now())
    run_until_idle()
    rentals.start(actor=actor, instance=Instance.objects.get(), at=timezone.now())
    run_until_idle()
    node, row = played(fleet, Instance.objects.get())
    assert node.desired[row.public_id]["work"]["checkpoint_sha256"] == kept
    [entry] = artifacts.files_of(project.pk, kept)
    assert asks(node, "GET", entry.sha256, assignment=row).getvalue() == b"7"


def test_a_node_sends_in_pieces_and_is_told_where_to_go_on(
    rent: Rent, run_until_idle: Run, settle: Run, fleet: Fleet
) -> None:
    instance = rent(work=Work(outputs=("out",)))
    run_until_idle()
    node, row = played(fleet, instance)
    digest = sha256(b"abcdef").hexdigest()
    ask = {"node": node.node.public_id, "key": node.key, "assignment": row.public_id, "fence": row.fence}
    missing = Client().post("/agent/v1/artifacts/missing", ask | {"sha256s": [digest]}, content_type="application/json")
    assert missing.json() == {"missing": [digest]}
    assert asks(node, "HEAD", digest, assignment=row).status_code == 404
    first = asks(node, "PUT", digest, b"abc", assignment=row, **{"Upload-Length": "6"})
    assert (first.status_code, first["Upload-Offset"]) == (200, "3")
    assert asks(node, "HEAD", digest, assignment=row)["Upload-Offset"] == "3"
    wrong = asks(node, "PUT", digest, b"ef", assignment=row, **{"Upload-Length": "6", "Upload-Offset": "4"})
    assert (wrong.status_code, wrong["Upload-Offset"]) == (409, "3")
    asks(node, "PUT", digest, b"def", assignment=row, **{"Upload-Length": "6", "Upload-Offset": "3"})
    assert artifacts.find(project_id=instance.project_id, sha256=digest).state == "stored"  # type: ignore[union-attr]


def test_since_when_a_node_sends_what_was_left_is_noted_once(running: Instance, fleet: Fleet, settle: Run) -> None:
    settle()
    (node, row), begun = played(fleet, running), timezone.now()
    sends = Progress(step="outputs", done_bytes=0, total_bytes=9, bytes_per_s=3)
    since = begun + timedelta(seconds=1)
    for seconds, progress, noted in ((0, None, None), (1, sends, since), (2, None, since), (3, sends, since)):
        node.seq += 1
        word = Said(id=row.public_id, fence=row.fence, state="running", progress=progress)
        report = Report(
            node=node.node.public_id, key=node.key, boot_id="boot", agent_epoch=node.epoch, seq=node.seq,
            desired_seen=node.generation, assignments=[word],
        )  # fmt: skip
        reports.take(report, at=begun + timedelta(seconds=seconds))
        row.refresh_from_db()
        assert row.sending_since == noted
