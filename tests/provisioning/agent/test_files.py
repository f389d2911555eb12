"""What an agent carries for a workload: inputs, outputs, checkpoints; real processes, and a store that cuts lines."""

import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import carrier, folders, store
from provisioning.agent.clock import boottime
from provisioning.agent.control import Backoff, Refused, Trouble
from provisioning.agent.manifest import digest
from provisioning.agent.store import Holding, Store
from tests.provisioning.agent.cast import Node, eventually
from tests.provisioning.agent.control_plane import ControlPlane
from tests.provisioning.agent.shelf import Shelf


@pytest.fixture
def shelf(plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The store that the node carries files from and to."""
    monkeypatch.setattr(Backoff, "FIRST_S", 0.02)
    monkeypatch.setattr(Backoff, "LAST_S", 0.1)
    node.store = Store(plane.url, agent_version="1", who=lambda: {"node": "nod_a", "key": "k"})
    node.wake_up()
    return plane.shelf


def test_inputs_are_there_before_the_command_begins_though_the_line_is_cut(node: Node, shelf: Shelf) -> None:
    inputs = shelf.folder({"run.sh": b"#!/bin/sh\ncat data/deep/in.txt\n", "data/deep/in.txt": b"x" * 5000}, mode=0o755)
    shelf.cuts["GET"] = 3
    node.want("asg_a", "prepared", command=["./run.sh"], work={"inputs": inputs})
    node.until("asg_a", "prepared")
    assert (node.work("asg_a") / "data/deep/in.txt").read_bytes() == b"x" * 5000
    node.want("asg_a", "running")
    assert node.until("asg_a", "exited").exit_code == 0
    assert node.output("asg_a") == "x" * 5000


def test_what_cannot_be_brought_whole_never_starts(node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "STUCK_S", 0.1)
    node.want("asg_a", "running", command=["touch", "begun"], work={"inputs": "0" * 64})
    assert "no such artifact" in node.until("asg_a", "failed").message
    inputs = shelf.folder({"a": b"right"})
    shelf.spoils = True
    node.want("asg_b", "running", command=["touch", "begun"], work={"inputs": inputs})
    assert "arrived damaged" in node.until("asg_b", "failed").message
    assert not (node.work("asg_b") / "begun").exists()


def test_a_command_has_ended_once_its_outputs_are_in_the_store_and_its_end_is_its_own(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE_BYTES", 1000)
    script = """
    mkdir -p out/deep; echo one > out/a.txt; echo two > out/deep/b.txt; echo no > out/c.log
    ln -s /etc/passwd out/passwd.txt; ln -s /etc out/etc; head -c 5000 /dev/zero > big
    """
    shelf.closed = True
    outputs = ["out/**/*.txt", "big", "gone.txt", "out/etc/hostname"]
    node.run("asg_a", script, work={"outputs": outputs})
    node.stays("asg_a", "running", seconds=1.0)
    shelf.closed, shelf.cuts["PUT"] = False, 4
    seen = node.until("asg_a", "exited")
    assert shelf.files(seen.outputs) == {
        "out/a.txt": b"one\n", "out/deep/b.txt": b"two\n", "big": bytes(5000),
    }  # fmt: skip
    assert seen.message == "it did not leave gone.txt, out/etc/hostname"
    assert seen.exited_at is not None
    assert boottime() - seen.exited_at > 0.9  # Sending took longer, and is not the command's.


def test_an_agent_that_was_killed_goes_on_sending_and_runs_nothing_twice(node: Node, shelf: Shelf) -> None:
    shelf.closed = True
    node.run("asg_a", "echo x >> out.txt", work={"outputs": ["out.txt"]})
    node.stays("asg_a", "running")
    node.wake_up()
    node.stays("asg_a", "running")
    shelf.closed = False
    assert shelf.files(node.until("asg_a", "exited").outputs) == {"out.txt": b"x\n"}
    node.wake_up()
    sent = len(shelf.puts)
    assert shelf.files(node.until("asg_a", "exited").outputs) == {"out.txt": b"x\n"}
    assert len(shelf.puts) == sent


def test_an_output_that_the_store_has_no_room_for_is_named_and_the_others_are_kept(node: Node, shelf: Shelf) -> None:
    shelf.limit = 1000
    node.run("asg_a", "echo ok > small; head -c 2000 /dev/zero > large", work={"outputs": ["small", "large"]})
    seen = node.until("asg_a", "exited")
    assert shelf.files(seen.outputs) == {"small": b"ok\n"}
    assert "large could not be kept: HTTP 413 too large" in seen.message


def test_what_is_there_whole_counts_once_the_store_has_taken_it(node: Node, shelf: Shelf) -> None:
    shelf.arriving[digest(b"out\n")] = b"out\n"  # Of a sender before, whose last piece nobody answered.
    shelf.looks = 3
    node.run("asg_a", "echo out > out", work={"outputs": ["out"]})
    assert shelf.files(node.until("asg_a", "exited").outputs) == {"out": b"out\n"}
    assert shelf.looks < 0


def test_an_upload_is_begun_anew_some_times_and_not_for_ever(
    shelf: Shelf, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE_BYTES", 10)
    data, holding = b"x" * 25, Holding("asg_a", 1)
    assert node.store is not None
    shelf.drops = store.ANEW_MAX
    node.store.send(holding, digest(data), 25, BytesIO(data), tell=lambda _: None)
    assert shelf.kept == {digest(data): data}
    shelf.kept.clear()
    shelf.drops = store.ANEW_MAX + 1
    with pytest.raises(Refused, match="threw away"):
        node.store.send(holding, digest(data), 25, BytesIO(data), tell=lambda _: None)


def test_what_moves_no_further_is_tried_less_often_and_given_up(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "LAST_S", 5.0)
    monkeypatch.setattr(carrier, "STUCK_S", 0.5)
    shelf.stops_at = digest(b"b\n")  # The first is taken at every try, the second at none.
    node.run("asg_a", "echo a > a; echo b > b", work={"outputs": ["a", "b"]})
    assert "HTTP 503" in node.until("asg_a", "failed").message
    assert shelf.puts.count(digest(b"a\n")) < 9


def test_inputs_that_are_there_already_count_as_far_as_they_are(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = shelf.folder({name: name.encode() * 100 for name in "abcdef"})
    moved = []
    has_moved = carrier.Carrier._has_moved
    monkeypatch.setattr(carrier.Carrier, "_has_moved", lambda self: moved.append(has_moved(self)) or moved[-1])
    fetch = Store.fetch

    def fetch_one(*args: Any, **named: Any) -> None:
        fetch(*args, **named)
        raise Trouble("the line was cut after one file")

    monkeypatch.setattr(Store, "fetch", fetch_one)
    node.want("asg_a", "prepared", work={"inputs": inputs})
    node.until("asg_a", "prepared")
    assert moved == [True] * 6


def test_what_a_command_leaves_that_cannot_be_kept_is_its_own_fault(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "ENTRIES_MAX", 3)
    node.run("asg_a", "mkdir out; touch out/1 out/2 out/3 out/4", work={"outputs": ["out"]})
    seen = node.until("asg_a", "exited")
    assert (seen.exit_code, shelf.files(seen.outputs)) == (0, {})
    assert seen.message == "what it left behind could not be kept: there are more than 3 files"

    shelf.limit = 50  # Files and the empty manifest fit in, a manifest of one file does not.
    node.run("asg_b", "echo b > b", work={"outputs": ["b"]})
    seen = node.until("asg_b", "exited")
    assert (seen.exit_code, shelf.files(seen.outputs)) == (0, {})
    assert seen.message == "what it left behind could not be kept: HTTP 413 too large"

    def refuse(root: Path, path: str) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folders, "entry_of", refuse)  # Root may read all, so no mode stands for this here.
    node.run("asg_c", "echo c > c", work={"outputs": ["c"]})
    seen = node.until("asg_c", "exited")
    assert (seen.exit_code, shelf.files(seen.outputs)) == (0, {})
    assert "Permission denied: 'c'" in seen.message


def test_a_last_checkpoint_that_cannot_be_kept_leaves_the_one_before_and_all_outputs(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "ENTRIES_MAX", 1)
    monkeypatch.setattr(carrier, "KEEP_EVERY_S", 0.05)
    script = "mkdir ck; echo 1 > ck/1; until [ -e go ]; do sleep 0.05; done; echo 2 > ck/2; echo out > out"
    node.run("asg_a", script, work={"outputs": ["out"], "checkpoint": "ck"})
    eventually(lambda: node.look("asg_a").checkpoint)
    (node.work("asg_a") / "go").touch()
    seen = node.until("asg_a", "exited")
    assert (seen.exit_code, shelf.files(seen.outputs)) == (0, {"out": b"out\n"})
    assert shelf.files(seen.checkpoint) == {"1": b"1\n"}
    assert seen.message == "its last checkpoint could not be kept: there are more than 1 files"


def test_a_checkpoint_is_kept_while_it_changes_and_put_back_elsewhere(
    node: Node, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "KEEP_EVERY_S", 0.05)
    count = "n=$(cat ck/pt/n 2>/dev/null || echo 0); echo $((n+1)) > ck/pt/n"
    script = f"mkdir -p ck/pt; echo same > ck/pt/a; {count}; sleep 600"
    work = {"checkpoint": "ck/pt"}
    node.run("asg_a", script, work=work)
    first = eventually(lambda: node.look("asg_a").checkpoint)
    eventually(lambda: shelf.files(node.look("asg_a").checkpoint) == {"a": b"same\n", "n": b"1\n"})
    sent = len(shelf.puts)
    node.stays("asg_a", "running")
    assert len(shelf.puts) == sent  # Nothing changed, nothing is sent.
    (node.work("asg_a") / "ck/pt/n").write_text("41\n")
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    last = shelf.puts[-1]
    assert last != first
    assert shelf.files(last) == {"a": b"same\n", "n": b"41\n"}
    node.want("asg_b", "running", command=["sh", "-c", script], work=work | {"checkpoint_sha256": last})
    kept = node.work("asg_b") / "ck/pt/n"
    eventually(lambda: node.look("asg_b").state == "running" and kept.read_text() == "42\n")


def test_what_is_taken_away_while_it_is_brought_leaves_nothing(node: Node, shelf: Shelf) -> None:
    inputs = shelf.folder({"a": b"x"})
    shelf.closed = True
    node.want("asg_a", "prepared", work={"inputs": inputs})
    node.stays("asg_a", "preparing")
    node.want("asg_a", "gone")
    node.until("asg_a", "gone")
    assert not node.work("asg_a").exists()


ALONE = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
except OSError as error:
    print("cut off:", error.strerror)
here = socket.create_server(("127.0.0.1", 0))
socket.create_connection(here.getsockname(), 2)
print("reaches itself")
"""


def test_without_a_network_a_process_reaches_nothing_but_itself(node: Node, plane: ControlPlane) -> None:
    command = ["python3", "-c", ALONE, str(plane.port)]
    node.want("asg_a", "running", command=command, work={"has_network": False})
    assert node.until("asg_a", "exited").exit_code == 0
    assert node.output("asg_a") == "cut off: Connection refused\nreaches itself\n"
    node.run("asg_b", "sleep 600", work={"has_network": False}, stop_grace_s=600)
    pid = node.shim_pid("asg_b")
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    node.want("asg_b", "gone")
    node.until("asg_b", "gone")


def test_a_machine_that_gives_no_network_of_its_own_refuses_with_the_reason(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.agent.workload.why_not_alone", lambda: "this node cannot: no namespaces")
    node.want("asg_a", "running", work={"has_network": False})
    assert node.until("asg_a", "failed").message == "this node cannot: no namespaces"


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/".join(["**"] * 7 + ["zz"]), "/".join("a" * 40)),
        ("/".join(["**", "?"] * 7 + ["zz"]), "/".join("a" * 40)),
        ("*a" * 5 + "b", "a" * 120),
    ],
)
def test_no_pattern_that_a_tenant_writes_keeps_a_node_or_a_worker_busy(pattern: str, path: str) -> None:
    begun = time.process_time()
    assert not folders.matcher(pattern).fullmatch(path)
    assert folders.matcher(pattern.removesuffix("zz").removesuffix("b") + "*").fullmatch(path)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("**/b/**/b", ["b/b", "b/a/b", "a/b/a/b/b", "b/b/a"], ["b", "a/b", "bb/b"]),
        ("**/b/**", ["b/a", "a/b/b"], ["b", "a/b", "a/bb/a"]),
        ("a/**/*a*b", ["a/ab", "a/b/bab", "a/ab/x", "a/aab"], ["ab", "a", "a/ba", "b/ab"]),
        ("*a*b?", ["abx", "aabbx", "xaxbx/y"], ["ab", "a/b", "ab/x"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_a_part_of_a_pattern_that_fits_in_several_places_fits_in_any(
    pattern: str, fits: list[str], does_not: list[str]
) -> None:
    found = folders.matcher(pattern)
    assert [path for path in (*fits, *does_not) if found.fullmatch(path)] == fits
