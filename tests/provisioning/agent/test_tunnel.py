"""What goes between the hosts of a gang, on a real wire between two namespaces: sealed, or not at all where it must be.

Where this kernel has no ESP (RFC 4303), the sealed half shows that nothing leaves in the clear either.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import tunnel
from provisioning.agent.podman import PodmanError
from tests.packages import needs
from tests.provisioning.agent.boxes import BoxNode
from tests.provisioning.agent.test_podman_gangs import gang_of_two

ROOT = Path(__file__).parents[3]
NOTHING = {"states": 0, "policies": 0, "links": 0}


class SealedNode(BoxNode):
    """A node that joins clusters with encryption only."""

    must_be_sealed = True


def play(mode: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.provisioning.agent.wire", mode]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs("ip")
def test_without_a_key_the_wire_shows_what_is_said() -> None:
    seen = play("plain")
    assert seen["heard"] == [True, True]
    assert seen["frames_with_the_word"] == 2  # Else the next test would prove nothing.
    assert seen["forged_is_taken"]
    assert seen["after"] == NOTHING


@needs("ip")
def test_with_a_key_nothing_is_on_the_wire_in_the_clear_and_nothing_forged_comes_in() -> None:
    seen = play("sealed")
    assert seen["frames"] > 0
    assert (seen["frames_with_the_word"], seen["arp_in_the_clear"], seen["forged_is_taken"]) == (0, 0, False), seen
    if seen["lacking"]:
        # This kernel cannot seal: the hosts are not joined, and their kernels let nothing through.
        assert seen["heard"] == [False, False]
        assert [said for said in seen["refused"] if seen["lacking"] in said] == seen["refused"] != []
    else:
        assert seen["heard"] == [True, True]
        assert seen["before"] == {"states": 2, "policies": 2, "links": 1}
        assert seen["esp_frames"] > 0
    assert seen["after"] == NOTHING


def test_a_program_that_was_killed_has_not_done_its_work(tmp_path: Path) -> None:
    for name, ending in (("killed", "kill -9 $$"), ("done", "echo 'RTNETLINK answers: File exists' >&2; exit 2")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{ending}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(PodmanError, match="killed: it ended with -9"):
        tunnel.run(str(tmp_path / "killed"), tolerates=tunnel.FOUND_DONE)
    tunnel.run(str(tmp_path / "done"), tolerates=tunnel.FOUND_DONE)


def test_no_complaint_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0x" + "ab" * tunnel.KEY_BYTES

    def fail(*_: Any, **more: Any) -> Any:
        assert not any(key in word for word in _[0])  # An argument can be read by everybody on the machine.
        return subprocess.CompletedProcess([], 1, b"", f'Error: argument "{key}" is wrong'.encode())

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(PodmanError) as refusal:
        tunnel.batch("ip", [f"xfrm state add aead x {key} 128"])
    assert "abab" not in str(refusal.value)


def test_each_direction_each_pair_and_each_run_has_a_key_of_its_own() -> None:
    made = {
        tunnel.derived(key, f"key {src} {dst}", tunnel.KEY_BYTES)
        for key in (b"1" * 32, b"2" * 32)
        for src, dst in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("10.0.0.1", "10.0.0.3"))
    }
    assert len(made) == 6


@needs("podman")
def test_a_node_that_must_encrypt_joins_no_cluster_that_does_not(home: Path, images: Any) -> None:
    node = SealedNode(home, images.podman, images.plain)
    try:
        node.want("asg_a", "prepared", **gang_of_two(0, number=77, peers=["192.0.2.7", "192.0.2.8"]))
        seen = node.until("asg_a", "failed")
        assert "with encryption only" in seen.message
        node.want("asg_b", "prepared", **gang_of_two(0, number=78, peers=["one", "one"]))  # On one host nothing leaves.
        node.until("asg_b", "prepared")
    finally:
        node.close()
