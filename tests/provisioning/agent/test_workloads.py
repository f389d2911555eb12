"""What the process runtime does with one node's assignments, stepped by hand, with real processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from provisioning.agent.clock import boottime
from provisioning.agent.files import remove_tree
from tests.provisioning.agent.cast import Node, eventually, is_running

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        open("daemon.pid", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def pid_in(node: Node, name: str, file: str) -> int:
    path = node.work(name) / file
    eventually(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def test_a_prepared_workload_waits_until_it_is_told_to_run(node):
    node.want("asg_a", "prepared", command=["touch", "begun"])
    node.stays("asg_a", "prepared")
    assert list(node.work("asg_a").iterdir()) == []
    node.want("asg_a", "running")
    assert node.until("asg_a", "exited").exit_code == 0
    assert [path.name for path in node.work("asg_a").iterdir()] == ["begun"]


def test_the_command_sees_its_gpus_by_index_and_by_name(node):
    node.run("asg_a", "echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES", gpus=[node.gpus[3], node.gpus[1]])
    node.until("asg_a", "exited")
    assert node.output("asg_a") == f"1,3 {node.gpus[3]},{node.gpus[1]}\n"


@pytest.mark.parametrize(
    ("script", "exit_code", "message"),
    [
        ("exit 0", 0, ""),
        ("exit 7", 7, ""),
        ("kill -SEGV $$", 139, "killed by signal 11 (SIGSEGV)"),
        ("kill -KILL $$", 137, "killed by signal 9 (SIGKILL)"),
    ],
)
def test_the_exit_code_is_the_commands_own(node, script, exit_code, message):
    node.run("asg_a", script)
    seen = node.until("asg_a", "exited")
    assert (seen.exit_code, seen.message) == (exit_code, message)
    assert 0 <= boottime() - seen.exited_at < 5


@pytest.mark.parametrize(
    ("command", "exit_code", "complaint"),
    [
        (["no-such-program"], 127, "gpumarket: cannot run 'no-such-program': No such file or directory\n"),
        (["/etc/passwd"], 126, "gpumarket: cannot run '/etc/passwd': Permission denied\n"),
        (["echo", "nul \0 byte"], 126, "gpumarket: cannot run 'echo': embedded null byte\n"),
    ],
)
def test_a_command_that_cannot_start_says_why_in_its_log(node, command, exit_code, complaint):
    node.want("asg_a", "running", command=command)
    assert node.until("asg_a", "exited").exit_code == exit_code
    assert node.output("asg_a") == complaint


def test_nothing_of_the_agents_environment_reaches_the_command(node, monkeypatch):
    monkeypatch.setenv("GPUMARKET_JOIN_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    node.run("asg_a", "env; cat /proc/$PPID/environ", env={"MINE": "given", "CUDA_VISIBLE_DEVICES": "7"})
    node.until("asg_a", "exited")
    said = node.output("asg_a")
    assert "secret" not in said
    names = {line.partition("=")[0] for line in said.splitlines() if "\0" not in line}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        *("PATH", "HOME", "LANG", "PYTHONUNBUFFERED", "MINE"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
        *(
            "GPUMARKET_INSTANCE_ID",
            "GPUMARKET_ASSIGNMENT_ID",
            "GPUMARKET_PEERS",
            "GPUMARKET_MARK",
            "GPUMARKET_METADATA",
        ),
        *("RANK", "NODE_RANK", "WORLD_SIZE", "NNODES", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    }
    assert "CUDA_VISIBLE_DEVICES=\n" in said  # What was rented cannot be talked away.
    assert f"HOME={node.work('asg_a')}\n" in said


def test_the_replicas_of_a_gang_know_their_ranks_and_where_to_meet(node):
    script = "echo $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $PET_NNODES $PET_NPROC_PER_NODE"
    gang = {"replicas": 2, "peers": ["narvik-1", "narvik-2"]}
    node.run("asg_a", script, replica=0, gpus=node.gpus[:2], **gang)
    node.run("asg_b", script, replica=1, gpus=node.gpus[2:], **gang)
    node.until("asg_a", "exited")
    node.until("asg_b", "exited")
    first, second = node.output("asg_a").split(), node.output("asg_b").split()
    assert (first[0], second[0]) == ("0/2", "1/2")
    assert first[1:] == second[1:]
    assert first[2].startswith("narvik-1:2")
    assert first[3:] == ["2", "2"]


def test_both_streams_arrive_in_order_and_at_once(node):
    node.run("asg_a", "echo one; echo two >&2; echo three; sleep 600")
    eventually(lambda: node.output("asg_a") == "one\ntwo\nthree\n")


def test_signals_that_our_side_ignores_are_not_ignored_by_the_command(node):
    node.run("asg_a", "grep SigIgn /proc/self/status; grep SigBlk /proc/self/status")
    node.until("asg_a", "exited")
    # Signals 32 and 33 belong to the C library, which lets nobody change them.
    reserved = 1 << 31 | 1 << 32
    masks = [int(line.split()[1], 16) for line in node.output("asg_a").splitlines()]
    assert [mask & ~reserved for mask in masks] == [0, 0]


def test_gone_leaves_no_process_and_no_folder(node):
    node.run("asg_a", "sleep 600 & sleep 600")
    shim = psutil.Process(node.shim_pid("asg_a"))
    eventually(lambda: len(shim.children(recursive=True)) == 3)
    pids = [shim.pid, *(process.pid for process in shim.children(recursive=True))]
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    assert not any(is_running(pid) for pid in pids)
    assert list(node.home.workloads.iterdir()) == []


def test_a_daemon_that_forked_twice_left_its_session_and_cleared_its_environment_is_killed_at_gone(node):
    node.want("asg_a", "running", command=["python3", "-c", DAEMON + "time.sleep(600)"], stop_grace_s=0)
    node.until("asg_a", "running")
    daemon = pid_in(node, "asg_a", "daemon.pid")
    assert os.getsid(daemon) not in {os.getsid(0), node.shim_pid("asg_a")}
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    assert not is_running(daemon)


def test_what_a_command_leaves_running_ends_with_it(node):
    node.want("asg_a", "running", command=["python3", "-c", DAEMON])
    assert node.until("asg_a", "exited").exit_code == 0
    assert not is_running(pid_in(node, "asg_a", "daemon.pid"))


def test_term_gives_the_command_its_grace(node):
    node.run("asg_a", "trap 'sleep 0.3; echo saved; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    eventually(lambda: "ready" in node.output("asg_a"))
    workload = node.workload("asg_a")
    eventually(lambda: workload.end(grace_s=5, reason="test"))
    assert node.look("asg_a").exit_code == 3
    assert node.output("asg_a").endswith("saved\n")


def test_a_child_may_use_the_grace_after_its_parent_obeyed_at_once(node):
    saver = "import signal,time; print('ready'); signal.sigwait([15]); time.sleep(0.4); print('saved')"
    block = "import signal,os; signal.pthread_sigmask(0, [15]); "
    node.run("asg_a", f'python3 -c "{block}{saver}" & wait')
    eventually(lambda: "ready" in node.output("asg_a"))
    workload = node.workload("asg_a")
    eventually(lambda: workload.end(grace_s=5, reason="test"))
    assert node.look("asg_a").exit_code == 143
    assert node.output("asg_a").endswith("saved\n")


def test_who_ignores_term_is_killed_when_the_grace_is_over(node):
    node.run("asg_a", "trap '' TERM; echo ready; while :; do sleep 0.05; done", stop_grace_s=0.5)
    eventually(lambda: "ready" in node.output("asg_a"))
    began = time.monotonic()
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    assert time.monotonic() - began >= 0.5


def test_a_folder_without_permissions_is_removed_by_its_ordinary_owner():
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # Root would not notice what permissions are for.
    try:
        folder = Path(tempfile.mkdtemp())
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "c").touch()
        for locked in (folder / "a" / "b", folder / "a", folder):
            locked.chmod(0)
        remove_tree(folder)
        assert not folder.exists()
    finally:
        os.seteuid(me)


@pytest.mark.parametrize(("which", "reason"), [("foreign", "is not in this node"), ("lost", "is not healthy")])
def test_a_workload_whose_gpu_is_missing_or_ill_fails_and_says_so(node, which, reason):
    (node.home.path / "simulated-lost").write_text("2")
    node.monitor.look()
    gpu = {"foreign": "GPU-elsewhere", "lost": node.gpus[2]}[which]
    node.want("asg_a", "prepared", gpus=[gpu])
    seen = node.look("asg_a")
    assert (seen.state, seen.message) == ("failed", f"{gpu} {reason}")
    assert list(node.home.workloads.iterdir()) == []


def test_a_gpu_that_is_lost_between_prepared_and_running_fails_the_start(node):
    node.want("asg_a", "prepared", gpus=[node.gpus[2]])
    assert node.look("asg_a").state == "prepared"
    (node.home.path / "simulated-lost").write_text("2")
    node.monitor.look()
    node.want("asg_a", "running", command=["touch", "begun"])
    assert node.until("asg_a", "failed").message == f"never started: {node.gpus[2]} is not healthy"
    assert not (node.work("asg_a") / "begun").exists()


def test_a_gpu_is_not_given_to_a_second_workload_before_the_first_is_gone(node):
    node.run("asg_a", "sleep 600", gpus=node.gpus[:2])
    node.want("asg_b", "prepared", gpus=node.gpus[1:3])
    seen = node.look("asg_b")
    assert (seen.state, seen.message) == ("preparing", "waiting for GPUs that asg_a still holds")
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    node.until("asg_b", "prepared")


def test_a_document_that_is_not_newer_is_ignored(node):
    node.run("asg_a", "sleep 600")
    held = node.home.document()
    for generation in (held.generation, held.generation - 1):
        assert not node.home.adopt_document(generation=generation, desired={})
    assert node.home.document() == held
    node.stays("asg_a", "running")


def test_an_entry_with_a_lower_fence_is_ignored(node):
    node.run("asg_a", "sleep 600", fence=5)
    node.want("asg_a", "gone", fence=4)
    assert node.stays("asg_a", "running").fence == 5


def test_a_higher_fence_ends_the_earlier_run_before_the_new_one_is_prepared(node):
    node.run("asg_a", "sleep 600", fence=1)
    pid = node.shim_pid("asg_a")
    node.want("asg_a", "prepared", fence=2)
    assert node.look("asg_a").state == "preparing"
    seen = node.until("asg_a", "prepared")
    assert seen.fence == 2
    assert not is_running(pid)


def test_an_orphan_is_named_and_removed(node):
    node.run("asg_a", "sleep 600")
    pid = node.shim_pid("asg_a")
    node.unwant("asg_a")
    node.runtime.step()
    node.runtime.forget_orphans(frozenset({"asg_a"}))
    node.runtime.step()
    assert node.runtime.orphans == {"asg_a"}  # It is still here.
    node.runtime.forget_orphans(frozenset())
    eventually(lambda: node.runtime.step() or not list(node.home.workloads.iterdir()))
    assert not is_running(pid)
    assert node.runtime.orphans == {"asg_a"}  # Until the control plane has heard of it.
    node.runtime.forget_orphans(frozenset({"asg_a"}))
    node.runtime.step()
    assert node.runtime.orphans == frozenset()


def test_a_folder_that_nobody_knows_is_an_orphan_once_there_is_a_document(node):
    (node.home.workloads / "asg_stranger").mkdir()
    node.wake_up()
    node.runtime.step()
    assert node.runtime.orphans == frozenset()
    node.say()
    eventually(lambda: node.runtime.step() or not list(node.home.workloads.iterdir()))
    assert node.runtime.orphans == {"asg_stranger"}


def test_a_lease_that_runs_out_ends_the_workload_and_keeps_its_record(node):
    node.run("asg_a", "sleep 600", lease_s=0.3)
    node.lease.hear(asked_at=boottime())
    assert node.look("asg_a").state == "running"
    time.sleep(0.3)
    seen = node.until("asg_a", "failed")
    assert seen.exit_code == 143
    assert "longer than its lease" in seen.message


def test_nothing_starts_without_a_lease(node):
    node.want("asg_a", "prepared", lease_s=30)
    node.look("asg_a")
    node.lease.hear(asked_at=boottime() - 31)
    node.want("asg_a", "running")
    node.stays("asg_a", "prepared")
    node.lease.hear(asked_at=boottime())
    node.until("asg_a", "running")


def test_what_is_gone_stays_gone_whatever_is_said_later(node):
    node.run("asg_a", "echo once")
    node.until("asg_a", "exited")
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    node.want("asg_a", "running")
    assert node.look("asg_a").state == "gone"
    node.wake_up()
    assert node.look("asg_a").state == "gone"
    node.want("asg_a", "prepared", fence=2)
    assert node.look("asg_a").state == "prepared"


def test_what_was_never_here_is_gone_at_once(node):
    node.want("asg_a", "gone")
    assert node.look("asg_a").state == "gone"
    node.unwant("asg_a")
    node.runtime.step()
    assert node.runtime.observed == ()
    assert node.runtime.orphans == frozenset()


def test_a_stopped_supervisor_cannot_keep_its_workload_alive(node, monkeypatch):
    monkeypatch.setattr("provisioning.agent.workload.HUNG_SHIM_S", 0.3)
    node.run("asg_a", "sleep 600", stop_grace_s=0)
    shim = psutil.Process(node.shim_pid("asg_a"))
    command = eventually(shim.children)[0].pid
    shim.send_signal(signal.SIGSTOP)
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    assert not is_running(command)


def test_one_workload_that_the_disk_refuses_does_not_hold_up_the_others(node, monkeypatch):
    real = node.runtime._step_absent

    def refuse(wanted):
        if wanted.id == "asg_a":
            raise OSError("No space left on device")
        return real(wanted)

    monkeypatch.setattr(node.runtime, "_step_absent", refuse)
    node.want("asg_a", "prepared")
    node.want("asg_b", "prepared")
    assert node.look("asg_b").state == "prepared"
    assert node.look("asg_a").state == "preparing"


SLOW_TO_BEGIN = """
import time
from provisioning.agent import shim
shim.leave_network = lambda: time.sleep(0.5)
shim.main()
"""


def test_who_is_asked_to_end_before_its_command_is_there_ends_without_waiting_for_its_grace(tmp_path: Path) -> None:
    folder = tmp_path / "workloads" / "asg_a"
    (folder / "work").mkdir(parents=True)
    order = {"command": ["sleep", "600"], "env": {"PATH": "/usr/bin:/bin"}, "output_limit_bytes": 1000}
    (folder / "order.json").write_text(json.dumps(order | {"has_network": False}))
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_BEGIN, str(folder)]) as shim:
        eventually((folder / "started").exists)
        (folder / "stop.json").write_text(json.dumps({"grace_s": 600}))
        shim.send_signal(signal.SIGTERM)
        assert shim.wait(60) == 0
    assert json.loads((folder / "end.json").read_bytes())["exit_code"] == 128 + signal.SIGTERM
