"""Wiping: every GPU gets a record, a good one only for what was shown to be clean, also after a crash."""

import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent.cleaning import NvmlCleaner, SimulatedCleaner
from provisioning.agent.wiping import NotClean, Scrub, Wiper
from tests.nvml import Failure, FakeNvml
from tests.provisioning.agent.cast import Node, eventually
from tests.provisioning.agent.control_plane import ControlPlane
from tests.provisioning.agent.test_health import Notes


class Slow(SimulatedCleaner):
    """Cleans when it is let."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.refusal = ""

    def scrub(self, gpu: str) -> Scrub:
        self.may_end.wait(timeout=10)
        if self.refusal:
            raise NotClean(self.refusal)
        return Scrub("slow", covered_bytes=7)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def slow() -> Slow:
    return Slow()


def make_wiper(home: Path, notes: Notes, cleaner: Any) -> Wiper:
    return Wiper(home=home, journal=notes, cleaner=cleaner, excused=lambda gpu: nullcontext())


@pytest.fixture
def wiper(tmp_path: Path, notes: Notes, slow: Slow) -> Wiper:
    return make_wiper(tmp_path, notes, slow)


def results(notes: Notes) -> list[tuple[str, str]]:
    return sorted((body["gpu"], body["result"]) for body in notes.bodies)


def test_each_gpu_gets_a_record_and_holds_until_then(wiper: Wiper, notes: Notes, slow: Slow) -> None:
    wiper.expect(assignment="asg_a", fence=3, gpus=["GPU-a", "GPU-b"])
    assert not wiper.step("asg_a")
    assert wiper.phase("asg_a") == "wiping"
    assert wiper.holders(["GPU-b"]) == ["asg_a"]
    assert notes.bodies == []
    slow.may_end.set()
    eventually(lambda: wiper.step("asg_a"))
    assert results(notes) == [("GPU-a", "ok"), ("GPU-b", "ok")]
    assert {(body["assignment"], body["fence"], body["covered_bytes"]) for body in notes.bodies} == {("asg_a", 3, 7)}
    assert wiper.holders(["GPU-b"]) == []
    assert wiper.step("asg_a"), "once is enough"
    assert len(notes.bodies) == 2


def test_a_refusal_is_a_failed_record_and_holds_nothing_up(wiper: Wiper, notes: Notes, slow: Slow) -> None:
    slow.refusal = "still used by the processes 42"
    slow.may_end.set()
    wiper.expect(assignment="asg_a", fence=1, gpus=["GPU-a"])
    eventually(lambda: wiper.step("asg_a"))
    assert [(body["result"], body["message"]) for body in notes.bodies] == [("failed", slow.refusal)]


def test_what_takes_too_long_has_failed_and_its_late_end_is_not_believed(
    wiper: Wiper, notes: Notes, slow: Slow
) -> None:
    wiper.LIMIT_S = 0.0
    wiper.expect(assignment="asg_a", fence=1, gpus=["GPU-a"])
    eventually(lambda: wiper.step("asg_a"))
    slow.may_end.set()
    eventually(lambda: not any(thread.name == "wipe-GPU-a" for thread in threading.enumerate()))
    assert results(notes) == [("GPU-a", "failed")]


def test_the_next_agent_begins_a_wipe_again_that_was_cut_short(
    wiper: Wiper, notes: Notes, slow: Slow, tmp_path: Path
) -> None:
    wiper.expect(assignment="asg_a", fence=2, gpus=["GPU-a"])
    wiper.step("asg_a")
    later = Notes()
    again = make_wiper(tmp_path, later, SimulatedCleaner())
    assert again.pending() == ["asg_a"]
    eventually(lambda: again.step("asg_a"))
    assert [(body["fence"], body["result"]) for body in later.bodies] == [(2, "ok")]
    slow.may_end.set()


def test_a_workload_is_gone_only_after_the_wipe_of_its_gpus(node: Node) -> None:
    slow = node.wiper._cleaner = Slow()
    gpus = node.gpus[:2]
    node.run("asg_a", "sleep 600", gpus=gpus)
    node.want("asg_a", "gone")
    node.until("asg_a", "wiping")
    assert not (node.home.workloads / "asg_a").exists()
    node.want("asg_b", "prepared", gpus=gpus[1:])
    assert "asg_a" in node.look("asg_b").message, "the next tenant waits"
    node.wake_up()
    node.wiper._cleaner = Slow()
    assert node.look("asg_a").state == "wiping", "also in the eyes of the next agent"
    slow.may_end.set()
    node.wiper._cleaner.may_end.set()
    node.until("asg_a", "gone")
    node.until("asg_b", "prepared")
    wiped = [entry["body"] for entry in node.journal.waiting(10) if entry["kind"] == "wipe"]
    assert {body["gpu"] for body in wiped} == set(gpus)


def test_the_gpus_of_an_orphan_are_wiped_too(node: Node) -> None:
    node.run("asg_a", "sleep 600", gpus=node.gpus[:1])
    node.unwant("asg_a")

    def has_record() -> bool:
        node.runtime.step()
        return bool(node.journal.waiting(1))

    eventually(has_record)
    assert node.journal.waiting(1)[0]["body"]["assignment"] == "asg_a"


def test_what_was_never_here_needs_no_wipe_and_says_so(node: Node) -> None:
    node.want("asg_a", "gone", gpus=node.gpus[:1])
    node.until("asg_a", "gone")
    assert node.journal.waiting(1)[0]["body"]["method"] == "never used"


def test_what_was_wiped_is_not_called_unused_by_a_document_that_is_late(wiper: Wiper, notes: Notes, slow: Slow) -> None:
    slow.may_end.set()
    wiper.expect(assignment="asg_a", fence=1, gpus=["GPU-a"])
    eventually(lambda: wiper.step("asg_a"))
    wiper.never_used(assignment="asg_a", fence=1, gpus=["GPU-a"])
    assert [body["method"] for body in notes.bodies] == ["slow"]


def test_the_record_is_told_with_the_end(start_agent: Any, plane: ControlPlane) -> None:
    start_agent()
    gpu = eventually(lambda: plane.reports and plane.inventory()["gpus"][0]["uuid"])
    plane.want("asg_a", "running", gpus=[gpu])
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    plane.want("asg_a", "gone")
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    wipes = [event["body"]["gpu"] for event in plane.events if event["kind"] == "wipe"]
    assert wipes == [gpu]


# --- real GPUs, as the pretended driver plays them --------------------------------------------------------------------


@pytest.fixture
def cleaner(own_nvml: FakeNvml) -> NvmlCleaner:
    import pynvml

    pynvml.nvmlInit()
    made = NvmlCleaner()
    made.IDLE_LIMIT_S = 0.2
    made._tool = None
    return made


@pytest.fixture
def uuid(cleaner: NvmlCleaner) -> str:
    import pynvml

    return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))


def test_mig_instances_that_a_tenant_left_are_destroyed_from_the_inside_out(
    cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str
) -> None:
    own_nvml.set(0, {"mig_mode": (1, 1), "gi.3": 0, "gi.7": 4, "ci.3.0": 0, "ci.3.1": 0, "ci.7.0": 4})
    own_nvml.set(1, {"mig_mode": (1, 1), "gi.3": 0})
    assert cleaner.destroy_parts(uuid) == 2
    left = own_nvml.path.read_text()
    assert "gpu 0 gi." not in left
    assert "gpu 0 ci." not in left
    assert "gpu 1 gi.3" in left, "that of another GPU stays"
    assert cleaner.destroy_parts(uuid) == 0


def test_where_mig_is_off_or_not_supported_nothing_is_destroyed(
    cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str
) -> None:
    for mode in ((0, 0), None, Failure(13)):
        own_nvml.set(0, {"mig_mode": mode, "gi.3": 0})
        assert cleaner.destroy_parts(uuid) == 0
        assert "gpu 0 gi.3" in own_nvml.path.read_text()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"gi.3": "0 19"}, "cannot be destroyed"),  # In use.
        ({"gi.3": 0, "ci.3.0": "0 19"}, "cannot be destroyed"),
        ({"gi.3": "0 -1"}, "1 MIG instances are still there"),  # It says that it did, and did not.
        ({"mig_mode": Failure(999)}, "cannot be destroyed"),
    ],
)
def test_a_mig_instance_that_stays_makes_the_wipe_fail(
    lines: dict[str, Any], words: str, cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str
) -> None:
    own_nvml.set(0, {"mig_mode": (1, 1)} | lines)
    with pytest.raises(NotClean, match=words):
        cleaner.destroy_parts(uuid)


def test_the_record_says_how_many_mig_instances_were_destroyed(
    cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str, tmp_path: Path, notes: Notes
) -> None:
    own_nvml.set(0, {"mig_mode": (1, 1), "gi.3": 0, "ci.3.0": 0})
    wiper = make_wiper(tmp_path, notes, cleaner)
    assert wiper.wipe(uuid, operation="opr_a")[0]
    body = notes.bodies[0]
    assert (body["result"], body["method"]) == ("ok", "none available")
    assert body["message"].startswith("1 MIG instances were destroyed; ")


def test_without_the_vendors_tool_the_record_says_that_no_memory_was_scrubbed(cleaner: NvmlCleaner, uuid: str) -> None:
    cleaner.expect_idle(uuid)
    scrub = cleaner.scrub(uuid)
    cleaner.verify(uuid)
    assert (scrub.method, scrub.covered_bytes) == ("none available", 0)


def test_a_process_on_the_gpu_is_waited_for_and_then_refused(
    cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str
) -> None:
    own_nvml.run_process(0, 4242)
    with pytest.raises(NotClean, match="4242"):
        cleaner.expect_idle(uuid)
    own_nvml.end_process(0, 4242)
    cleaner.expect_idle(uuid)


def test_a_gpu_that_does_not_tell_its_processes_or_is_lost_is_not_clean(
    cleaner: NvmlCleaner, own_nvml: FakeNvml, uuid: str
) -> None:
    own_nvml.lose(0)
    with pytest.raises(NotClean):
        cleaner.expect_idle(uuid)
    own_nvml.heal(0)
    own_nvml.set(0, memory_bytes=(100 << 30, 50 << 30, 0))
    with pytest.raises(NotClean, match="MiB of its memory"):
        cleaner.verify(uuid)


def test_the_vendors_tool_is_called_without_a_driver_which_is_bound_again(
    cleaner: NvmlCleaner, uuid: str, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    tool = tmp_path / "nvidia_gpu_tools"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    tool.chmod(0o755)
    cleaner._tool = str(tool)
    scrub = cleaner.scrub(uuid)
    first, second = calls.read_text().splitlines()
    assert first.split()[2:] == ["--sysfs-unbind", "--reset-with-sbr", "--clear-memory"]
    assert second.split()[2:] == ["--sysfs-bind", "nvidia"]
    assert scrub.covered_bytes
    tool.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho no access >&2\nexit 1\n')
    with pytest.raises(NotClean, match="no access"):
        cleaner.scrub(uuid)
    assert "--sysfs-bind" in calls.read_text().splitlines()[-1], "also after a failure"
    assert subprocess.run([tool], check=False, capture_output=True).returncode == 1
