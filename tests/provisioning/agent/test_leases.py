"""A workload ends when its node's lease does, even if no agent is left; and for no other trouble with the lease."""

import errno
import json
import signal
import time

import psutil
import pytest

from provisioning.agent import lease, shim, workload
from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.lease import LEASE_RAN_OUT, LeaseWatch
from provisioning.agent.state import Lease
from tests.provisioning.agent.cast import eventually, is_running

LEASE_S = 120.0
# Its deadline was so long ago that no agent can be expected to come back in time.
LONG_AGO_S = LeaseWatch.LATE_S + 1
STUBBORN = ["sh", "-c", "trap '' TERM; (trap '' TERM; setsid sleep 600) & echo ready; while :; do sleep 0.05; done"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(lease, "boottime", clock)
    return clock


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lease.json"


def grant(file, deadline, *, boot=None):
    file.write_text(json.dumps({"boot_id": boot or boot_id(), "heard_at": deadline - LEASE_S}))


def has_run_out_after(watch, clock, seconds):
    clock.now += seconds
    return watch.has_run_out()


def test_a_dead_agents_workload_ends_with_its_lease_and_the_next_agent_says_so(plane, home, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", command=STUBBORN, stop_grace_s=1, lease_s=1)
    eventually(lambda: plane.log("asg_a") == "ready\n")
    claim = home / "workloads" / "asg_a" / "claim"
    supervisor = psutil.Process(int(claim.read_text()))
    running = [process.pid for process in [supervisor, *supervisor.children(recursive=True)]]
    assert len(running) >= 3
    agent.kill()
    end = home / "workloads" / "asg_a" / "end.json"
    # Its lease, the agent's chance to come back, the slowest look, the grace.
    eventually(end.exists, seconds=1 + LeaseWatch.LATE_S + LeaseWatch.LOOK_S + shim.SLOW_LOOK_S + 1 + 2)
    eventually(lambda: not any(map(is_running, running)))
    assert not (home / "workloads" / "asg_a" / "stop.json").exists()
    start_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "failed")
    seen = plane.view("asg_a")
    assert (seen["exit_code"], seen["message"]) == (137, f"killed by signal 9 (SIGKILL); {LEASE_RAN_OUT}")
    assert seen["exited_ago_ms"] < 20_000


def test_a_living_agent_ends_the_workload_before_the_supervisor_has_to(node):
    node.lease.hear(asked_at=boottime())
    node.run("asg_a", "sleep 600", lease_s=1)
    assert node.until("asg_a", "failed").message == f"killed by signal 15 (SIGTERM); {LEASE_RAN_OUT}"


def test_a_lease_that_is_renewed_never_runs_out(file, clock):
    watch = LeaseWatch(file, lease_s=LEASE_S)
    for _ in range(100):
        grant(file, clock.now + 30)
        assert not has_run_out_after(watch, clock, 20)
    assert not has_run_out_after(watch, clock, 10 + watch.LATE_S)
    assert has_run_out_after(watch, clock, 1)


def test_a_supervisor_that_starts_before_the_first_lease_waits_for_it(file, clock):
    watch = LeaseWatch(file, lease_s=LEASE_S)
    assert not has_run_out_after(watch, clock, 100_000)
    grant(file, clock.now + 30)
    assert not has_run_out_after(watch, clock, 30)
    assert has_run_out_after(watch, clock, watch.LATE_S + 1)


def test_steps_of_the_wall_clock_do_not_move_a_lease(file, clock, monkeypatch):
    grant(file, clock.now + 30)
    watch = LeaseWatch(file, lease_s=LEASE_S)
    for step in (10**9, -(10**9)):
        monkeypatch.setattr(time, "time", lambda step=step: 1.8e9 + step)
        assert not has_run_out_after(watch, clock, 5)


@pytest.mark.parametrize("damage", [b"", b"\xff{", b"[]", b"7", b"{}", b'{"boot_id": 1, "heard_at": "soon"}'])
def test_a_damaged_lease_file_ends_nothing_before_the_lease_that_was_known(file, clock, damage):
    grant(file, clock.now + 30)
    watch = LeaseWatch(file, lease_s=LEASE_S)
    assert not watch.has_run_out()
    file.write_bytes(damage)
    assert not has_run_out_after(watch, clock, 30)
    assert has_run_out_after(watch, clock, watch.LATE_S + 1)


@pytest.mark.parametrize("content", [b"\xff{", None], ids=["damaged", "of another boot"])
def test_a_lease_that_was_never_readable_bounds_the_workload_all_the_same(file, clock, content):
    if content is None:
        grant(file, clock.now - 500, boot="another-boot")
    else:
        file.write_bytes(content)
    watch = LeaseWatch(file, lease_s=LEASE_S)
    assert not watch.has_run_out()
    assert not has_run_out_after(watch, clock, LEASE_S)
    assert has_run_out_after(watch, clock, 1)


def test_a_damaged_lease_file_that_is_written_anew_counts_again(file, clock):
    file.write_bytes(b"\xff{")
    watch = LeaseWatch(file, lease_s=LEASE_S)
    assert not watch.has_run_out()
    grant(file, clock.now + 2000)
    assert not has_run_out_after(watch, clock, watch.UNREADABLE_S_MAX + 1)


def test_a_lease_file_that_is_removed_leaves_the_lease_that_was_known(file, clock):
    grant(file, clock.now + 30)
    watch = LeaseWatch(file, lease_s=LEASE_S)
    assert not watch.has_run_out()
    file.unlink()
    assert has_run_out_after(watch, clock, 31 + watch.LATE_S)


def test_a_full_disk_does_not_keep_an_old_lease_before_the_supervisors(node, monkeypatch):
    node.lease.hear(asked_at=boottime() - LONG_AGO_S)

    def refuse(*_args, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("provisioning.agent.state.write_whole", refuse)
    node.lease.hear(asked_at=boottime())
    assert not LeaseWatch(node.home.path / "lease.json", lease_s=1).has_run_out()
    assert not Lease(node.home).has_run_out(1)


@pytest.mark.parametrize(
    ("kept", "grace_s"), [('{"stop_grace_s": 3}', 3), ('{"stop_grace_s": 600}', 10), ("{}", 0), ("\\", 0)]
)
def test_the_grace_after_a_lease_is_the_workloads_own_within_the_control_planes_patience(tmp_path, kept, grace_s):
    (tmp_path / "assignment.json").write_text(kept)
    assert shim.lease_grace_s(tmp_path) == grace_s


def test_each_workload_ends_with_its_own_lease_and_its_neighbour_goes_on(node):
    node.lease.hear(asked_at=boottime())
    node.run("asg_strict", "sleep 600", lease_s=0.5)
    node.run("asg_sticky", "sleep 600", lease_s=60)
    assert LEASE_RAN_OUT in node.until("asg_strict", "failed").message
    assert node.look("asg_sticky").state == "running"
    kept = json.loads((node.home.workloads / "asg_sticky" / "assignment.json").read_text())
    assert kept["lease_s"] == 60


def test_an_agent_that_hangs_keeps_no_workload_alive_beyond_its_lease(plane, home, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", command=["sleep", "600"], lease_s=1)
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    agent.process.send_signal(signal.SIGSTOP)
    end = home / "workloads" / "asg_a" / "end.json"
    eventually(end.exists, seconds=1 + LeaseWatch.LATE_S + LeaseWatch.LOOK_S + shim.SLOW_LOOK_S + 2)


def test_a_server_that_fails_at_a_report_renews_no_lease(plane, start_agent):
    agent = start_agent()
    plane.want("asg_a", "running", lease_s=1)
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    result = {"status": "error", "poll_after_ms": 100}
    plane.forced = lambda path: (200, {}, json.dumps({"results": [result]}).encode())
    eventually(lambda: "asg_a fence=1 from=running to=failed" in agent.log)


def test_whoever_enforces_a_lease_is_done_before_the_control_plane_acts():
    grace_s = 30  # The control plane counts them, and ten more for clocks that drift.
    assert grace_s > LeaseWatch.LATE_S + LeaseWatch.LOOK_S + shim.SLOW_LOOK_S + lease.LEASE_GRACE_S_MAX
    assert grace_s > Lease.RESTART_GRACE_S + lease.LEASE_GRACE_S_MAX + workload.HUNG_SHIM_S
