"""What nodes say is written down once and only where it is theirs; what they are told is one whole document."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from msgspec import structs

from marketplace import rentals
from marketplace.access import Actor
from provisioning import engine, reports, telemetry
from provisioning.models import Assignment, Heartbeat, Instance, LogChunk, Node, Workflow
from provisioning.protocol import Event, Inventory, LogPiece, Progress, Report, Said
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent, Run
from tests.nodes import PlayedNode, facts

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


@pytest.fixture
def played(fleet: Fleet) -> PlayedNode:
    return fleet.nodes["h200-1"]


def tell(played: PlayedNode, *, at: datetime | None = None, **overrides: Any) -> dict[str, Any]:
    """Send the next report of this node."""
    return reports.take(report_of(played, **overrides), at=at or timezone.now())


def report_of(played: PlayedNode, **overrides: Any) -> Report:
    """Return the next report of this node; what is not named is as a healthy idle node says it."""
    played.seq += 1
    return Report(
        **{
            "node": played.node.public_id,
            "key": played.key,
            "boot_id": "boot",
            "agent_epoch": played.epoch,
            "seq": played.seq,
            "desired_seen": played.generation,
        }
        | overrides
    )


def said(assignment: Assignment, state: str, **overrides: Any) -> Said:
    return Said(
        **{
            "id": assignment.public_id,
            "fence": assignment.fence,
            "state": state,
            "exit_code": None,
            "exited_ago_ms": None,
            "message": "",
        }
        | overrides
    )


def piece(name: str, offset: int, data: bytes) -> LogPiece:
    return LogPiece(assignment=name, offset=offset, data=data)


def the_assignment() -> Assignment:
    return Assignment.objects.get()


def everything() -> list[Any]:
    """Return all that a report could change."""
    tables = (Node, Heartbeat, Assignment, LogChunk, Workflow, Instance)
    return [list(table.objects.order_by("pk").values()) for table in tables]


@pytest.mark.parametrize(
    "wrong",
    [{"key": "guessed"}, {"key": ""}, {"node": "nod_unknown"}, {"node": ""}],
)
def test_a_wrong_key_or_an_unknown_node_learns_and_changes_nothing(
    running: Instance, played: PlayedNode, wrong: dict[str, str]
) -> None:
    row, before = the_assignment(), everything()
    answer = tell(played, assignments=[said(row, "gone")], logs=[piece(row.public_id, 0, b"x")], **wrong)
    assert answer == {
        "node": wrong.get("node", played.node.public_id),
        "status": "unauthorized",
        "poll_after_ms": 30000,
    }
    assert everything() == before


def test_a_node_that_never_joined_has_no_key_that_fits(played: PlayedNode) -> None:
    Node.objects.filter(pk=played.node.pk).update(key_hash="")
    assert tell(played, key="")["status"] == "unauthorized"


@pytest.mark.parametrize(("epoch", "seq"), [(5, 7), (5, 6), (4, 100)])
def test_an_older_or_repeated_report_is_stale_and_changes_nothing(
    running: Instance, played: PlayedNode, epoch: int, seq: int
) -> None:
    assert tell(played, agent_epoch=5, seq=7)["status"] == "ok"
    row, before = the_assignment(), everything()
    answer = tell(
        played,
        agent_epoch=epoch,
        seq=seq,
        assignments=[said(row, "gone")],
        logs=[piece(row.public_id, 0, b"x")],
        inventory=Inventory(generation=9, gpus=[]),
        telemetry=[{"uuid": "GPU-1", "power_mw": 1}],
    )
    assert answer == {"node": played.node.public_id, "status": "stale", "poll_after_ms": 200}
    assert everything() == before


@pytest.mark.parametrize(("epoch", "seq"), [(5, 8), (6, 1)])
def test_a_newer_report_counts(played: PlayedNode, epoch: int, seq: int) -> None:
    tell(played, agent_epoch=5, seq=7)
    assert tell(played, agent_epoch=epoch, seq=seq)["status"] == "ok"


def test_a_wrong_fence_and_another_nodes_assignment_are_ignored(
    running: Instance, fleet: Fleet, played: PlayedNode
) -> None:
    row = the_assignment()
    for fence in (0, 2):
        tell(played, assignments=[said(row, "gone", fence=fence)])
    tell(fleet.nodes["h200-2"], assignments=[said(row, "failed")], logs=[piece(row.public_id, 0, b"forged")])
    tell(played, assignments=[said(row, "failed", id="asg_unknown")])
    assert the_assignment().observed == "running"
    assert not LogChunk.objects.exists()


def test_what_is_gone_stays_gone(running: Instance, played: PlayedNode) -> None:
    row = the_assignment()
    tell(played, assignments=[said(row, "gone")])
    tell(played, assignments=[said(row, "running")], logs=[piece(row.public_id, 0, b"a ghost")])
    assert the_assignment().observed == "gone"
    assert not LogChunk.objects.exists()


def test_a_changed_state_wakes_its_workflow_and_a_repeated_one_does_not(running: Instance, played: PlayedNode) -> None:
    row = the_assignment()
    tell(played, assignments=[said(row, "running")])
    assert engine.due(limit=10) == []
    tell(played, assignments=[said(row, "failed", message="Xid 79")])
    assert engine.due(limit=10) == [running.pk]
    assert the_assignment().message == "Xid 79"


def test_a_command_ended_when_its_node_says_and_not_when_the_report_came(running: Instance, played: PlayedNode) -> None:
    row = the_assignment()
    tell(played, at=NOON, assignments=[said(row, "exited", exit_code=3, exited_ago_ms=90_500)])
    assert the_assignment().exit_code == 3
    assert the_assignment().exited_at == NOON - timedelta(seconds=90, milliseconds=500)
    # Said again with the state that follows, it does not move.
    tell(played, at=NOON + timedelta(hours=1), assignments=[said(row, "gone", exited_ago_ms=0)])
    assert the_assignment().exit_code == 3
    assert the_assignment().exited_at == NOON - timedelta(seconds=90, milliseconds=500)


def test_output_is_kept_once_and_in_order_whatever_comes(running: Instance, played: PlayedNode) -> None:
    name = the_assignment().public_id

    def cursor_after(*pieces: tuple[int, bytes]) -> int:
        answer = tell(played, desired_seen=0, logs=[piece(name, offset, data) for offset, data in pieces])
        return int(answer["log_cursors"][name])

    assert cursor_after((0, b"abc")) == 3
    assert cursor_after((0, b"abc")) == 3  # again
    assert cursor_after((1, b"bcdef")) == 3  # overlapping
    assert cursor_after((7, b"hij")) == 3  # a gap
    assert cursor_after((5, b"fg"), (3, b"de")) == 5  # out of order: the first waits for another report
    assert cursor_after((5, b"fg"), (7, b"hij")) == 10
    assert cursor_after((10, b"")) == 10
    assert b"".join(bytes(chunk.data) for chunk in LogChunk.objects.order_by("offset")) == b"abcdefghij"


def test_output_beyond_the_cap_is_counted_and_not_kept(
    running: Instance, played: PlayedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "LOG_BYTES_MAX", 10)
    name = the_assignment().public_id
    tell(played, logs=[piece(name, 0, b"0123456789")])
    tell(played, logs=[piece(name, 10, b"too much")])
    # The node goes on from there and does not send the same for ever.
    assert the_assignment().log_bytes == 18
    assert [bytes(chunk.data) for chunk in LogChunk.objects.all()] == [b"0123456789"]


def test_the_last_output_may_come_with_the_end(running: Instance, played: PlayedNode) -> None:
    row = the_assignment()
    tell(played, assignments=[said(row, "gone")], logs=[piece(row.public_id, 0, b"good bye")])
    assert the_assignment().log_bytes == 8


def pace(answer: dict[str, Any]) -> str:
    return next(name for name, wait_ms in settings.NODE_POLL_MS.items() if wait_ms == answer["poll_after_ms"])


def test_a_node_calls_often_while_something_moves_there(
    rent: Rent, run_until_idle: Run, fleet: Fleet, played: PlayedNode, actor: Actor
) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        assert pace(played.sync()) == "idle"
        instance = rent()
        assert pace(played.sync()) == "moving"
        run_until_idle()
        assert pace(played.sync()) == "busy"
        row = the_assignment()
        exited = said(row, "exited", exit_code=0, exited_ago_ms=0)
        assert pace(tell(played, assignments=[exited])) == "moving"
        clock.shift(reports.ENDING + timedelta(milliseconds=1))
        assert pace(tell(played, assignments=[exited])) == "busy"
        instance.refresh_from_db()
        rentals.stop(actor=actor, instance=instance, at=timezone.now())
        engine.run_one(instance.pk, PLAN)
        assert pace(tell(played)) == "moving"
        tell(played, assignments=[said(row, "gone")])
        assert pace(tell(played, desired_seen=0)) == "idle"
        assert tell(played, desired_seen=0)["desired"]["assignments"] == []


def test_the_document_comes_whole_and_only_when_it_changed(running: Instance, played: PlayedNode) -> None:
    answer = tell(played)
    assert "desired" not in answer
    for generation in (played.generation - 1, played.generation + 1, 0):
        whole = tell(played, desired_seen=generation)
        assert whole["desired_generation"] == answer["desired_generation"]
        assert [entry["id"] for entry in whole["desired"]["assignments"]] == [the_assignment().public_id]
    assert whole["desired"]["assignments"][0] == {
        "id": the_assignment().public_id,
        "fence": 1,
        "instance": running.public_id,
        "name": running.name,
        "image": "",
        "ports": [],
        "lease_s": 900,
        "ssh_keys": [],
        "volumes": [],
        "network": None,
        "desired": "running",
        "gpus": the_assignment().gpu_uuids,
        "command": ["sleep", "1000"],
        "env": {},
        "replica": 0,
        "replicas": 1,
        "peers": [],
        "stop_grace_s": 10,
        "notice": None,
        "risk": None,
        "work": {
            "inputs": "",
            "outputs": [],
            "checkpoint": "",
            "checkpoint_sha256": "",
            "has_network": True,
            "counters": None,
            "disk_bytes": None,
        },
    }


def test_each_replica_of_a_gang_learns_the_hosts_of_all_by_replica(
    rent: Rent, run_until_idle: Run, fleet: Fleet
) -> None:
    rent(name="alone", gpus=3)
    gang = rent(gpus=4, replicas=3)
    run_until_idle()
    rows = list(Assignment.objects.filter(instance=gang).select_related("node").order_by("replica"))
    hosts = [row.node.name for row in rows]
    assert len(set(hosts)) == 2
    found = {}
    for played in fleet.nodes.values():
        for entry in tell(played, desired_seen=0)["desired"]["assignments"]:
            if entry["replicas"] == 1:
                assert entry["peers"] == []
            else:
                found[entry["replica"]] = entry["peers"]
    assert found == {0: hosts, 1: hosts, 2: hosts}


def test_readings_are_kept_and_an_inventory_is_taken(played: PlayedNode) -> None:
    tell(
        played,
        telemetry=[{"uuid": "GPU-1", "power_mw": None}],
        energy=[{"uuid": "GPU-1", "millijoules": 7, "driver_epoch": "a"}],
        inventory=Inventory(generation=4, gpus=facts(played.node, healthy=False)),
    )
    heartbeat = Heartbeat.objects.get(node=played.node)
    assert heartbeat.telemetry == [{"uuid": "GPU-1", "power_mw": None}]
    assert heartbeat.energy[0]["millijoules"] == 7
    assert heartbeat.inventory_generation == 4
    assert Node.objects.get(pk=played.node.pk).free_gpus == 0


def questions(call: Callable[[], object]) -> int:
    """Return how many questions a call asks the database, without the words that begin and end transactions."""
    with CaptureQueriesContext(connection) as asked:
        call()
    return sum(not query["sql"].startswith(("SAVEPOINT", "RELEASE")) for query in asked.captured_queries)


def test_an_idle_report_asks_the_database_three_times(played: PlayedNode) -> None:
    played.sync()
    assert questions(lambda: reports.take_all([report_of(played)], at=timezone.now())) == 3


def test_a_batch_of_calm_reports_asks_as_often_however_many_nodes_it_speaks_for(
    running: Instance, fleet: Fleet, run_until_idle: Run
) -> None:
    run_until_idle()
    row = the_assignment()
    said_of = {row.node_id: [said(row, "running")]}
    batch = [report_of(played, assignments=said_of.get(played.node.pk, [])) for played in fleet.nodes.values()]
    answers: list[dict[str, Any]] = []
    assert questions(lambda: answers.extend(reports.take_all(batch, at=timezone.now()))) == 3
    assert [answer["status"] for answer in answers] == ["ok"] * 3
    assert [answer["node"] for answer in answers] == [report.node for report in batch]
    assert not any("desired" in answer for answer in answers)
    again = reports.take_all(batch, at=timezone.now())
    assert [answer["status"] for answer in again] == ["stale"] * 3


def test_what_nodes_read_costs_as_much_in_a_batch_of_news_as_in_a_calm_one(fleet: Fleet) -> None:
    """Each report with news costs its own few statements; hearing all of them costs what hearing one does."""
    fleet.sync()
    telemetry._prepared.clear()  # What an earlier test had made was rolled back.
    tell(fleet.nodes["l40s-1"], telemetry=[{"uuid": "GPU-l40s-1-0", "power_mw": 7}])  # Today's partition is there.
    costs = []
    for count in (1, 3):
        batch = [
            report_of(
                played,
                telemetry=[{"uuid": f"GPU-{played.node.name}-0", "power_mw": 7}],
                events=[Event(n=count, kind="unheard of")],
            )
            for played in list(fleet.nodes.values())[:count]
        ]
        answers: list[dict[str, Any]] = []
        costs.append(questions(lambda: answers.extend(reports.take_all(batch, at=timezone.now()))))  # noqa: B023
        assert [(answer["status"], answer["events_seen"]) for answer in answers] == [("ok", count)] * count
    hearing, news = 5, 4
    assert costs == [hearing + news, hearing + 3 * news]
    assert set(Heartbeat.objects.values_list("telemetry__0__power_mw", flat=True)) == {7}


def test_a_change_of_what_should_be_there_is_told_without_a_transaction_of_its_own(
    running: Instance, played: PlayedNode
) -> None:
    row = the_assignment()
    Node.objects.filter(pk=row.node_id).update(desired_generation=99)
    with CaptureQueriesContext(connection) as asked:
        [answer] = reports.take_all(
            [report_of(played, assignments=[said(row, "running")], desired_seen=played.generation)], at=timezone.now()
        )
    assert (answer["desired_generation"], len(answer["desired"]["assignments"])) == (99, 1)
    assert not [query for query in asked.captured_queries if "FOR NO KEY UPDATE" in query["sql"][-40:]]


def storm(fleet: Fleet, *, n: int) -> list[Report]:
    """One report of each node with one entry of its journal."""
    events = [Event(n=n, kind="good")]
    return [report_of(played, events=events) for played in fleet.nodes.values()]


def test_where_time_is_short_all_are_heard_and_some_say_their_news_again(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, takers: list[Any]
) -> None:
    fleet.sync()
    monkeypatch.setattr(reports, "NEWS_S", -1.0)
    at = timezone.now()
    answers = reports.take_all(storm(fleet, n=1), at=at)
    assert [(answer["status"], answer.get("events_seen")) for answer in answers] == [("ok", None)] * 3
    assert set(Heartbeat.objects.values_list("last_seen", "events_seen")) == {(at, 0)}
    assert takers == []
    monkeypatch.setattr(reports, "NEWS_S", 5.0)
    answers = reports.take_all(storm(fleet, n=1), at=timezone.now())
    assert [(answer["status"], answer["events_seen"]) for answer in answers] == [("ok", 1)] * 3
    assert {name for name, _, _ in takers} == set(fleet.nodes)


def test_over_several_batches_every_node_gets_its_turn(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, takers: list[Any]
) -> None:
    """Where there is time for one of three, it is not always the same one, whoever has news every time."""
    fleet.sync()
    clock = iter(range(10_000))
    monkeypatch.setattr(reports.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(reports, "NEWS_S", 1.5)
    for n in range(1, 60):
        reports.take_all(storm(fleet, n=n), at=timezone.now())
    told = [sum(name == one for name, _, _ in takers) for one in fleet.nodes]
    assert sum(told) == 59
    assert min(told) > 5


def test_an_inventory_is_taken_however_short_time_is(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, played: PlayedNode
) -> None:
    """Its node takes any answer for the word that it is known."""
    fleet.sync()
    monkeypatch.setattr(reports, "NEWS_S", -1.0)
    said = Inventory(generation=4, gpus=facts(played.node, healthy=False))
    assert reports.take_all([report_of(played, inventory=said)], at=timezone.now())[0]["status"] == "ok"
    assert Heartbeat.objects.get(node=played.node).inventory_generation == 4


def test_a_machine_that_started_anew_is_never_heard_in_a_set(running: Instance, played: PlayedNode) -> None:
    row = the_assignment()
    [answer] = reports.take_all([report_of(played, boot_id="another")], at=timezone.now())
    assert answer["status"] == "ok"
    row.refresh_from_db()
    assert (row.observed, Heartbeat.objects.get(node=played.node).boot_id) == ("gone", "another")


def test_an_error_with_one_nodes_news_leaves_the_others_and_its_own_heartbeat(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, takers: list[Any]
) -> None:
    fleet.sync()
    real = reports._take_news

    def fail_once(node: Node, *given: Any, **more: Any) -> dict[str, Any]:
        answer = real(node, *given, **more)
        if node.name == "h200-1":
            raise ValueError("one of ours")
        return answer

    monkeypatch.setattr(reports, "_take_news", fail_once)
    at = timezone.now()
    answers = reports.take_all(storm(fleet, n=1), at=at)
    assert sorted(answer["status"] for answer in answers) == ["error", "ok", "ok"]
    assert sorted(Heartbeat.objects.values_list("last_seen", "events_seen")) == [(at, 0), (at, 1), (at, 1)]


def test_news_in_a_batch_are_taken_beside_what_is_calm(running: Instance, fleet: Fleet, run_until_idle: Run) -> None:
    run_until_idle()
    row = the_assignment()
    progress = Progress(step="pull", done_bytes=7, total_bytes=None, bytes_per_s=3)
    news = said(row, "running", ports={"80": 31_001}, progress=progress)
    batch = [
        report_of(played, assignments=[news] if played.node.pk == row.node_id else [])
        for played in fleet.nodes.values()
    ]
    assert [answer["status"] for answer in reports.take_all(batch, at=timezone.now())] == ["ok"] * 3
    row.refresh_from_db()
    assert (row.ports, row.progress) == ({"80": 31_001}, structs.asdict(progress))


# The journal


@pytest.fixture
def takers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, datetime, Any]]:
    """Who takes events in these tests: one kind that is written down, one that fails."""
    taken: list[tuple[str, datetime, Any]] = []

    def fail(node: Node, at: datetime, body: Any) -> None:
        Node.objects.filter(pk=node.pk).update(rack="half done")
        raise ValueError("not this one")

    monkeypatch.setitem(reports.EVENT_TAKERS, "good", lambda node, at, body: taken.append((node.name, at, body)))
    monkeypatch.setitem(reports.EVENT_TAKERS, "bad", fail)
    return taken


def test_each_event_is_taken_once_in_order_with_the_time_when_it_happened(
    played: PlayedNode, takers: list[Any]
) -> None:
    events = [Event(n=n, kind="good", ago_ms=n * 1000, body={"n": n}) for n in (2, 1)]
    assert tell(played, at=NOON, events=events)["events_seen"] == 2
    assert tell(played, at=NOON, events=[*events, Event(n=3, kind="good", body={"n": 3})])["events_seen"] == 3
    assert takers == [
        ("h200-1", NOON - timedelta(seconds=1), {"n": 1}),
        ("h200-1", NOON - timedelta(seconds=2), {"n": 2}),
        ("h200-1", NOON, {"n": 3}),
    ]


def test_an_event_that_cannot_be_taken_leaves_nothing_behind_and_holds_up_nothing(
    played: PlayedNode, takers: list[Any]
) -> None:
    kinds = ("bad", "unheard of", "good")
    events = [Event(n=n, kind=kind) for n, kind in enumerate(kinds, start=1)]
    answer = tell(played, events=events)
    assert (answer["status"], answer["events_seen"]) == ("ok", 3)
    assert len(takers) == 1
    assert Node.objects.get(pk=played.node.pk).rack == "r1"
