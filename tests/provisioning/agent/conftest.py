import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.provisioning.agent.boxes import BoxNode, ImageStore, home_label, remove_all_of
from tests.provisioning.agent.cast import AgentRun, Node, processes_of
from tests.provisioning.agent.control_plane import ControlPlane
from tests.provisioning.agent.ssh_clients import Door, a_door


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An agent's home. Nothing runs in it any more when the test is over."""
    home = tmp_path / "home"
    yield home
    while left := processes_of(home):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def start_agent(plane: ControlPlane, home: Path) -> Iterator[Callable[..., AgentRun]]:
    """Start an agent in this test's home, as often as it is called."""
    agents: list[AgentRun] = []

    def start(*options: str, **more: Any) -> AgentRun:
        agents.append(AgentRun(home, plane.url, *options, **more))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()


@pytest.fixture
def node(home: Path) -> Iterator[Node]:
    """A node with four simulated GPUs, stepped by hand."""
    node = Node(home)
    yield node
    node.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    """Tiny images for containers."""
    images = ImageStore(tmp_path_factory.mktemp("images"))
    yield images
    images.close()


@pytest.fixture
def start_box_agent(
    images: ImageStore, home: Path, start_agent: Callable[..., AgentRun]
) -> Iterator[Callable[..., Any]]:
    """Start an agent in this test's home that runs containers. None of them is left when the test is over."""

    def start(*options: str, **more: Any) -> AgentRun:
        return start_agent(
            "--runtime", "podman", "--podman-config", images.podman.env["CONTAINERS_CONF"], *options, **more
        )

    yield start
    if not (home / "seed").exists():
        return
    for process in processes_of(home):
        process.kill()
    remove_all_of(images.podman, home_label((home / "seed").read_text()))


@pytest.fixture
def boxes(home: Path, images: ImageStore) -> Iterator[BoxNode]:
    """A node with four simulated GPUs that runs containers, stepped by hand."""
    node = BoxNode(home, images.podman, images.plain)
    yield node
    node.close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A node with an SSH gateway and an instance that sleeps, for the tests that leave both as they are."""
    with a_door(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def own_door(tmp_path: Path) -> Iterator[Door]:
    """The same, for one test."""
    with a_door(tmp_path) as door:
        yield door
