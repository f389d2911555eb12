"""What the podman runtime does with one node's assignments, stepped by hand, with real containers."""

import json
import os
import signal
import time

import httpx
import pytest

from provisioning.agent.clock import boottime
from provisioning.agent.preparation import Preparation
from tests.packages import needs
from tests.provisioning.agent.cast import eventually, is_running

pytestmark = needs("podman")

SLEEP = "trap 'exit 143' TERM; while :; do usleep 50000; done"


def test_a_container_is_prepared_to_its_first_instruction_and_waits(boxes):
    boxes.want("asg_a", "prepared", command=["sh", "-c", "echo began"])
    boxes.until("asg_a", "prepared")
    boxes.stays("asg_a", "prepared")
    assert boxes.inspect("asg_a")["State"]["Status"] == "initialized"
    assert boxes.output("asg_a") == ""
    boxes.want("asg_a", "running")
    assert boxes.until("asg_a", "exited").exit_code == 0
    assert boxes.output("asg_a") == "began\n"


@pytest.mark.parametrize(
    ("script", "exit_code", "message"),
    [
        ("exit 0", 0, ""),
        ("exit 7", 7, ""),
        ("sh -c 'kill -SEGV $$'; exit $?", 139, "killed by signal 11 (SIGSEGV)"),
    ],
)
def test_the_exit_code_is_the_commands_own(boxes, script, exit_code, message):
    boxes.run("asg_a", script)
    seen = boxes.until("asg_a", "exited")
    assert (seen.exit_code, seen.message) == (exit_code, message)
    assert 0 <= boottime() - seen.exited_at < 10


def test_both_streams_arrive_in_order_and_at_once(boxes):
    boxes.run("asg_a", "echo one; echo two >&2; echo three > /dev/stdout; sleep 600")
    eventually(lambda: boxes.output("asg_a") == "one\ntwo\nthree\n")


def test_nothing_is_left_of_what_is_gone(boxes):
    boxes.run("asg_a", "echo there > /workspace/file; trap 'exit 3' TERM; while :; do sleep 0.05; done")
    assert boxes.look("asg_a").state == "running"
    name = boxes.box("asg_a")._name
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    assert boxes.podman.find(name) is None
    assert (boxes.containers(), boxes.networks(), list(boxes.home.workloads.iterdir())) == ([], [], [])


def test_a_stop_is_a_term_and_after_the_grace_a_kill_of_everything(boxes):
    boxes.run("asg_a", "trap 'echo asked' TERM; (trap '' TERM; exec sleep 600) & while :; do sleep 0.05; done",
              stop_grace_s=1)  # fmt: skip
    workload = boxes.box("asg_a")
    began = time.monotonic()
    eventually(lambda: workload.end(grace_s=1, reason="because"))
    assert time.monotonic() - began >= 1
    seen = boxes.look("asg_a")
    assert (seen.exit_code, seen.message) == (137, "killed by signal 9 (SIGKILL); because")
    assert "asked" in boxes.output("asg_a")


def test_a_killed_agent_finds_its_container_again_which_noticed_nothing(boxes):
    boxes.run("asg_a", "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done")
    eventually(lambda: "tick 3\n" in boxes.output("asg_a"))
    pid = boxes.inspect("asg_a")["State"]["Pid"]
    boxes.wake_up()
    assert boxes.look("asg_a").state == "running"
    assert boxes.inspect("asg_a")["State"]["Pid"] == pid
    seen = boxes.output("asg_a").count("tick")
    eventually(lambda: boxes.output("asg_a").count("tick") > seen + 5)


def test_a_killed_guard_costs_neither_the_container_nor_a_byte_of_its_output(boxes):
    boxes.run("asg_a", "i=0; while [ ! -e /workspace/end ]; do echo tick $i; i=$((i+1)); usleep 10000; done")
    for _ in range(2):
        eventually(lambda: boxes.output("asg_a"))
        guard = boxes.guard_pid("asg_a")
        os.kill(guard, signal.SIGKILL)
        eventually(lambda guard=guard: boxes.look("asg_a") and boxes.box("asg_a")._guard_pid() not in {None, guard})
    boxes.work("asg_a").joinpath("end").touch()
    assert boxes.until("asg_a", "exited").exit_code == 0
    said = boxes.output("asg_a").splitlines()
    assert said == [f"tick {number}" for number in range(len(said))]


def test_an_end_that_no_guard_saw_is_found_with_its_code_but_without_a_time(boxes):
    boxes.run("asg_a", "sleep 1; echo done; exit 9")
    eventually(lambda: boxes.inspect("asg_a")["State"]["Status"] == "running")
    os.kill(boxes.guard_pid("asg_a"), signal.SIGKILL)
    eventually(lambda: boxes.inspect("asg_a")["State"]["Status"] == "exited")
    seen = boxes.until("asg_a", "exited")
    assert (seen.exit_code, seen.exited_at) == (9, None)
    assert boxes.output("asg_a") == "done\n"


