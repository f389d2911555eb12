"""How the agent speaks: by the protocol, at once when something happens, and through every kind of trouble."""

import itertools
import json
import random
import time
from dataclasses import fields

import pytest

from provisioning.agent.control import Backoff, retry_after_s
from provisioning.agent.gpus import Reading
from provisioning.agent.protocol import ProtocolError, parse_assignment, parse_result
from tests.provisioning.agent.cast import eventually
from tests.provisioning.agent.control_plane import make_assignment

GARBAGE = [
    (500, {}, b"<html>Internal Server Error</html>"),
    (200, {}, b"<html>a captive portal</html>"),
    (200, {}, b"\xff\xfe\x00"),
    (200, {}, b"[]"),
    (200, {}, b'{"results": []}'),
    (200, {}, b'{"results": [null]}'),
    (200, {}, b'{"results": [{"status": "ok", "poll_after_ms": "soon"}]}'),
    (
        200,
        {},
        b'{"results": [{"status": "ok", "desired_generation": 99, "desired": {"assignments": [{}]}}]}',
    ),
    (302, {"Location": "http://127.0.0.1:1/"}, b""),
    (404, {}, b""),
    (413, {}, b""),
]


def test_reports_carry_epoch_sequence_and_an_inventory_only_when_it_is_news(plane, home, start_agent):
    agent = start_agent()
    eventually(lambda: plane.reports)
    agent.kill()
    start_agent()
    eventually(lambda: sum(report["agent_epoch"] == 2 for report in plane.reports) >= 4)
    reports = [report for report in plane.reports if report["agent_epoch"] == 2]
    assert [report["seq"] for report in reports] == list(range(1, len(reports) + 1))
    assert ["inventory" in report for report in reports[:4]] == [True, False, False, False]
    generation = plane.inventory()["generation"]
    (home / "simulated-lost").write_text("1 3")
    eventually(lambda: plane.inventory()["generation"] == generation + 1)
    assert [gpu["healthy"] for gpu in plane.inventory()["gpus"]] == [True, False, True, False]


def test_an_inventory_that_the_control_plane_did_not_confirm_is_sent_again(plane, start_agent):
    plane.lose_answers["/agent/v1/sync"] = 2
    start_agent()
    eventually(lambda: len(plane.reports) >= 4)
    assert ["inventory" in report for report in plane.reports[:4]] == [True, True, True, False]


def test_meters_are_reported_and_a_lost_gpu_has_none(plane, home, start_agent):
    home.mkdir()
    (home / "simulated-lost").write_text("0")
    start_agent()
    report = eventually(lambda: next((report for report in plane.reports if report["telemetry"]), None))
    lost, *others = report["telemetry"]
    assert set(lost) == {one.name for one in fields(Reading)} - {"millijoules"}
    assert {value for name, value in lost.items() if name != "uuid"} == {None}
    assert all(one["power_mw"] > 0 for one in others)
    assert [one["uuid"] for one in report["energy"]] == [one["uuid"] for one in others]
    assert {type(one["millijoules"]) for one in report["energy"]} == {int}


def test_what_happens_here_is_said_at_once_and_not_at_the_next_poll(plane, start_agent):
    plane.poll_after_ms = 300
    start_agent()
    plane.want("asg_a", "running", command=["sleep", "1"])
    eventually(lambda: plane.reports)
    plane.poll_after_ms = 600_000
    eventually(lambda: plane.view("asg_a")["state"] == "exited")


def test_even_much_news_waits_a_moment_between_syncs(plane, start_agent):
    start_agent()
    eventually(lambda: plane.reports)
    with plane.guard:
        plane.heard_at.clear()
        for number in range(8):
            plane.want(f"asg_{number}", "running", command=["sleep", f"0.{number + 1}"])
    eventually(lambda: all(plane.view(f"asg_{number}")["state"] == "exited" for number in range(8)))
    gaps = [after - before for before, after in itertools.pairwise(plane.heard_at)]
    assert min(gaps) >= 0.07  # 0.1 s, less what the way here takes once and not the next time.


