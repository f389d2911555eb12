"""Containers under real agents that are killed at any time, and the lease that outlives them."""

import sys
import time
from pathlib import Path

import pynvml
import pytest

from provisioning.agent import shim
from provisioning.agent.guard import SLOW_LOOK_S
from provisioning.agent.lease import LEASE_RAN_OUT, LeaseWatch
from tests.nvml import FakeNvml
from tests.packages import needs
from tests.provisioning.agent.boxes import cdi_devices, home_label
from tests.provisioning.agent.cast import eventually, is_running, processes_of

pytestmark = needs("podman")

TICKER = ["sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo tick $i; i=$((i+1)); usleep 50000; done"]


def container(images, home):
    """What podman knows of the home's only container, or nothing."""
    label = home_label((home / "seed").read_text())
    listed = images.podman.ask("ps", "--all", "--filter", label, "--format", "json")
    return images.podman.find(listed[0]["Id"]) if listed else None


def test_a_container_does_not_notice_that_its_agent_is_killed(plane, home, images, start_box_agent):
    agent = start_box_agent()
    plane.want("asg_a", "running", command=TICKER, image=images.plain, ports=[80])
    eventually(lambda: "tick 5\n" in plane.log("asg_a"))
    ports = plane.view("asg_a")["ports"]
    assert set(ports) == {"80"}
    before = container(images, home)["State"]
    agent.kill()
    time.sleep(0.5)
    start_box_agent()
    eventually(lambda: plane.last["agent_epoch"] == 2 and plane.view("asg_a")["state"] == "running")
    assert container(images, home)["State"]["StartedAt"] == before["StartedAt"]
    assert plane.view("asg_a")["ports"] == ports
    seen = plane.log("asg_a").count("tick")
    eventually(lambda: plane.log("asg_a").count("tick") > seen + 10)
    ticks = plane.log("asg_a").splitlines()
    assert ticks[:-1] == [f"tick {number}" for number in range(len(ticks) - 1)]
    plane.want("asg_a", "gone")
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    assert container(images, home) is None


def test_agents_that_are_killed_at_any_moment_never_start_a_container_twice(plane, home, images, start_box_agent):
    plane.want("asg_a", "running", command=["sh", "-c", "echo began; sleep 600"], image=images.plain)
    for moment_s in (0.6, 0.8, 1.0, 1.2, 1.5):
        agent = start_box_agent()
        time.sleep(moment_s)
        agent.kill()
    start_box_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    eventually(lambda: plane.log("asg_a"))
    assert plane.log("asg_a") == "began\n"


def test_a_dead_agents_container_ends_with_its_lease(plane, home, images, start_box_agent):
    agent = start_box_agent()
    script = "trap '' TERM; echo ready; while :; do usleep 50000; done"
    plane.want("asg_a", "running", command=["sh", "-c", script], image=images.plain, stop_grace_s=1, lease_s=1)
    eventually(lambda: plane.log("asg_a") == "ready\n")
    pid = container(images, home)["State"]["Pid"]
    agent.kill()
    end = home / "workloads" / "asg_a" / "end.json"
    eventually(end.exists, seconds=1 + LeaseWatch.LATE_S + LeaseWatch.LOOK_S + SLOW_LOOK_S + shim.SLOW_LOOK_S + 8)
    assert not is_running(pid)
    start_box_agent()
    eventually(lambda: plane.view("asg_a")["state"] == "failed")
    seen = plane.view("asg_a")
    assert (seen["exit_code"], seen["message"]) == (137, f"killed by signal 9 (SIGKILL); {LEASE_RAN_OUT}")
    assert seen["exited_ago_ms"] < 30_000


def test_an_agent_asks_for_the_login_of_an_image_only_before_it_pulls(plane, images, start_box_agent):
    plane.secrets["asg_b"] = {"host": "127.0.0.1:1", "username": "robot", "password": "hush-hush"}
    start_box_agent()
    plane.want("asg_a", "prepared", image=images.plain)
    plane.want("asg_b", "prepared", image="127.0.0.1:1/team/app:1")
    eventually(lambda: plane.view("asg_a")["state"] == "prepared")
    eventually(lambda: plane.view("asg_b")["state"] == "failed")
    assert "could not be pulled" in plane.view("asg_b")["message"]
    assert plane.asked_for_secrets == [("asg_b", 1)]
    assert plane.joins[0]["runtime"] == "podman"


PYNVML = """
import pynvml
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
"""


@needs("gcc")
def test_two_of_eight_gpus_are_exactly_what_pynvml_sees_inside(
    plane, images, start_box_agent, nvml_library: Path, fake_nvml: FakeNvml, tmp_path: Path
):
    environment = fake_nvml.environment(nvml_library)
    start_box_agent("--gpus", "nvml", env=environment)
    eventually(lambda: plane.reports)
    gpus = [gpu["uuid"] for gpu in plane.inventory()["gpus"]]
    assert len(gpus) == 8
    binding = Path(pynvml.__file__).parent
    shown = [
        "/usr",
        sys.base_prefix,
        str(binding),
        str(nvml_library.parent),
        str(Path(environment["FAKE_NVML_STATE"]).parent),
    ]
    mounts = [{"hostPath": path, "containerPath": path, "options": ["ro", "rbind"]} for path in dict.fromkeys(shown)]
    inside = environment | {"FAKE_NVML_DEV": "/dev", "PYTHONPATH": str(binding)}
    edits = {"mounts": mounts, "env": [f"{name}={value}" for name, value in inside.items()]}
    rented = [gpus[2], gpus[5]]
    with cdi_devices(gpus, tmp_path, edits_for_all=edits):
        plane.want(
            "asg_a",
            "running",
            image=images.plain,
            gpus=rented,
            command=[f"{sys.base_prefix}/bin/python3", "-c", PYNVML],
        )
        eventually(lambda: plane.view("asg_a")["state"] in {"exited", "failed"})
        eventually(lambda: plane.log("asg_a"))
    assert plane.view("asg_a")["exit_code"] == 0, plane.log("asg_a")
    assert plane.log("asg_a").split() == rented


def test_guards_are_small(plane, home, images, start_box_agent):
    start_box_agent()
    plane.want("asg_a", "running", image=images.plain, command=["sleep", "600"], stop_grace_s=0)
    eventually(lambda: plane.view("asg_a")["state"] == "running")
    (guard,) = [one for one in processes_of(home) if "provisioning.agent.guard" in one.cmdline()]
    print("guard", guard.memory_info().rss, guard.memory_full_info().uss)
    assert guard.memory_info().rss < 40 << 20


@pytest.fixture(autouse=True)
def _quick_polls(plane):
    plane.poll_after_ms = 100
