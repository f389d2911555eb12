"""A real agent on a pretended driver: what happens to the GPUs while it runs is in its next reports."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nvml import DRIVER_NOT_LOADED, FakeNvml
from tests.packages import needs
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import ControlPlane

pytestmark = needs("gcc")


@pytest.fixture
def agent(start_agent: Callable[..., AgentRun], fake_nvml: FakeNvml, nvml_library: Path) -> AgentRun:
    return start_agent("--gpus", "nvml", env=os.environ | fake_nvml.environment(nvml_library))


def healthy(plane: ControlPlane) -> list[bool]:
    return [gpu["healthy"] for gpu in sorted(plane.inventory()["gpus"], key=lambda gpu: gpu["index"])]


def energy(plane: ControlPlane) -> dict[str, Any]:
    latest = next((report["energy"] for report in reversed(plane.reports) if report["energy"]), [])
    return {one["uuid"]: (one["driver_epoch"], one["millijoules"]) for one in latest}


def test_the_inventory_has_facts_driver_and_links(plane: ControlPlane, agent: AgentRun, fake_nvml: FakeNvml) -> None:
    eventually(lambda: plane.reports)
    told = plane.inventory()
    assert (told["source"], told["driver"], len(told["gpus"]), len(told["links"])) == ("nvml", "580.95.05", 8, 28)
    assert told["gpus"][2]["facts"]["serial"] == "1650000002"
    reading = eventually(lambda: next((r["telemetry"] for r in plane.reports if r["telemetry"]), None))[0]
    assert (reading["uuid"], reading["power_mw"], reading["clocks_event_reasons"]) == (
        fake_nvml.uuid(0), 75_000, ["idle"],
    )  # fmt: skip


def test_a_gpu_that_is_lost_while_the_agent_runs_is_told_within_seconds_and_so_is_its_return(
    plane: ControlPlane, agent: AgentRun, fake_nvml: FakeNvml
) -> None:
    eventually(lambda: plane.reports)
    fake_nvml.lose(3)
    eventually(lambda: healthy(plane) == [number != 3 for number in range(8)], seconds=5)
    eventually(lambda: len(energy(plane)) == 7)
    fake_nvml.heal(3)
    eventually(lambda: all(healthy(plane)), seconds=5)


def test_a_driver_that_is_loaded_anew_begins_an_epoch_and_work_goes_on(
    plane: ControlPlane, agent: AgentRun, fake_nvml: FakeNvml
) -> None:
    name = fake_nvml.uuid(0)
    plane.want("asg_a", "running", command=["sleep", "60"], gpus=[name])
    eventually(lambda: "running" in plane.states("asg_a"))
    before, _ = eventually(lambda: energy(plane).get(name))
    fake_nvml.driver(error=DRIVER_NOT_LOADED)
    eventually(lambda: not any(healthy(plane)), seconds=5)
    fake_nvml.reload_driver(version="590.1")
    eventually(lambda: all(healthy(plane)) and plane.inventory()["driver"] == "590.1", seconds=8)
    eventually(lambda: energy(plane).get(name) == (before + 1, 0))
    assert plane.view("asg_a")["state"] == "running"


def test_a_driver_that_hangs_does_not_keep_the_agent_from_speaking(
    plane: ControlPlane, agent: AgentRun, fake_nvml: FakeNvml
) -> None:
    eventually(lambda: plane.reports)
    fake_nvml.driver(hangs=True)
    count = len(plane.reports)
    eventually(lambda: len(plane.reports) > count + 10)
    agent.stop()