def test_a_workload_goes_on_while_its_lease_is_renewed_and_ends_when_it_is_not(plane, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", lease_s=0.6)
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    time.sleep(1)
    assert plane.view("asg_a")["state"] == "running"
    plane.forced = lambda path: (503, {}, b"")
    eventually(lambda: "asg_a fence=1 from=running to=failed exit_code=143" in agent.log)
    assert "heard nothing from its control plane" in agent.log


def test_a_prepared_gang_and_its_start_take_two_polls(plane, start_agent):
    start_agent()
    plane.want("asg_a", "prepared")
    eventually(lambda: plane.view("asg_a")["state"] == "prepared")
    plane.want("asg_a", "running")
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    assert plane.states("asg_a") == ["prepared", "running"]
    assert plane.view("asg_a") == {
        "id": "asg_a",
        "fence": 1,
        "state": "running",
        "gpus": [],
        "exit_code": None,
        "exited_ago_ms": None,
        "message": "",
        "progress": None,
        "ports": {},
        "checkpoint": None,
        "outputs": None,
    }


def test_no_answer_ends_the_agent_or_harms_a_workload(plane, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running")
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    for answer in GARBAGE:
        asked = []
        plane.forced = lambda path, answer=answer, asked=asked: asked.append(path) or answer
        eventually(lambda asked=asked: asked)
        plane.forced = lambda path: None
        before = len(plane.reports)
        eventually(lambda before=before: len(plane.reports) > before)
        assert plane.view("asg_a")["state"] == "running", answer
        assert plane.last["desired_seen"] == plane.generation
    assert agent.process.poll() is None


def test_a_control_plane_that_was_down_is_found_again(plane, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "echo before; sleep 1; echo meanwhile; sleep 600"])
    eventually(lambda: plane.log("asg_a") == "before\n")
    plane.close()
    eventually(lambda: agent.log.count("no sync this time") >= 2)
    time.sleep(0.5)
    plane.reopen()
    eventually(lambda: plane.log("asg_a") == "before\nmeanwhile\n")
    assert plane.states("asg_a")[-1] == "running"


def test_retry_after_is_honoured(plane, start_agent):
    start_agent()
    eventually(lambda: plane.reports)
    asked = []
    plane.forced = lambda path: asked.append(time.monotonic()) or (503, {"Retry-After": "2"}, b"")
    eventually(lambda: len(asked) >= 2)
    assert asked[1] - asked[0] >= 2


@pytest.mark.parametrize("how", ["status", "result"])
def test_a_key_that_is_not_accepted_is_said_plainly_and_retried_slowly(plane, start_agent, how):
    agent = start_agent()
    plane.want("asg_a", "running")
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    refusal = {
        "status": (401, {}, b'{"detail": "who are you?"}'),
        "result": (200, {}, json.dumps({"results": [{"status": "unauthorized", "desired": {}}]}).encode()),
    }[how]
    asked = []
    plane.forced = lambda path: asked.append(path) or refusal
    eventually(lambda: "the control plane" in agent.log)
    assert {"status": "who are you?", "result": "does not accept this node's key"}[how] in agent.log
    time.sleep(1.5)
    assert len(asked) == 1
    agent.stop()


def test_a_report_at_which_the_control_plane_fails_is_sent_again_and_nothing_is_lost(plane, home, start_agent):
    failing = {"node": "nod_narvik1", "status": "error", "poll_after_ms": 300}
    asked = []
    agent = start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "echo said; sleep 600"])
    eventually(lambda: plane.log("asg_a") == "said\n")
    plane.forced = lambda path: asked.append(time.monotonic()) or (200, {}, json.dumps({"results": [failing]}).encode())
    eventually(lambda: asked)
    lease = (home / "lease.json").read_text()
    (home / "simulated-lost").write_text("1")
    eventually(lambda: len(asked) >= 4)
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(asked))
    assert asked[3] - asked[2] > 0.9  # The pauses grow.
    assert (home / "lease.json").read_text() == lease  # Not heard is not confirmed.
    plane.forced = lambda path: None
    eventually(lambda: plane.inventory()["gpus"][1]["healthy"] is False)
    assert plane.view("asg_a")["state"] == "running"
    assert "through no fault of the node" in agent.log


def test_a_copy_of_a_home_is_told_that_it_is_stale(plane, start_agent):
    agent = start_agent()
    eventually(lambda: plane.reports)
    with plane.guard:
        plane.reports[-1] = plane.reports[-1] | {"agent_epoch": 99}
    eventually(lambda: "does another agent use a copy of this home" in agent.log)


def test_orphans_are_reported_until_the_control_plane_has_heard(plane, home, start_agent):
    start_agent()
    plane.want("asg_a", "running")
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    plane.unwant("asg_a")
    eventually(lambda: any("asg_a" in report["orphans"] for report in plane.reports))
    eventually(lambda: plane.last["orphans"] == [] and not list((home / "workloads").iterdir()))


def test_the_back_off_grows_with_jitter_up_to_half_a_minute():
    random.seed(4)
    pauses = [Backoff.next_s(backoff) for backoff in [Backoff()] for _ in range(12)]
    assert 0.25 <= pauses[0] <= 0.5
    assert all(15 <= pause <= 30 for pause in pauses[-5:])
    assert len(set(pauses)) == 12


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 0), ("7", 7), ("99999", 300), ("soon", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("-1", 0)],
)
def test_retry_after_is_read_as_seconds_or_a_date(value, seconds):
    assert retry_after_s(value) == seconds


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../asg_a"},
        {"id": "asg_a/b"},
        {"id": 5},
        {"fence": "1"},
        {"fence": True},
        {"desired": "paused"},
        {"gpus": "GPU-1"},
        {"command": [1]},
        {"env": {"A": 1}},
        {"env": ["A"]},
        {"stop_grace_s": "long"},
        {"peers": {}},
    ],
)
def test_an_assignment_of_the_wrong_shape_is_refused(change):
    parse_assignment(make_assignment("asg_a"))
    with pytest.raises(ProtocolError):
        parse_assignment(make_assignment("asg_a") | change)


@pytest.mark.parametrize("result", [{}, {"status": "ok", "log_cursors": {"asg_a": -1}}])
def test_a_result_of_the_wrong_shape_is_refused(result):
    parse_result({"results": [{"status": "ok"}]})
    with pytest.raises(ProtocolError):
        parse_result({"results": [result]})


def test_a_malformed_document_keeps_the_old_one(node):
    node.run("asg_a", "sleep 600")
    with pytest.raises(ProtocolError):
        node.home.adopt_document(generation=99, desired={"assignments": [make_assignment("asg_b"), {"id": 7}]})
    with pytest.raises(ProtocolError):
        node.home.adopt_document(generation=99, desired={"assignments": [make_assignment("asg_b")] * 2})
    assert node.look("asg_a").state == "running"
