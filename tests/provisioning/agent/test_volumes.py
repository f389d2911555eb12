"""Volumes on a node: made whole or not at all, found by workloads, measured, and never lost by a mistake."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import volumes
from provisioning.agent.protocol import Document, Mount, ProtocolError, Volume, parse_assignment, parse_mount
from provisioning.agent.volumes import Bind, Volumes, link_into, used_bytes, variables
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import ControlPlane, make_assignment

MIB = 1024**2


class Keeper:
    """The volumes of one node, told what to keep by the test."""

    def __init__(self, root: Path, *, is_shared: bool = False) -> None:
        self.wanted: dict[str, Volume] = {}
        self.assignments: tuple[Any, ...] = ()
        self.generation = 1
        self.changes = 0
        self.kept = Volumes(root=root, document=self.document, changed=self.note, is_shared=is_shared)

    def document(self) -> Document:
        return Document(self.generation, assignments=self.assignments, volumes=tuple(self.wanted.values()))

    def note(self) -> None:
        self.changes += 1

    def want(self, name: str, desired: str = "present", *, size: int = 4096, source: str = "",
             made: bool = False) -> dict[str, Any]:  # fmt: skip
        self.wanted[name] = Volume(id=name, size_bytes=size, desired=desired, source=source, made=made)
        self.generation += 1
        return self.look(name)

    def look(self, name: str) -> dict[str, Any]:
        self.kept.step()
        return next(word for word in self.kept.report() if word["id"] == name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volumes"


@pytest.fixture
def keeper(root: Path) -> Keeper:
    return Keeper(root)


def test_a_volume_is_a_folder_for_its_owner_alone(keeper: Keeper, root: Path) -> None:
    assert keeper.want("vol_a")["state"] == "present"
    assert stat.S_IMODE((root / "vol_a").stat().st_mode) == 0o700
    assert [path.name for path in root.iterdir()] == ["vol_a"]


def test_a_copy_has_everything_with_modes_links_and_times(keeper: Keeper, root: Path) -> None:
    keeper.want("vol_a")
    inner = root / "vol_a" / "deep" / "er"
    inner.mkdir(parents=True)
    (inner / "run.sh").write_bytes(os.urandom(3 * MIB))
    (inner / "run.sh").chmod(0o751)
    (root / "vol_a" / "link").symlink_to("deep/er/run.sh")
    (root / "vol_a" / ".hidden").write_text("x")
    assert keeper.want("vol_b", source="vol_a")["state"] == "present"
    copy = root / "vol_b" / "deep" / "er" / "run.sh"
    assert copy.read_bytes() == (inner / "run.sh").read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o751
    assert os.readlink(root / "vol_b" / "link") == "deep/er/run.sh"
    (root / "vol_a" / ".hidden").write_text("changed")
    assert (root / "vol_b" / ".hidden").read_text() == "x"


def test_what_is_to_go_is_gone_with_its_bytes(keeper: Keeper, root: Path) -> None:
    keeper.want("vol_a")
    (root / "vol_a" / "locked").mkdir(mode=0o500)
    assert keeper.want("vol_a", "gone")["state"] == "gone"
    assert list(root.iterdir()) == []
    assert keeper.look("vol_a")["state"] == "gone"


def test_a_volume_in_use_is_not_removed(keeper: Keeper, root: Path) -> None:
    keeper.want("vol_a")
    keeper.assignments = (parse_assignment(make_assignment("asg_a", volumes=[{"id": "vol_a", "path": "/data"}])),)
    assert keeper.want("vol_a", "gone")["state"] == "present"
    assert (root / "vol_a").is_dir()


def test_a_volume_that_was_here_once_is_said_to_be_missing_and_not_made_anew(keeper: Keeper, root: Path) -> None:
    said = keeper.want("vol_a", made=True)
    assert (said["state"], said["message"]) == ("failed", volumes.MISSING)
    assert list(root.iterdir()) == []
    (root / "vol_a").mkdir()
    assert keeper.look("vol_a")["state"] == "present"


def test_a_volume_that_nobody_asked_for_is_told_and_kept(keeper: Keeper, root: Path) -> None:
    (root / "vol_stray").mkdir()
    (root / "lost+found").mkdir()
    said = keeper.look("vol_stray")
    assert (said["state"], said["message"]) == ("present", volumes.STRAY)
    assert sorted(path.name for path in root.iterdir()) == ["lost+found", "vol_stray"]


def test_on_a_shared_path_the_volumes_of_others_are_not_told(root: Path) -> None:
    keeper = Keeper(root, is_shared=True)
    (root / "vol_theirs").mkdir()
    keeper.want("vol_ours")
    keeper.kept.measure()
    assert [word["id"] for word in keeper.kept.report()] == ["vol_ours"]


def test_before_any_document_nothing_is_said_or_done(keeper: Keeper, root: Path) -> None:
    keeper.generation = 0
    (root / "vol_a").mkdir()
    keeper.kept.step()
    assert keeper.kept.report() == []


def test_more_than_the_disk_has_is_refused_with_the_figures(keeper: Keeper, root: Path) -> None:
    said = keeper.want("vol_a", size=2**60)
    assert said["state"] == "failed"
    assert said["message"].endswith(f"{2**30} are asked for")
    assert list(root.iterdir()) == []


def test_a_copy_of_nothing_fails_and_leaves_nothing(keeper: Keeper, root: Path) -> None:
    assert keeper.want("vol_b", source="vol_a")["message"] == (
        "the volume that it is to be a copy of is not on this node"
    )
    assert list(root.iterdir()) == []


def test_a_copy_that_fails_leaves_nothing_and_says_why(keeper: Keeper, root: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    keeper.want("vol_a")
    monkeypatch.setattr(volumes, "COPY", ("sh", "-c", "echo no space left >&2; exit 1"))
    said = keeper.want("vol_b", source="vol_a")
    assert (said["state"], said["message"]) == ("failed", "it could not be copied: no space left")
    assert [path.name for path in root.iterdir()] == ["vol_a"]


def test_bytes_are_measured_with_hard_links_counted_once_and_links_not_followed(root: Path) -> None:
    folder = root / "vol_a"
    (folder / "sub").mkdir(parents=True)
    (folder / "big").write_bytes(b"x" * 2 * MIB)
    os.link(folder / "big", folder / "sub" / "again")
    (folder / "everything").symlink_to("/")
    used = used_bytes(folder, limit_s=10)
    assert used is not None
    assert 2 * MIB <= used < 2 * MIB + 64 * 1024


def test_what_cannot_be_measured_in_time_is_unknown_and_not_zero(root: Path) -> None:
    root.mkdir()
    assert used_bytes(root, limit_s=-1) is None
    assert used_bytes(root / "nothing", limit_s=10) is None


def test_what_the_control_plane_knows_is_told_again_only_when_it_changes_or_is_old(
    keeper: Keeper, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.want("vol_a")
    said = keeper.kept.report()
    keeper.kept.note_heard(said, generation=keeper.generation)
    assert keeper.kept.report() == []
    (root / "vol_a" / "file").write_bytes(b"x" * MIB)
    keeper.kept.measure()
    assert keeper.kept.report()[0]["used_bytes"] >= MIB
    keeper.kept.note_heard(keeper.kept.report(), generation=keeper.generation)
    keeper.generation += 1
    assert keeper.kept.report() != []
    keeper.kept.note_heard(keeper.kept.report(), generation=keeper.generation)
    monkeypatch.setattr(volumes, "SAY_AGAIN_S", 0)
    assert keeper.kept.report() != []


def test_a_process_finds_a_volume_at_its_path_below_its_working_folder(tmp_path: Path) -> None:
    work, source = tmp_path / "work", tmp_path / "vol_a"
    work.mkdir()
    source.mkdir()
    binds = [Bind(source, "/mnt/data", "my-data")]
    link_into(work, binds)
    link_into(work, binds)
    (work / "mnt" / "data" / "file").write_text("kept")
    assert (source / "file").read_text() == "kept"
    assert variables(binds, work=work) == {"GPUMARKET_VOLUME_MY_DATA": str(work / "mnt" / "data")}
    assert variables(binds) == {"GPUMARKET_VOLUME_MY_DATA": "/mnt/data"}


@pytest.mark.parametrize("path", ["data", "/", "/a/../b", "//a", "/a/", "/./a"])
def test_a_path_that_leaves_the_working_folder_is_not_of_the_protocol(path: str) -> None:
    with pytest.raises(ProtocolError):
        parse_mount({"id": "vol_a", "path": path})
    assert parse_mount({"id": "vol_a", "path": "/a/b"}) == Mount("vol_a", "/a/b")


# A real agent.


def uses(name: str, *, path: str = "/data") -> list[dict[str, str]]:
    return [{"id": name, "path": path, "name": "data"}]


def test_data_outlives_the_instance_that_wrote_it(start_agent: Any, plane: ControlPlane, home: Path) -> None:
    start_agent()
    plane.keep("vol_a")
    eventually(lambda: plane.said_of("vol_a"))
    write = ["sh", "-c", 'echo kept > "$GPUMARKET_VOLUME_DATA/file"; cat data/file']
    plane.want("asg_a", "running", command=write, volumes=uses("vol_a"))
    eventually(lambda: plane.view("asg_a")["state"] == "exited")
    plane.want("asg_a", "gone")
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    assert not (home / "workloads" / "asg_a").exists()
    assert (home / "volumes" / "vol_a" / "file").read_text() == "kept\n"
    plane.keep("vol_a", "gone")
    eventually(lambda: plane.said_of("vol_a")["state"] == "gone")
    assert list((home / "volumes").iterdir()) == []


def test_an_assignment_whose_volume_is_not_here_fails_with_the_reason(start_agent: Any, plane: ControlPlane) -> None:
    start_agent()
    plane.want("asg_a", "running", volumes=uses("vol_a"))
    eventually(lambda: plane.view("asg_a")["state"] == "failed")
    assert plane.view("asg_a")["message"] == "the volume data is not on this node"


def test_a_copy_survives_the_death_of_its_agent(start_agent: Any, plane: ControlPlane, home: Path,
                                                tmp_path: Path) -> None:  # fmt: skip
    hanging = tmp_path / "bin" / "cp"
    hanging.parent.mkdir()
    hanging.write_text('#!/bin/sh\nfor target; do :; done\necho half > "$target/file"\nexec sleep 600\n')
    hanging.chmod(0o755)
    agent: AgentRun = start_agent(env={"PATH": f"{hanging.parent}:{os.environ['PATH']}"})
    plane.keep("vol_a")
    eventually(lambda: plane.said_of("vol_a"))
    (home / "volumes" / "vol_a" / "file").write_text("whole")
    plane.keep("vol_b", source="vol_a")
    eventually(lambda: list((home / "volumes").glob(".new-vol_b-*/file")))
    assert plane.said_of("vol_b") is None
    agent.kill()
    start_agent()
    eventually(lambda: (plane.said_of("vol_b") or {}).get("state") == "present")
    assert (home / "volumes" / "vol_b" / "file").read_text() == "whole"
    assert sorted(path.name for path in (home / "volumes").iterdir()) == ["vol_a", "vol_b"]


def test_a_disk_that_is_not_mounted_keeps_the_agent_from_starting(start_agent: Any, tmp_path: Path) -> None:
    agent: AgentRun = start_agent("--volumes", str(tmp_path / "nothing"))
    assert agent.exit_code() == 2
    assert "is its disk mounted?" in agent.log


def test_volumes_lie_where_the_operator_says(start_agent: Any, plane: ControlPlane, tmp_path: Path) -> None:
    elsewhere = tmp_path / "big-disk"
    elsewhere.mkdir()
    start_agent("--volumes", str(elsewhere))
    plane.keep("vol_a")
    eventually(lambda: plane.said_of("vol_a"))
    assert (elsewhere / "vol_a").is_dir()


def test_measuring_is_told_within_its_period(start_agent: Any, plane: ControlPlane, home: Path) -> None:
    (home / "volumes" / "vol_a").mkdir(parents=True)
    (home / "volumes" / "vol_a" / "file").write_bytes(b"x" * MIB)
    start_agent()
    plane.keep("vol_a", made=True)
    eventually(lambda: (plane.said_of("vol_a") or {}).get("used_bytes"), seconds=volumes.MEASURE_EVERY_S)
