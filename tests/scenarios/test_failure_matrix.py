"""What must happen, and what must never, when a part fails: every row of the matrix.

Rows that other files hold are named in ROWS; the numbers are those of the matrix that the protocol was designed by.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from django.utils.timezone import now

from billing.models import UsageSpan
from marketplace.console import troubles
from provisioning import nodes, reports
from provisioning.agent import disk
from provisioning.agent.control import Backoff
from provisioning.agent.lease import LEASE_RAN_OUT
from provisioning.models import Assignment, Heartbeat, Instance, LogChunk, Node
from provisioning.protocol import VERSION, LogPiece, Report, Said
from tests.conftest import Fleet
from tests.nodes import PlayedNode
from tests.packages import needs
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.conftest import home, plane, start_agent
from tests.provisioning.agent.control_plane import ControlPlane
from tests.scenarios.conftest import ROOT
from tests.scenarios.deaths import _no_nudges, die, in_a_process_that_dies

__all__ = ["_no_nudges", "home", "plane", "start_agent"]

StartAgent = Callable[..., AgentRun]
database = pytest.mark.django_db(transaction=True)

# Row: who holds it, as file and test.
ROWS = {
    1: ("tests/provisioning/agent/test_restarts.py", "a_workload_goes_on_when_its_agent_is_killed_and_is_found_again"),
    2: ("tests/provisioning/agent/test_joining.py", "a_home_belongs_to_one_agent_at_a_time"),
    3: ("tests/provisioning/test_leases.py", "a_node_that_is_confirmed_off_is_given_up_before_any_lease"),
    4: ("tests/provisioning/test_leases.py", "a_node_that_restarted_has_lost_all_that_ran_there_at_once"),
    5: ("tests/scenarios/test_cut.py", "a_cut_ends_the_strict_instance_before_its_replacement_starts"),
    6: ("tests/scenarios/test_failure_matrix.py", "an_outage_of_ours_ends_what_is_strict_and_leaves_what_is_sticky"),
    7: ("tests/scenarios/test_failure_matrix.py", "without_its_database_the_gateway_asks_nodes_to_come_again"),
    8: ("tests/scenarios/test_faults.py", "flush_redis"),
    9: ("tests/scenarios/test_races.py", "two_workers_do_not_run_one_step_twice"),
    10: ("tests/scenarios/test_workers.py", "a_worker_killed_in_any_step_loses_and_doubles_nothing"),
    11: ("tests/scenarios/test_workers.py", "a_worker_that_hangs_beyond_its_lease_changes_nothing_when_it_wakes_up"),
    12: ("tests/scenarios/test_races.py", "the_last_gpu_goes_to_one_of_two"),
    13: ("tests/provisioning/health/test_repairs.py", "a_repair_whose_end_nobody_knows_is_not_tried_again"),
    14: ("tests/scenarios/test_health.py", "a_gpu_that_falls_off_the_bus"),
    15: ("tests/scenarios/test_failure_matrix.py", "a_clock_that_is_ten_minutes_off_is_shown_and_changes_nothing_else"),
    16: ("tests/scenarios/test_failure_matrix.py", "a_full_disk_refuses_what_is_new_and_keeps_the_journal"),
    17: ("tests/provisioning/agent/test_workloads.py", "a_document_that_is_not_newer_is_ignored"),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_held_by_a_test(row: int) -> None:
    file, name = ROWS[row]
    assert name in (ROOT / file).read_text()


# The agent: rows 1, 2, 6, 15, 16


@pytest.mark.parametrize("step", ["prepared", "running", "asked to run", "exited", "asked to go"])
def test_an_agent_killed_at_any_step_starts_the_command_once_and_leaves_nothing(
    plane: ControlPlane, home: Path, start_agent: StartAgent, tmp_path: Path, step: str
) -> None:
    begun = tmp_path / "begun"
    command = ["sh", "-c", f"echo began >> {begun}; sleep {1 if step == 'exited' else 600}"]
    agent = start_agent()
    plane.want("asg_a", "prepared", command=command, stop_grace_s=1)
    eventually(lambda: plane.view("asg_a")["state"] == "prepared")
    if step == "prepared":
        agent = killed_and_again(agent, start_agent)
    plane.want("asg_a", "running")
    if step == "asked to run":
        time.sleep(random.uniform(0, 0.3))
        agent = killed_and_again(agent, start_agent)
    eventually(lambda: plane.view("asg_a")["state"] in {"running", "exited"})
    if step in {"running", "exited"}:
        agent = killed_and_again(agent, start_agent)
    eventually(begun.exists)
    if step == "exited":
        eventually(lambda: plane.view("asg_a")["state"] == "exited")
        agent = killed_and_again(agent, start_agent)
    plane.want("asg_a", "gone")
    if step == "asked to go":
        time.sleep(random.uniform(0, 0.3))
        agent = killed_and_again(agent, start_agent)
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    assert begun.read_text() == "began\n"
    assert not (home / "workloads" / "asg_a").exists()


def killed_and_again(agent: AgentRun, start_agent: StartAgent) -> AgentRun:
    agent.kill()
    return start_agent()


def test_an_outage_of_ours_ends_what_is_strict_and_leaves_what_is_sticky(
    plane: ControlPlane, start_agent: StartAgent
) -> None:
    start_agent()
    plane.want("asg_strict", "running", lease_s=1, stop_grace_s=1)
    plane.want("asg_sticky", "running", lease_s=60)
    eventually(lambda: {plane.view(name)["state"] for name in ("asg_strict", "asg_sticky")} == {"running"})
    plane.forced = lambda path: (503, {"Retry-After": "1"}, b"")
    time.sleep(3)
    plane.forced = lambda path: None
    eventually(lambda: plane.view("asg_strict")["state"] == "failed")
    assert LEASE_RAN_OUT in plane.view("asg_strict")["message"]
    assert plane.view("asg_sticky")["state"] == "running"


def test_nodes_come_back_after_an_outage_spread_over_the_whole_back_off() -> None:
    fleet, chance = 3000, random.Random(7)
    arrivals = Counter[int]()
    for _ in range(fleet):
        backoff, at, returned = Backoff(), 0.0, 600 + chance.random()
        while at < returned:
            at += backoff.next_s()
        arrivals[int(at - returned)] += 1
    assert sum(arrivals.values()) == fleet
    assert max(arrivals) < Backoff.LAST_S
    assert max(arrivals.values()) < fleet * 0.08, "a herd"
    assert len([second for second in arrivals if arrivals[second] > fleet * 0.005]) > Backoff.LAST_S * 0.8


@database
@pytest.mark.parametrize("minutes", [10, -10])
def test_a_clock_that_is_ten_minutes_off_is_shown_and_changes_nothing_else(
    running: Instance, fleet: Fleet, minutes: int
) -> None:
    before = list(Instance.objects.values()), list(UsageSpan.objects.values()), list(Node.objects.values())
    played, at = fleet.nodes["h200-1"], now()
    clock_ms = round((at + timedelta(minutes=minutes)).timestamp() * 1000)
    assert tell(played, clock_ms=clock_ms, at=at)["status"] == "ok"
    assert (list(Instance.objects.values()), list(UsageSpan.objects.values()), list(Node.objects.values())) == before
    assert Heartbeat.objects.get(node=played.node).last_seen == at
    (shown,) = [one for one in troubles.alarm(at=at).troubles if one.what == "Clock is wrong"]
    assert (shown.subject, shown.detail) == ("h200-1", f"600 s {'ahead of' if minutes > 0 else 'behind'} ours")
    assert tell(played, clock_ms=round(now().timestamp() * 1000), at=now())["status"] == "ok"
    assert not [one for one in troubles.alarm(at=at).troubles if one.what == "Clock is wrong"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "gpumarket-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@needs("ip")  # Whoever may make namespaces may mount.
def test_a_full_disk_refuses_what_is_new_and_keeps_the_journal(small_disk: Path, plane: ControlPlane) -> None:
    from provisioning.agent.journal import Journal

    agent = AgentRun(small_disk / "home", plane.url)
    try:
        plane.want("asg_old", "running", command=["sleep", "600"])
        eventually(lambda: plane.view("asg_old")["state"] == "running")
        fill(small_disk / "filler")
        plane.want("asg_new", "prepared")
        eventually(lambda: plane.view("asg_new")["state"] == "failed")
        assert plane.view("asg_new")["message"] == "the disk of the node is full"
        assert plane.view("asg_old")["state"] == "running"
        agent.stop()
        # Its own records go on, by the room that it holds for them.
        reserve = disk.Reserve(small_disk / "home")
        path = small_disk / "home" / "journal"
        journal = Journal(path, news=lambda: None, writing=reserve.writing)
        numbers = [journal.append("health", {"detail": "x" * 1000}) for _ in range(20)]
        again = Journal(path, news=lambda: None)
        assert [entry["n"] for entry in again.waiting(100)][-20:] == numbers
        (small_disk / "filler").unlink()
        assert not reserve.is_full()
        agent = AgentRun(small_disk / "home", plane.url)
        plane.want("asg_next", "prepared")
        eventually(lambda: plane.view("asg_next")["state"] == "prepared")
        for name in ("asg_old", "asg_new", "asg_next"):
            plane.want(name, "gone")
        eventually(lambda: all(plane.view(name)["state"] == "gone" for name in ("asg_old", "asg_next")))
    finally:
        agent.kill()


# As a verifier runs: without network, on another host, its outputs as its folder.
FILLS_ITS_DISK = """
import errno, sys
try:
    with open("filler", "wb", buffering=0) as file:
        while file.write(b"x" * 65536):
            pass
