"""Artifacts through the API and the command line's code: sent in pieces, cut off, wrong, too large, a stranger's."""

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.test import Client as Browser
from django.utils import timezone

from marketplace.cli import artifacts as folders
from marketplace.cli.client import Client
from marketplace.cli.connection import Connection
from marketplace.cli.problems import Problem
from marketplace.cli.session import Session
from marketplace.cli.terminal import Terminal
from marketplace.models import Organization, Project, User
from provisioning import artifacts
from provisioning.agent import manifest
from provisioning.errors import BadFolder, WrongOffset
from provisioning.models import Artifact
from tests.conftest import make_token
from tests.marketplace.api.program import Program, problem_of

pytestmark = pytest.mark.django_db

BYTES = b"a few bytes that are worth keeping"
SHA = hashlib.sha256(BYTES).hexdigest()
BINARY = "application/octet-stream"


@pytest.fixture(autouse=True)
def _store(settings: Any, tmp_path: Path) -> None:
    settings.ARTIFACTS = tmp_path / "store"


@pytest.fixture
def stranger(charlie: User) -> Program:
    return Program(make_token(charlie, Organization.objects.get(name="Other")))


def put(program: Program, content: bytes, *, sha256: str = SHA, offset: int = 0, length: int = len(BYTES)) -> Any:
    return program.ask(
        "put", f"artifacts/{sha256}", content=content, content_type=BINARY,
        **{"Upload-Offset": str(offset), "Upload-Length": str(length)},
    )  # fmt: skip


def files(settings: Any) -> list[Path]:
    return [path for path in Path(settings.ARTIFACTS).rglob("*") if path.is_file()]


def test_an_upload_goes_on_where_it_was_cut_off_and_is_stored_once_it_is_whole(program: Program) -> None:
    assert put(program, BYTES[:10]).status_code == 202
    assert program.get(f"artifacts/{SHA}").status_code == 404
    head = program.ask("head", f"artifacts/{SHA}")
    assert (head.status_code, head["Upload-Offset"], head["Upload-Length"]) == (200, "10", str(len(BYTES)))
    wrong = put(program, BYTES[12:], offset=12)
    assert problem_of(wrong, 409, "wrong_offset")
    assert wrong["Upload-Offset"] == "10"
    stored = put(program, BYTES[10:], offset=10)
    assert (stored.status_code, stored.json()["state"]) == (201, "stored")
    assert put(program, BYTES).status_code == 200
    assert program.get(f"artifacts/{SHA}").getvalue() == BYTES
    rest = program.get(f"artifacts/{SHA}", Range="bytes=30-")
    assert (rest.status_code, rest.getvalue(), rest["Content-Length"]) == (206, BYTES[30:], "4")
    assert program.post("artifacts/missing", {"sha256s": [SHA, "0" * 64]}).json() == {"missing": ["0" * 64]}


def test_what_is_not_what_it_was_announced_as_leaves_nothing(program: Program, settings: Any) -> None:
    assert put(program, b"other bytes, other", length=len(BYTES)).status_code == 202
    problem_of(put(program, BYTES[18:], offset=18), 422, "wrong_digest")
    assert files(settings) == []
    assert not Artifact.objects.exists()
    problem_of(put(program, BYTES + b"!", length=len(BYTES)), 413, "artifact_too_large")
    problem_of(put(program, BYTES, length="x"), 422, "invalid_request", names="/Upload-Length")  # type: ignore[arg-type]


def test_limits_of_one_artifact_and_of_a_project_are_kept_before_a_byte_is_taken(
    program: Program, settings: Any
) -> None:
    settings.ARTIFACT_BYTES_MAX, settings.ARTIFACTS_PROJECT_BYTES_MAX = 40, 50
    problem_of(put(program, BYTES, length=41), 413, "artifact_too_large")
    assert put(program, BYTES).status_code == 201
    other = b"x" * 17
    digest = hashlib.sha256(other).hexdigest()
    problem_of(put(program, other, sha256=digest, length=17), 409, "artifacts_full")
    assert put(program, other[:16], sha256=hashlib.sha256(other[:16]).hexdigest(), length=16).status_code == 201