def test_a_container_that_was_created_by_an_agent_that_died_is_adopted(boxes):
    boxes.want("asg_a", "prepared")
    boxes.until("asg_a", "prepared")
    identity = boxes.inspect("asg_a")["Id"]
    (boxes.box("asg_a").folder / "prepared.json").unlink()  # As if the agent had died before it wrote that down.
    boxes.wake_up()
    assert boxes.look("asg_a").state == "preparing"
    boxes.until("asg_a", "prepared")
    assert boxes.inspect("asg_a")["Id"] == identity


def test_words_that_podman_left_for_a_killed_agent_are_not_the_commands_output(boxes):
    boxes.want("asg_a", "prepared", command=["echo", "mine"])
    boxes.until("asg_a", "prepared")
    (boxes.box("asg_a").folder / "pipe").write_text("gm-some-name\n")
    boxes.want("asg_a", "running")
    boxes.until("asg_a", "exited")
    assert boxes.output("asg_a") == "mine\n"


def test_a_start_that_was_interrupted_is_never_tried_again(boxes):
    boxes.want("asg_a", "prepared", command=["sh", "-c", "echo began"])
    boxes.until("asg_a", "prepared")
    (boxes.box("asg_a").folder / "started").touch()  # As by a guard that was killed at this very moment.
    (boxes.box("asg_a").folder / "order.json").write_text("{}")
    boxes.box("asg_a").start = lambda *_: None
    boxes.want("asg_a", "running")
    workload = boxes.box("asg_a")
    type(workload).start(workload, None, ())
    seen = boxes.until("asg_a", "failed")
    assert seen.message == "never started: its supervisor was killed while it started the container"
    assert boxes.podman.find(workload._name) is None
    assert boxes.output("asg_a") == ""


def test_a_container_of_an_earlier_boot_is_lost_and_not_started_again(boxes, monkeypatch):
    boxes.run("asg_a", "echo began; sleep 600")
    eventually(lambda: boxes.output("asg_a"))
    os.kill(boxes.guard_pid("asg_a"), signal.SIGKILL)
    eventually(lambda: boxes.box("asg_a")._guard_pid() is None)
    monkeypatch.setattr("provisioning.agent.containers.boot_id", lambda: "another-boot")
    boxes.wake_up()
    seen = boxes.until("asg_a", "failed")
    assert (seen.exit_code, seen.exited_at) == (137, None)
    assert "the machine restarted while it ran" in seen.message
    assert boxes.output("asg_a") == "began\n"


def test_a_container_whose_monitor_is_killed_is_lost_by_its_node(boxes):
    boxes.run("asg_a", SLEEP)
    state = eventually(lambda: boxes.inspect("asg_a")["State"]["ConmonPid"] and boxes.inspect("asg_a")["State"])
    eventually(lambda: boxes.guard_pid("asg_a"))
    time.sleep(0.3)  # The guard holds on to both by now.
    os.kill(state["ConmonPid"], signal.SIGKILL)
    assert boxes.until("asg_a", "failed").exit_code == 137
    eventually(lambda: not is_running(state["Pid"]))


def test_a_container_that_nobody_wants_is_an_orphan_and_is_removed(boxes):
    boxes.run("asg_a", SLEEP)
    name = boxes.box("asg_a")._name
    boxes.unwant("asg_a")
    boxes.runtime.step()
    assert boxes.runtime.orphans == {"asg_a"}
    eventually(lambda: boxes.runtime.step() or not boxes.runtime._workloads)
    assert boxes.podman.find(name) is None


def test_a_container_whose_folder_was_lost_is_known_by_its_labels(boxes, home):
    boxes.run("asg_a", SLEEP, gpus=[])
    origin = boxes.box("asg_a").origin
    os.kill(boxes.guard_pid("asg_a"), signal.SIGKILL)
    boxes.box("asg_a").folder.rename(home / "lost")
    boxes.wake_up()
    assert boxes.box("asg_a").origin == origin
    boxes.unwant("asg_a")
    eventually(lambda: boxes.runtime.step() or not boxes.runtime._workloads)
    assert boxes.containers() == []


def test_containers_of_another_agent_on_this_host_are_left_alone(boxes, images):
    name = f"gm-test-{images.tag}-other"
    images.podman.run("create", "--name", name, "--label", "gpumarket.home=another", "--network", "none", boxes.image,
                      "true")  # fmt: skip
    try:
        boxes.wake_up()
        boxes.want("asg_a", "prepared")
        boxes.until("asg_a", "prepared")
        assert images.podman.find(name) is not None
    finally:
        images.podman.run("rm", "--force", name)


