"""Folders to and from the marketplace: each file known by its SHA-256, sent once, and gone on with after any cut.

A folder's manifest is the JSON list of its files (path, sha256, size, mode) in
the one form of RFC 8785; it is an artifact too, and its SHA-256 names the folder.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marketplace.cli.problems import Problem, problem, usage
from marketplace.cli.session import Session

PIECE_BYTES = 8 << 20
READ_BYTES = 1 << 20
ASKED_AT_ONCE = 5000
ENTRIES_MAX = 20_000
# How often an upload is gone on with that somebody else went on with, or that broke off.
TRIES = 20
PAUSE_S, PAUSE_MOST_S = 0.25, 5.0


def upload(session: Session, folder: Path, *, project: str | None = None) -> str:
    """Send a folder, or what is missing of it, and return the SHA-256 of its manifest. Raises Problem.

    Interrupted and called again, it goes on where it was.
    """
    entries = _look(session, folder)
    size = sum(entry["size"] for entry in entries)
    files = {entry["sha256"]: entry for entry in entries}
    done = size
    lacking = list(_missing(session, list(files), project))
    done -= sum(files[sha256]["size"] for sha256 in lacking)
    for number, sha256 in enumerate(lacking, start=1):
        entry = files[sha256]

        def tell(sent: int, done: int = done, number: int = number) -> None:
            session.terminal.status(f"Sending {number} of {len(lacking)} files, {_percent(done + sent, size)}")

        _send(session, folder / entry["path"], entry, project, tell)
        done += entry["size"]
    session.terminal.clear()
    return _send_manifest(session, entries, project)


def download(session: Session, manifest: str, folder: Path, *, project: str | None = None) -> list[str]:
    """Fetch the folder that a manifest names into `folder`; return the paths of its files. Raises Problem.

    What is there already and is the same stays as it is.
    """
    entries = _entries(session, manifest, project)
    size, done = sum(entry["size"] for entry in entries), 0
    for number, entry in enumerate(entries, start=1):
        target = folder / entry["path"]

        def tell(got: int, done: int = done, number: int = number) -> None:
            session.terminal.status(f"Fetching {number} of {len(entries)} files, {_percent(done + got, size)}")

        if not (target.is_file() and target.stat().st_size == entry["size"] and _digest(target) == entry["sha256"]):
            _fetch(session, entry, target, project, tell)
        os.chmod(target, entry["mode"])
        done += entry["size"]
    session.terminal.clear()
    return [entry["path"] for entry in entries]


def manifest_of(entries: list[dict[str, Any]]) -> bytes:
    """Return the manifest of these files, sorted by path."""
    ordered = sorted(entries, key=lambda entry: str(entry["path"]))
    return json.dumps(ordered, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# Sending.


def _look(session: Session, folder: Path) -> list[dict[str, Any]]:
    """Return every file of a folder with its digest."""
    if not folder.is_dir():
        raise usage(f"{folder} is no folder.", suggestion="Name a folder; all that is in it is sent.")
    found: list[dict[str, Any]] = []
    for path in _walk(folder):
        kept = path.lstat()
        if not stat.S_ISREG(kept.st_mode):
            raise usage(
                f"{path} is neither a file nor a folder.",
                detail="Links, devices and sockets cannot be sent: they mean something else on another machine.",
                suggestion="Put a copy in its place, or leave it out of the folder.",
            )
        if len(found) == ENTRIES_MAX:
            raise usage(f"{folder} has more than {ENTRIES_MAX:,} files.", suggestion="Pack them, for example with tar.")
        session.terminal.status(f"Reading {path}")
        found.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "sha256": _digest(path),
                "size": kept.st_size,
                "mode": stat.S_IMODE(kept.st_mode) & 0o777,
            }
        )
    session.terminal.clear()
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def _missing(session: Session, sha256s: list[str], project: str | None) -> Iterator[str]:
    whose = {"project": project} if project else {}
    for begin in range(0, len(sha256s), ASKED_AT_ONCE):
        asked = {"sha256s": sha256s[begin : begin + ASKED_AT_ONCE]}
        yield from session.client.post("/artifacts/missing", asked | whose)["missing"]


def _send(
    session: Session, path: Path, entry: dict[str, Any], project: str | None, tell: Callable[[int], None]
) -> None:
    address, size = f"/artifacts/{entry['sha256']}", entry["size"]
    # What is small is sent at once; of what is large, some may be there already.
    offset = session.client.offset(address, project=project) if size > PIECE_BYTES else 0
    tries = TRIES
    with path.open("rb") as file:
        while True:
            tell(offset)
            file.seek(offset)
            headers = {"Upload-Offset": str(offset), "Upload-Length": str(size)}
            answer = session.client.send(address, file.read(PIECE_BYTES), headers=headers, project=project)
            if answer.is_success and int(answer.headers.get("Upload-Offset", size)) >= size:
                return
            before = offset
            if not answer.is_success and "Upload-Offset" not in answer.headers:
                raise _explained(session, answer, path)
            offset = int(answer.headers["Upload-Offset"])
            tries = TRIES if offset > before else tries - 1
            if not tries or path.stat().st_size != size:
                raise _changed(path)
            if offset == before:  # Somebody else sends it, or the marketplace still reads what came.
                time.sleep(min(PAUSE_MOST_S, PAUSE_S * 2 ** (TRIES - 1 - tries)))


def _explained(session: Session, answer: Any, path: Path) -> Problem:
    """Return the problem of a refused upload, in the words of the file that it is about."""
    try:
        session.client.read(answer)
    except Problem as refusal:
        if refusal.code == "wrong_digest":
            return _changed(path)
        refusal.document["detail"] = f"{path}: {refusal.document.get('detail', '')}"
        return refusal
    return _changed(path)


def _changed(path: Path) -> Problem:
    return problem(
        code="changed_meanwhile",
        title=f"{path} changed while it was sent.",
        suggestion="Repeat the command once nothing writes there any more; what was sent already is not sent again.",
    )


def _send_manifest(session: Session, entries: list[dict[str, Any]], project: str | None) -> str:
    data = manifest_of(entries)
    sha256 = hashlib.sha256(data).hexdigest()
    headers = {"Upload-Offset": "0", "Upload-Length": str(len(data))}
    answer = session.client.send(f"/artifacts/{sha256}", data, headers=headers, project=project)
    if not answer.is_success:
        session.client.read(answer)
    return sha256


# Fetching.


def _entries(session: Session, manifest: str, project: str | None) -> list[dict[str, Any]]:
    data = b"".join(session.client.pieces(f"/artifacts/{manifest}", project=project))
    try:
        entries = list(json.loads(data)) if hashlib.sha256(data).hexdigest() == manifest else []
        if manifest_of(entries) == data and all(_is_inside(entry["path"]) for entry in entries):
            return entries
    except (ValueError, TypeError, KeyError):
        pass
    raise problem(code="bad_folder", title=f"{manifest} names no folder.", suggestion="Check the digest.")


def _is_inside(path: str) -> bool:
    return bool(path) and "\\" not in path and not any(name in {"", ".", ".."} for name in path.split("/"))


def _fetch(
    session: Session, entry: dict[str, Any], target: Path, project: str | None, tell: Callable[[int], None]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name[:200]}.part")
    offset = beside.stat().st_size if beside.exists() else 0
    offset = offset if offset <= entry["size"] else 0
    with beside.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        for piece in session.client.pieces(f"/artifacts/{entry['sha256']}", offset=offset, project=project):
            file.write(piece)
            tell(file.tell())
        file.truncate()
    if _digest(beside) != entry["sha256"]:
        beside.unlink()
        raise problem(
            code="wrong_digest",
            title=f"{entry['path']} arrived damaged.",
            suggestion="Repeat the command; what arrived whole is not fetched again.",
        )
    os.replace(beside, target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _percent(done: int, size: int) -> str:
    return f"{100 * done // size} %" if size else "100 %"
