"""A real agent before a pretended driver: what it is asked at the gate, and what it tells without being asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nvml import LIBRARY_MISMATCH, Failure, FakeNvml
from tests.packages import needs
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import ControlPlane

pytestmark = needs("gcc")


@pytest.fixture
def start(start_agent: Callable[..., AgentRun], fake_nvml: FakeNvml, nvml_library: Path) -> Callable[..., AgentRun]:
    """Start an agent on the pretended machine."""
    return lambda: start_agent("--gpus", "nvml", "--dcgmi", "none", env=fake_nvml.environment(nvml_library))


def ends(plane: ControlPlane, name: str, kind: str, **more: Any) -> tuple[str, str]:
    plane.ask(name, kind, **more)
    end: tuple[str, str] = eventually(lambda: plane.end_of(name))
    return end


def test_the_gate_asks_for_links_and_a_wipe_destroys_what_was_cut(
    start: Callable[..., AgentRun], plane: ControlPlane, fake_nvml: FakeNvml
) -> None:
    fake_nvml.set(0, {"mig_mode": (1, 1), "gi.3": 0, "ci.3.0": 0})
    fake_nvml.set(2, {"nvlink.5": None})
    start()
    eventually(lambda: plane.reports and len(plane.inventory()["gpus"]) == 8)
    names = [fake_nvml.uuid(number) for number in range(8)]
    links = {name: list(range(18)) for name in names}
    well = ends(plane, "opr_a", "verify", links=links)
    assert well == ("succeeded", f"8 GPUs are well; memory test: none available; cannot tell: NVLink 5 of {names[2]}")
    fake_nvml.set(7, {"nvlink.9": Failure(2)})
    assert ends(plane, "opr_b", "verify", links=links) == ("failed", f"{names[7]}: NVLink 9 is not active")
    assert ends(plane, "opr_c", "wipe", gpu=names[0])[0] == "succeeded"
    [record] = [one["body"] for one in plane.events if one["kind"] == "wipe"]
    assert record["message"].startswith("1 MIG instances were destroyed; ")
    assert "gpu 0 gi." not in fake_nvml.path.read_text()


def test_an_agent_that_has_joined_also_starts_without_a_driver_and_finds_its_gpus_later(
    start: Callable[..., AgentRun], plane: ControlPlane, fake_nvml: FakeNvml
) -> None:
    agent = start()
    eventually(lambda: plane.reports and len(plane.inventory()["gpus"]) == 8)
    agent.kill()
    fake_nvml.driver(error=LIBRARY_MISMATCH)
    start()
    eventually(lambda: plane.inventory()["gpus"] == [])
    fake_nvml.driver()
    eventually(lambda: len(plane.inventory()["gpus"]) == 8)