def test_that_nothing_was_kept_has_room_in_a_full_project(program: Program, settings: Any) -> None:
    settings.ARTIFACTS_PROJECT_BYTES_MAX = 0
    empty = manifest.digest(b"[]")
    problem_of(put(program, b"", sha256=empty, length=3), 409, "artifacts_full")
    assert put(program, b"[]", sha256=empty, length=2).status_code == 201


def test_an_upload_that_is_announced_larger_asks_for_room_again(program: Program, settings: Any) -> None:
    settings.ARTIFACTS_PROJECT_BYTES_MAX = 50
    assert put(program, b"", length=1).status_code == 202
    problem_of(put(program, b"", length=51), 409, "artifacts_full")
    assert Artifact.objects.get().size_bytes == 1
    assert put(program, b"", length=50).status_code == 202
    assert put(program, BYTES).status_code == 201
    files(settings)[0].unlink()
    problem_of(put(program, b"", length=51), 409, "artifacts_full")
    assert put(program, BYTES).status_code == 201


@pytest.mark.parametrize("begun", [b"", BYTES[:3]])
def test_a_sender_whose_bytes_were_thrown_away_meanwhile_begins_anew(
    project: Project, settings: Any, begun: bytes
) -> None:
    now = timezone.now()
    asked = {"project_id": project.pk, "sha256": SHA, "at": now}

    def pieces() -> Any:
        yield BYTES[:10]
        artifacts.receive(**asked, size_bytes=99, offset=0, pieces=[begun])
        yield BYTES[10:]

    with pytest.raises(WrongOffset) as refusal:
        artifacts.receive(**asked, size_bytes=len(BYTES), offset=0, pieces=pieces())
    assert refusal.value.offset == 0
    row = Artifact.objects.get()
    assert (row.state, row.size_bytes, artifacts.offset_of(row)) == ("uploading", 99, len(begun))
    row = artifacts.receive(**asked, size_bytes=len(BYTES), offset=0, pieces=[BYTES])
    assert (row.state, files(settings)[0].read_bytes()) == ("stored", BYTES)