except OSError as error:
    sys.exit(28 if error.errno == errno.ENOSPC else 0)
"""


@needs("ip")
def test_a_verifier_that_fills_the_disk_has_given_no_answer_and_harms_nobody(
    small_disk: Path, plane: ControlPlane
) -> None:
    agent = AgentRun(small_disk / "home", plane.url)
    try:
        plane.want("asg_other", "running", command=["sleep", "600"])
        eventually(lambda: plane.view("asg_other")["state"] == "running")
        fills = [sys.executable, "-c", FILLS_ITS_DISK]
        plane.want("asg_check", "running", command=fills, work={"has_network": False})
        eventually(lambda: plane.view("asg_check")["state"] == "exited", seconds=60)
        assert plane.view("asg_check")["exit_code"] == 28, "neither 0, which passes, nor 1, which does not"
        assert plane.view("asg_other")["state"] == "running"
        plane.want("asg_check", "gone")
        eventually(lambda: plane.view("asg_check")["state"] == "gone", seconds=60)
        plane.want("asg_next", "running", command=["true"])
        eventually(lambda: plane.view("asg_next")["state"] == "exited", seconds=60)
    finally:
        agent.kill()


def fill(file: Path) -> None:
    """Leave no byte free."""
    for size in (1 << 20, 1 << 12, 1):
        with file.open("ab", buffering=0) as sink:
            try:
                while sink.write(b"\0" * size):
                    pass
            except OSError:
                pass


# The gateway: rows 7, 17 and bad input


def report_of(played: PlayedNode, *said: Said, **more: Any) -> Report:
    played.seq += 1
    return Report(
        node=played.node.public_id, key=played.key, boot_id="boot", agent_epoch=played.epoch, seq=played.seq,
        desired_seen=0, assignments=list(said), **more,
    )  # fmt: skip


def tell(played: PlayedNode, *said: Said, at: Any, **more: Any) -> dict[str, Any]:
    return reports.take(report_of(played, *said, **more), at=at)


@database
@pytest.mark.usefixtures("_no_nudges")
@pytest.mark.parametrize("where", ["_hear", "_take_states", "take_logs", "_answer", "after the commit"])
def test_a_gateway_killed_in_the_middle_of_a_report_takes_all_of_it_or_nothing(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet, where: str
) -> None:
    played, row = fleet.nodes["h200-1"], Assignment.objects.get()
    said = Said(id=row.public_id, fence=row.fence, state="exited", exit_code=3, exited_ago_ms=1000)
    logs = [LogPiece(assignment=row.public_id, offset=0, data=b"the last words")]

    def take_and_die() -> None:
        if where != "after the commit":
            real = getattr(reports, where)
            monkeypatch.setattr(reports, where, lambda *given, **more: (real(*given, **more), die()))
        reports.take_all([report_of(played, said, logs=logs)], at=timezone.now())
        die()

    in_a_process_that_dies(take_and_die)
    was_taken = where == "after the commit"
    assert (Assignment.objects.get().observed == "exited", LogChunk.objects.count() == 1) == (was_taken, was_taken)
    # The agent heard no answer and says all of it again.
    played.seq += 1
    assert tell(played, said, at=timezone.now(), logs=logs)["status"] == "ok"
    row.refresh_from_db()
    assert (row.observed, row.exit_code, LogChunk.objects.count()) == ("exited", 3, 1)


@database
def test_without_its_database_the_gateway_asks_nodes_to_come_again(running: Instance, fleet: Fleet) -> None:
    played, row = fleet.nodes["h200-1"], Assignment.objects.get()
    one = {
        "node": played.node.public_id, "key": played.key, "boot_id": "boot", "agent_epoch": 5, "seq": 1,
        "desired_seen": 0, "assignments": [{"id": row.public_id, "fence": 1, "state": "failed", "message": "Xid 79"}],
    }  # fmt: skip
    body, door = {"protocol": VERSION, "reports": [one]}, Client()
    port = connection.settings_dict["PORT"]
    connection.close()
    connection.settings_dict["PORT"] = "1"
    try:
        answer = door.post("/agent/v1/sync", json.dumps(body), content_type="application/json")
    finally:
        connection.close()
        connection.settings_dict["PORT"] = port
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert Assignment.objects.get().observed == "running"
    for expected in ("ok", "stale"):
        again = door.post("/agent/v1/sync", json.dumps(body), content_type="application/json").json()
        assert again["results"][0]["status"] == expected
    assert Assignment.objects.get().message == "Xid 79"


@database
def test_an_agent_of_an_unknown_version_is_told_and_its_node_loses_nothing(running: Instance, fleet: Fleet) -> None:
    before = Heartbeat.objects.values().get(node__name="h200-1")
    answer = Client().post(
        "/agent/v1/sync", json.dumps({"protocol": 99, "reports": []}), content_type="application/json"
    )
    assert answer.status_code == 422
    assert "speaks protocol 2" in answer.json()["detail"]
    assert Heartbeat.objects.values().get(node__name="h200-1") == before
    assert Instance.objects.get().phase == "running"


@database
def test_a_join_token_used_twice_lets_the_second_key_nowhere(fleet: Fleet) -> None:
    from provisioning.errors import JoinTokenUsed
    from tests.nodes import announce, facts

    node = announce(fleet.h200, Node.objects.get(name="h200-1").fabric, name="new-1")
    secret = nodes.issue_join_token(node=node, at=now())
    named = {"hostname": "new-1", "agent_version": "1", "runtime": "process", "gpu_source": "simulated"}
    for key, is_let_in in (("one", True), ("one", True), ("other", False)):
        call = lambda key=key: nodes.join(  # noqa: E731
            secret=secret, key_hash=nodes.digest(key), boot_id="boot", facts=named, gpus=facts(node), at=now()
        )
        if is_let_in:
            call()
        else:
            with pytest.raises(JoinTokenUsed):
                call()
    assert Node.objects.get(pk=node.pk).key_hash == nodes.digest("one")