def test_a_later_fence_gets_a_container_of_its_own_after_the_earlier_one(boxes):
    boxes.run("asg_a", "echo first; exec sleep 600", stop_grace_s=0)
    first = boxes.box("asg_a")._name
    boxes.want("asg_a", "running", fence=2)
    eventually(lambda: boxes.look("asg_a").state == "running" and boxes.box("asg_a").origin.fence == 2)
    assert boxes.podman.find(first) is None
    assert len(boxes.containers()) == 1


def test_published_ports_are_reported_and_answer(boxes):
    boxes.run("asg_a", "echo hello > /workspace/index.html; httpd -f -p 8080 -h /workspace", ports=[8080, 8080, 9000])
    seen = boxes.look("asg_a")
    assert set(seen.ports) == {8080, 9000}

    def answer() -> str:
        try:
            return httpx.get(f"http://127.0.0.1:{seen.ports[8080]}/").text
        except httpx.HTTPError:
            return ""

    assert eventually(answer) == "hello\n"
    assert httpx.get(f"http://{boxes.box('asg_a').address()}:8080/").text == "hello\n"


def test_a_container_that_appears_while_it_is_made_is_adopted(boxes, monkeypatch):
    create = Preparation._create

    def create_twice(self, *args):
        create(self, *args)  # As by the podman of an agent that was killed and whose podman was not.
        create(self, *args)

    monkeypatch.setattr(Preparation, "_create", create_twice)
    boxes.want("asg_a", "prepared")
    boxes.until("asg_a", "prepared")
    assert len(boxes.containers()) == 1


def test_a_volume_is_found_at_its_path(boxes):
    folder = boxes.volumes.root / "vol_a"
    folder.mkdir()
    (folder / "kept").write_text("kept\n")
    script = "cat $GPUMARKET_VOLUME_SETS/kept; echo new > /data/new"
    volumes = [{"id": "vol_a", "path": "/data", "name": "sets"}]
    assert boxes.said("asg_a", script, volumes=volumes) == "kept\n"
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    assert (folder / "new").read_text() == "new\n"


def test_a_read_only_volume_can_be_read_and_not_written(boxes):
    folder = boxes.volumes.root / "vol_a"
    folder.mkdir()
    (folder / "kept").write_text("kept\n")
    script = (
        "cat /data/kept; (echo new > /data/new) 2>/dev/null || echo refused; rm /data/kept 2>/dev/null || echo refused"
    )
    volumes = [{"id": "vol_a", "path": "/data", "name": "sets", "read_only": True}]
    assert boxes.said("asg_a", script, volumes=volumes) == "kept\nrefused\nrefused\n"
    assert [path.name for path in folder.iterdir()] == ["kept"]


TOLD = """
cd $GPUMARKET_METADATA && ls
(echo mine > risk.json) 2>/dev/null || echo refused
trap 'echo term; exit 0' TERM
for file in risk.json interruption.json; do
    until test -s $file; do usleep 20000; done
    ls; cat $file; echo
done
while :; do usleep 20000; done
"""


def test_a_container_is_told_what_may_come_and_what_comes_in_a_folder_that_it_cannot_write(boxes):
    boxes.run("asg_a", TOLD)
    eventually(lambda: boxes.output("asg_a") == "refused\n")
    boxes.want("asg_a", "running", risk={"id": "int_a", "level": "elevated", "advised_at": "2026-11-26T12:00:00+00:00"})
    eventually(lambda: boxes.look("asg_a") and "elevated" in boxes.output("asg_a"))
    notice = {
        "id": "int_a", "reason": "outbid", "notice_at": "2026-11-26T12:00:00+00:00", "min_notice_s": 6,
        "deadline_at": "2026-11-26T12:00:06+00:00", "left_ms": 6000, "grace_ms": 5000,
    }  # fmt: skip
    boxes.want("asg_a", "running", notice=notice)
    seen = boxes.until("asg_a", "exited")
    assert (seen.exit_code, "interrupted as announced (int_a)" in seen.message) == (0, True)
    refused, first, risk, second, told, end = boxes.output("asg_a").splitlines()
    assert (refused, first, second, end) == ("refused", "risk.json", "interruption.json", "term")
    assert json.loads(risk) == {"id": "int_a", "level": "elevated", "advised_at": "2026-11-26T12:00:00+00:00"}
    assert (json.loads(told)["id"], json.loads(told)["sigterm_before_s"]) == ("int_a", 5.0)


def test_a_removal_waits_for_a_preparation_that_is_under_way(boxes, monkeypatch):
    create = Preparation._create
    monkeypatch.setattr(Preparation, "_create", lambda self, *args: (time.sleep(0.5), create(self, *args)))
    boxes.want("asg_a", "prepared")
    eventually(lambda: boxes.look("asg_a") and boxes.box("asg_a")._preparation)
    boxes.box("asg_a").cancel("its GPU fell ill")  # As where the node cannot do it any more.
    boxes.want("asg_a", "gone")
    boxes.until("asg_a", "gone")
    time.sleep(0.6)
    assert boxes.containers() == []
