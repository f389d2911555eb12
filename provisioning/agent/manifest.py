"""Manifests: a whole folder as one list of its files. Plain values; the control plane and the agent read them alike.

A manifest is JSON in the one form of RFC 8785: a list of `{"mode", "path",
"sha256", "size"}`, sorted by path, so the same folder has the same manifest and
its SHA-256 names the folder. Paths are relative, of `/`-separated names; there
are files alone: no links, no devices, no empty folders.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
ENTRIES_MAX = 20_000
PATH_BYTES_MAX, NAME_BYTES_MAX = 1024, 255
MANIFEST_BYTES_MAX = 32 << 20
EMPTY = b"[]"
MODE_MAX = 0o777
SIZE_MAX = 2**53


class BadManifest(ValueError):
    """This is no manifest; the message says where and why."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One file of a folder. `mode` is its permissions alone."""

    path: str
    sha256: str
    size: int
    mode: int


def written(entries: Iterable[Entry]) -> bytes:
    """Return the manifest of these files. Raises BadManifest."""
    found = checked(sorted(entries))
    text = json.dumps([asdict(entry) for entry in found], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def read(data: bytes) -> tuple[Entry, ...]:
    """Return what a manifest lists. Raises BadManifest, also for one that is not in its one form."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise BadManifest(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadManifest("it is not JSON") from error
    if not isinstance(found, list):
        raise BadManifest("it is no list of files")
    entries = checked(sorted(_entry(number, one) for number, one in enumerate(found)))
    if written(entries) != data:
        raise BadManifest("it is not in the canonical form: sorted by path, no blanks, RFC 8785")
    return tuple(entries)


def checked(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return entries that are sorted by path if they make a folder. Raises BadManifest."""
    if len(entries) > ENTRIES_MAX:
        raise BadManifest(f"a folder has at most {ENTRIES_MAX} files")
    for entry in entries:
        if why := why_no_path(entry.path):
            raise BadManifest(f"{entry.path!r} {why}")
    paths = {entry.path for entry in entries}
    if len(paths) < len(entries):
        raise BadManifest("a path is there twice")
    for path in paths:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in paths:
                raise BadManifest(f"{parent!r} is a file and a folder")
    return entries


def why_no_path(path: str) -> str:
    """Return why a path cannot be that of a file inside a folder, or nothing."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not text"
    names = path.split("/")
    if not path or path.startswith("/"):
        return "is not a relative path"
    if "\0" in path or "\\" in path or any(name in {"", ".", ".."} for name in names):
        return "leads out of its folder, or is not in its shortest form"
    if size > PATH_BYTES_MAX or any(len(name.encode()) > NAME_BYTES_MAX for name in names):
        return "is too long"
    return ""


def digest(data: bytes) -> str:
    """Return the SHA-256 by which bytes are known."""
    return hashlib.sha256(data).hexdigest()


def _entry(number: int, found: Any) -> Entry:
    if not isinstance(found, dict) or set(found) != {"path", "sha256", "size", "mode"}:
        raise BadManifest(f"entry {number} is not of path, sha256, size and mode")
    path, sha256, size, mode = (found[name] for name in ("path", "sha256", "size", "mode"))
    if not isinstance(path, str) or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise BadManifest(f"entry {number} has no path or no SHA-256")
    if type(size) is not int or not 0 <= size <= SIZE_MAX:
        raise BadManifest(f"entry {number} has no size")
    if type(mode) is not int or not 0 <= mode <= MODE_MAX:
        raise BadManifest(f"entry {number} has no mode of permissions alone")
    return Entry(path=path, sha256=sha256, size=size, mode=mode)
