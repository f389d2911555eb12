"""Agents and supervisors die at bad moments; customers' work does not, and never runs twice."""

import json
import signal
import time

import psutil
import pytest

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.state import Lease
from tests.provisioning.agent.cast import eventually, is_running, processes_of

TICKER = ["sh", "-c", "echo $$ > pid; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done"]


def ticker_pid(home, name="asg_a"):
    path = home / "workloads" / name / "work" / "pid"
    eventually(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def test_a_workload_goes_on_when_its_agent_is_killed_and_is_found_again(plane, home, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", command=TICKER)
    eventually(lambda: "tick 5\n" in plane.log("asg_a"))
    pid = ticker_pid(home)
    agent.kill()
    time.sleep(0.3)
    assert is_running(pid)
    start_agent()
    eventually(lambda: plane.last["agent_epoch"] == 2 and plane.view("asg_a")["state"] == "running")
    assert ticker_pid(home) == pid
    seen = plane.log("asg_a").count("tick")
    eventually(lambda: plane.log("asg_a").count("tick") > seen + 10)
    assert all(report["assignments"] for report in plane.reports if report["agent_epoch"] == 2)
    assert all(chunk["offset"] > 0 for chunk in plane.chunks[1:])  # No byte was sent again.
    ticks = plane.log("asg_a").splitlines()
    assert ticks[:-1] == [f"tick {number}" for number in range(len(ticks) - 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_soon_and_leaves_the_workload(plane, home, start_agent, number):
    agent = start_agent()
    plane.want("asg_a", "running", command=TICKER)
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    agent.stop(number)
    assert agent.process.returncode == 0
    assert is_running(ticker_pid(home))


def test_a_signal_ends_the_agent_soon_even_while_the_control_plane_hangs(plane, start_agent):
    agent = start_agent()
    eventually(lambda: plane.reports)
    plane.forced = lambda path: time.sleep(30)
    time.sleep(0.4)
    agent.stop()


def test_with_end_workloads_on_exit_nothing_is_left_and_the_end_is_on_record(plane, home, start_agent):
    agent = start_agent("--end-workloads-on-exit")
    plane.want("asg_a", "running", command=["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"])
    eventually(lambda: "ready" in plane.log("asg_a"))
    assert agent.stop() >= 2
    assert processes_of(home) == []
    plane.reports.clear()
    start_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "exited")
    assert plane.view("asg_a")["exit_code"] == 137
    assert "told to end" in plane.view("asg_a")["message"]


def test_an_exit_while_the_agent_is_dead_is_reported_with_its_time(plane, home, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "sleep 1; echo done; exit 9"])
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    agent.kill()
    eventually((home / "workloads" / "asg_a" / "end.json").exists)
    time.sleep(0.5)
    start_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "exited")
    assert plane.view("asg_a")["exit_code"] == 9
    assert plane.view("asg_a")["exited_ago_ms"] >= 500
    eventually(lambda: plane.log("asg_a") == "done\n")


def test_killed_agents_never_start_a_command_twice(plane, home, tmp_path, start_agent):
    plane.poll_after_ms = 100
    for number in range(6):
        plane.want(f"asg_{number}", "running", command=["sh", "-c", f"echo began >> {tmp_path}/{number}; sleep 600"])
    for begun in range(6):
        agent = start_agent()
        eventually(lambda begun=begun: len(list(tmp_path.glob("[0-5]"))) > begun)
        agent.kill()
    start_agent()
    eventually(lambda: all(plane.view(f"asg_{number}")["state"] == "running" for number in range(6)))
    assert [(tmp_path / str(number)).read_text() for number in range(6)] == ["began\n"] * 6


def test_a_removal_goes_on_after_the_agent_was_killed_in_the_middle(plane, home, start_agent):
    agent = start_agent()
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
    plane.want("asg_a", "running", command=stubborn, stop_grace_s=1)
    eventually(lambda: "ready" in plane.log("asg_a"))
    plane.want("asg_a", "gone")
    eventually((home / "workloads" / "asg_a" / "stop.json").exists)
    agent.kill()
    start_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    assert list((home / "workloads").iterdir()) == []
    plane.unwant("asg_a")
    eventually(lambda: plane.last["assignments"] == [])


def test_a_killed_supervisor_takes_the_command_with_it_and_it_is_lost_by_its_node(node):
    node.run("asg_a", "sleep 600 & (setsid sleep 600) & sleep 600")
    shim = psutil.Process(node.shim_pid("asg_a"))
    eventually(lambda: len(shim.children(recursive=True)) >= 4)
    left = [process.pid for process in shim.children(recursive=True)]
    shim.kill()
    seen = node.until("asg_a", "failed")
    assert seen.exit_code == 137
    assert "supervisor was killed" in seen.message
    assert seen.exited_at is None
    eventually(lambda: not any(is_running(pid) for pid in left))


def test_a_killed_supervisor_takes_a_command_with_it_that_cleared_its_environment(node):
    node.want("asg_a", "running", command=["env", "-i", "sleep", "600"])
    node.until("asg_a", "running")
    shim = psutil.Process(node.shim_pid("asg_a"))
    (command,) = eventually(lambda: [one for one in shim.children() if one.name() == "sleep"])
    shim.kill()
    eventually(lambda: not is_running(command.pid))


def test_what_ran_in_an_earlier_boot_is_lost_and_not_started_a_second_time(node, monkeypatch):
    node.run("asg_a", "echo began >> begun; sleep 600")
    eventually((node.work("asg_a") / "begun").exists)
    psutil.Process(node.shim_pid("asg_a")).kill()
    eventually(lambda: node.workload("asg_a")._shim_pid() is None)
    for module in ("workload", "state", "shim"):
        monkeypatch.setattr(f"provisioning.agent.{module}.boot_id", lambda: "another-boot")
    node.wake_up()
    seen = node.look("asg_a")
    assert (seen.state, seen.exited_at) == ("failed", None)
    assert "the machine restarted" in seen.message
    assert (node.work("asg_a") / "begun").read_text() == "began\n"


def test_a_start_that_a_power_cut_interrupted_is_not_tried_again(node, monkeypatch):
    node.want("asg_a", "prepared")
    node.look("asg_a")
    order = {"command": ["touch", "begun"], "env": {}, "output_limit_bytes": 1, "boot_id": "another-boot"}
    (node.home.workloads / "asg_a" / "order.json").write_text(json.dumps(order))
    node.want("asg_a", "running")
    assert node.look("asg_a").message == "never started: the machine restarted while it was being started"
    assert list(node.work("asg_a").iterdir()) == []


def test_an_exit_of_an_earlier_boot_keeps_its_code_but_has_no_time(node, monkeypatch):
    node.run("asg_a", "exit 4")
    node.until("asg_a", "exited")
    monkeypatch.setattr("provisioning.agent.workload.boot_id", lambda: "another-boot")
    node.wake_up()
    seen = node.look("asg_a")
    assert (seen.exit_code, seen.exited_at) == (4, None)


def test_a_supervisor_killed_before_the_command_began_is_a_failure_and_not_an_exit(node):
    node.want("asg_a", "prepared")
    node.look("asg_a")
    folder = node.home.workloads / "asg_a"
    (folder / "order.json").write_text(
        json.dumps({"command": ["true"], "env": {}, "output_limit_bytes": 1, "boot_id": boot_id()})
    )
    (folder / "claim").write_text(str(1 << 23))  # Beyond any pid.
    node.want("asg_a", "running")
    assert node.look("asg_a").state == "failed"
    node.wake_up()
    assert node.look("asg_a").message == "never started: its supervisor was killed"


def test_a_second_supervisor_finds_the_claim_and_does_nothing(node):
    node.run("asg_a", "echo began >> begun; sleep 600")
    eventually((node.work("asg_a") / "begun").exists)
    assert node.launch_again("asg_a", "sh", "-c", "echo again >> begun") == 1
    assert node.look("asg_a").state == "running"
    assert (node.work("asg_a") / "begun").read_text() == "began\n"


def test_a_cancelled_start_does_not_run_even_if_the_supervisor_is_late(node):
    node.want("asg_a", "prepared")
    node.look("asg_a")
    assert node.workload("asg_a").cancel("no longer wanted")
    assert node.launch_again("asg_a", "touch", "begun") == 1
    assert list(node.work("asg_a").iterdir()) == []
    assert node.look("asg_a").message == "never started: no longer wanted"


def test_the_lease_outlives_the_agent(node, monkeypatch):
    monkeypatch.setattr(Lease, "RESTART_GRACE_S", 0.3)
    node.run("asg_a", "sleep 600", lease_s=30)
    node.lease.hear(asked_at=boottime() - 31)
    node.wake_up()
    assert node.look("asg_a").state == "running"  # One chance to hear that all is well.
    time.sleep(0.3)
    assert "longer than its lease" in node.until("asg_a", "failed").message
