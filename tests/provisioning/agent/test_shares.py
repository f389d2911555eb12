"""A workload's share of the disk: what passes it is ended with the reason, and what keeps to it goes on."""

import os
from pathlib import Path

import pytest

from provisioning.agent import disk
from provisioning.agent.folders import room_of
from provisioning.agent.protocol import ProtocolError, parse_work
from provisioning.agent.shares import Shares
from tests.provisioning.agent.cast import Node, eventually
from tests.provisioning.agent.control_plane import ControlPlane

MIB = 1 << 20
SHARE = {"disk_bytes": 8 * MIB}
FILLS = "trap 'exit 0' TERM; dd if=/dev/zero of=big bs=1M count=24 2>/dev/null; echo full; sleep 600 & wait"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shares, "PAUSE_S", 0.05)


def test_what_fills_its_share_is_ended_and_says_how_much_it_kept(node: Node) -> None:
    """It would end well at the word to end: that is a failure all the same."""
    node.want("asg_a", "running", command=["sh", "-c", FILLS], work=SHARE)
    seen = node.until("asg_a", "exited")
    assert seen.exit_code not in {0, None}
    found = disk.FILLED.search(seen.message)
    assert found is not None
    assert (8 < float(found[1]) < 25, found[2]) == (True, "8.0 MiB")
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")


def test_what_keeps_to_its_share_or_has_none_goes_on(node: Node) -> None:
    little = "dd if=/dev/zero of=small bs=1M count=4 2>/dev/null; echo done; sleep 600"
    much = "dd if=/dev/zero of=big bs=1M count=24 2>/dev/null; echo done; sleep 600"
    node.run("asg_a", little, work=SHARE)
    node.run("asg_b", much)
    eventually(lambda: node.output("asg_a") == node.output("asg_b") == "done\n")
    for _ in range(10):
        node.runtime.step()
    assert {one.state for one in node.runtime.observed} == {"running"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two megabytes in files of one folder, one of which has two names; a link leads to more."""
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "deep").mkdir(parents=True)
    other.write_bytes(os.urandom(4 * MIB))
    for name in ("a", "deep/b"):
        (root / name).write_bytes(os.urandom(MIB))
    os.link(root / "a", root / "deep" / "again")
    (root / "link").symlink_to(other)
    return root


def test_a_folder_takes_what_is_in_it_once_and_nothing_of_elsewhere(tree: Path) -> None:
    assert 2 * MIB <= room_of(tree) < 2 * MIB + 64 * 1024
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert room_of(tree) < 2 * MIB + 64 * 1024, "holes take nothing"
    with pytest.raises(OSError, match="nowhere"):
        room_of(tree / "nowhere")


def test_how_much_it_kept_is_said_in_the_unit_of_its_share() -> None:
    assert disk.filled(3 * disk.GIB // 2, disk.GIB) == "the workload filled its disk share: 1.5 of 1.0 GiB"


@pytest.mark.parametrize("said", ["8", -1.5, True, []])
def test_a_share_that_is_no_number_is_refused_by_the_agent(plane: ControlPlane, said: object) -> None:
    with pytest.raises(ProtocolError):
        parse_work({"disk_bytes": said})
    assert parse_work({}).disk_bytes is None