def test_what_is_here_whole_but_was_not_placed_is_stored_by_an_empty_piece_at_its_end(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dies:
        dies.setattr(artifacts, "_finish", lambda *a, **k: (_ for _ in ()).throw(WrongOffset(len(BYTES))))
        assert put(program, BYTES)["Upload-Offset"] == str(len(BYTES))
    assert program.ask("head", f"artifacts/{SHA}")["Upload-Offset"] == str(len(BYTES))
    assert program.post("artifacts/missing", {"sha256s": [SHA]}).json() == {"missing": [SHA]}
    assert put(program, b"", offset=len(BYTES)).status_code == 201
    assert program.get(f"artifacts/{SHA}").getvalue() == BYTES


def test_nobody_learns_what_another_project_keeps(program: Program, stranger: Program, project: Project) -> None:
    put(program, BYTES)
    assert stranger.get(f"artifacts/{SHA}").status_code == 404
    problem_of(stranger.get(f"artifacts/{SHA}?project={project.public_id}"), 404, "not_found", names="/project")
    assert stranger.post("artifacts/missing", {"sha256s": [SHA]}).json() == {"missing": [SHA]}
    assert put(stranger, BYTES).status_code == 201


def test_what_nothing_uses_goes_after_a_month_and_what_is_used_stays(program: Program, project: Project) -> None:
    put(program, BYTES)
    put(program, b"beg", sha256="f" * 64, length=10)
    folder = manifest.written([manifest.Entry("a/b", SHA, len(BYTES), 0o644)])
    named = artifacts.keep(project_id=project.pk, data=folder, at=timezone.now())
    assert [entry.path for entry in artifacts.check_folder(project_id=project.pk, sha256=named)] == ["a/b"]
    later = timezone.now() + timedelta(days=29)
    assert artifacts.sweep(at=later, limit=10) == 1  # What was never finished.
    artifacts.touch(project_id=project.pk, folders=[named], at=later)
    assert artifacts.sweep(at=later + timedelta(days=29), limit=10) == 0
    assert artifacts.sweep(at=later + timedelta(days=31), limit=10) == 2
    assert program.get(f"artifacts/{SHA}").status_code == 404
    with pytest.raises(BadFolder):
        artifacts.check_folder(project_id=project.pk, sha256=named)
    assert put(program, BYTES).status_code == 201


def test_an_artifact_whose_file_was_lost_is_missing_and_may_be_sent_again(program: Program, settings: Any) -> None:
    put(program, BYTES)
    files(settings)[0].unlink()
    assert program.get(f"artifacts/{SHA}").status_code == 404
    assert program.post("artifacts/missing", {"sha256s": [SHA]}).json() == {"missing": [SHA]}
    assert put(program, BYTES).status_code == 201
    assert program.get(f"artifacts/{SHA}").getvalue() == BYTES


# Folders, by the command line's own code against the API.


class ThisServer(httpx.BaseTransport):
    """Hands requests to Django; breaks some off after a few bytes."""

    def __init__(self, *, cuts: int = 0) -> None:
        self.cuts = cuts
        self.sent = 0
        self.browser = Browser()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        is_cut = request.method == "PUT" and self.cuts > 0 and len(content) > 1
        if is_cut:
            self.cuts -= 1
            content = content[: len(content) // 2]
        self.sent += len(content) if request.method == "PUT" else 0
        answer = self.browser.generic(
            request.method, request.url.raw_path.decode(), content, request.headers.get("content-type", BINARY),
            headers=headers,
        )  # fmt: skip
        if is_cut:
            raise httpx.ReadError("the line was cut")
        return httpx.Response(answer.status_code, headers=dict(answer.items()), content=answer.getvalue())


def session_of(program: Program, server: ThisServer) -> Session:
    connection = Connection(url="http://testserver", token=program.secret, source="the test")
    terminal = Terminal()
    return Session(terminal=terminal, client=Client(connection, terminal=terminal, transport=server))


def make_folder(root: Path) -> Path:
    folder = root / "data"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "日本.txt").write_bytes(b"text")
    (folder / "big").write_bytes(os.urandom(5000))
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    return folder


def test_a_folder_arrives_as_it_was_though_the_line_is_cut_again_and_again(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PIECE_BYTES", 1000)
    folder, server = make_folder(tmp_path), ThisServer(cuts=4)
    session = session_of(program, server)
    named = folders.upload(session, folder)
    project = Project.objects.get(organization__memberships__user__email="alice@acme.example")
    entries = artifacts.check_folder(project_id=project.pk, sha256=named)
    assert [(entry.path, entry.mode) for entry in entries] == [
        ("big", 0o644), ("deep/er/日本.txt", 0o644), ("run.sh", 0o755),
    ]  # fmt: skip
    server.sent = 0
    assert folders.upload(session, folder) == named
    assert server.sent < 1000  # The manifest alone: nothing is sent twice.
    assert folders.download(session, named, tmp_path / "back") == ["big", "deep/er/日本.txt", "run.sh"]
    for entry in entries:
        copy = tmp_path / "back" / entry.path
        assert copy.read_bytes() == (folder / entry.path).read_bytes()
        assert copy.stat().st_mode & 0o777 == entry.mode


def test_a_sender_waits_while_what_is_there_whole_is_still_looked_at(
    program: Program, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(BYTES)
    finish, pauses = artifacts._finish, list[float]()

    def look(*args: Any, **named: Any) -> None:
        if len(pauses) < 3:
            raise WrongOffset(len(BYTES))
        finish(*args, **named)

    monkeypatch.setattr(artifacts, "_finish", look)
    monkeypatch.setattr(folders.time, "sleep", pauses.append)
    folders.upload(session_of(program, ThisServer()), tmp_path / "data")
    assert pauses == [0.25, 0.5, 1.0]
    assert artifacts.missing(project_id=project.pk, sha256s=[SHA]) == []


def test_links_are_not_sent_and_a_folder_that_leads_out_of_itself_is_not_fetched(
    program: Program, project: Project, tmp_path: Path
) -> None:
    session = session_of(program, ThisServer())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(Problem, match="neither a file nor a folder"):
        folders.upload(session, tmp_path / "linked")
    data = folders.manifest_of([{"path": "../out", "sha256": SHA, "size": len(BYTES), "mode": 420}])
    named = artifacts.keep(project_id=project.pk, data=data, at=timezone.now())
    with pytest.raises(Problem, match="names no folder"):
        folders.download(session, named, tmp_path / "back")
    with pytest.raises(BadFolder, match="leads out of its folder"):
        artifacts.check_folder(project_id=project.pk, sha256=named)
