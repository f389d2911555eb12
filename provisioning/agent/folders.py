"""Folders that a tenant writes, read without being led out of them: no link is followed, at any depth, at any time."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioning.agent.manifest import ENTRIES_MAX, Entry, why_no_path

READ_BYTES = 1 << 20
BLOCK_BYTES = 512  # Of st_blocks, whatever the file system has.
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WILD = re.compile(r"[*?]")


class TooManyFiles(Exception):
    """There are more files than a manifest may list."""


@dataclass(frozen=True)
class Found:
    """A file of a folder, and what of it changes when somebody writes it."""

    path: str
    size: int
    mode: int
    mark: tuple[int, int, int, int]


def walk(root: Path, *, below: str = "") -> Iterator[Found]:
    """Yield the regular files in a folder, or in one below it; nothing where it is not there."""
    try:
        top = _folder_beneath(root, below.split("/") if below else [])
    except OSError:
        yield from _single(root, below)
        return
    try:
        for folder, names, files, handle in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            names.sort()
            before = "/".join(filter(None, [below, folder.removeprefix(".").removeprefix("/")]))
            for name in sorted(files):
                path = f"{before}/{name}" if before else name
                try:
                    kept = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except OSError:
                    continue  # It was removed this moment.
                if stat.S_ISREG(kept.st_mode) and not why_no_path(path):
                    yield _found(path, kept)
    finally:
        os.close(top)


def room_of(root: Path) -> int:
    """Return how many bytes of the disk a folder takes, with all that is in it; what has several names counts once.

    No link is followed, so what lies elsewhere is not in it. Raises OSError where there is no such folder.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for _folder, names, files, handle in os.fwalk(root, follow_symlinks=False):
        for name in (*names, *files):
            try:
                kept = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except OSError:
                continue  # It was removed this moment.
            mark = (kept.st_dev, kept.st_ino)
            if kept.st_nlink > 1 and not stat.S_ISDIR(kept.st_mode):
                if mark in seen:
                    continue
                seen.add(mark)
            total += kept.st_blocks * BLOCK_BYTES
    return total


def _single(root: Path, path: str) -> Iterator[Found]:
    try:
        file = open_beneath(root, path)
    except OSError:
        return
    kept = os.fstat(file)
    os.close(file)
    yield _found(path, kept)


def _found(path: str, kept: os.stat_result) -> Found:
    return Found(
        path, kept.st_size, stat.S_IMODE(kept.st_mode) & 0o777,
        (kept.st_ino, kept.st_size, kept.st_mtime_ns, kept.st_ctime_ns),
    )  # fmt: skip


def matching(root: Path, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths that these patterns name in a folder, and the patterns that name nothing.

    `*` and `?` stand for letters of one name, `**` for any folders; what names
    a folder means all that is in it. Raises TooManyFiles.
    """
    found: dict[str, None] = {}
    lacking = []
    for pattern in patterns:
        fits, begins = matcher(pattern), _plain_beginning(pattern)
        is_there = False
        for one in walk(root, below=begins):
            if fits.fullmatch(one.path):
                found[one.path] = None
                is_there = True
            if len(found) > ENTRIES_MAX:
                raise TooManyFiles(f"there are more than {ENTRIES_MAX} files")
        if not is_there:
            lacking.append(pattern)
    return sorted(found), lacking


def matcher(pattern: str) -> re.Pattern[str]:
    """Return what the paths look like that a pattern names.

    Tenants write patterns, so none may take long: where a part fits in several places the first is kept for good
    (`(?>`), as whatever fits behind a later one fits behind the first.
    """
    names = pattern.split("/")
    is_open = names[-1] == "**"
    if is_open:
        names.pop()
    words, is_within = "", False
    for number, name in enumerate(names, start=1):
        if name == "**":
            words += (")" if is_within else "") + "(?>(?:[^/]+/)*?"
            is_within = True
        else:
            words += _name(name) + ("/" if is_open or number < len(names) else r"(?=/|\Z)")
    words += ")" if is_within else ""
    return re.compile(words + (".+" if is_open else "(?:/.+)?"), re.DOTALL)


def _name(name: str) -> str:
    """Return what one name of a path looks like, as `matcher` writes it."""
    first, *others = map(_letters, re.split(r"\*+", name))
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>[^/]*?{part})" for part in middle) + f"[^/]*{last}"


def _letters(part: str) -> str:
    return "".join("[^/]" if letter == "?" else re.escape(letter) for letter in part)


def _plain_beginning(pattern: str) -> str:
    """Return the folder in which everything is that a pattern may name."""
    names = pattern.split("/")
    wild = next((number for number, name in enumerate(names) if WILD.search(name)), len(names))
    return "/".join(names[:wild])


def open_beneath(root: Path, path: str) -> int:
    """Open a regular file inside a folder. Raises OSError where a link stands anywhere on the way to it."""
    *folders, name = path.split("/")
    handle = _folder_beneath(root, folders)
    try:
        file = os.open(name, READING, dir_fd=handle)
    finally:
        os.close(handle)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no file")
    return file


def _folder_beneath(root: Path, folders: Sequence[str]) -> int:
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for folder in folders:
        try:
            inner = os.open(folder, READING | os.O_DIRECTORY, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def entry_of(root: Path, path: str) -> Entry:
    """Return a file as a manifest lists it. Raises OSError."""
    with os.fdopen(open_beneath(root, path), "rb") as file:
        hashed, size = hashlib.sha256(), 0
        while piece := file.read(READ_BYTES):
            hashed.update(piece)
            size += len(piece)
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
    return Entry(path=path, sha256=hashed.hexdigest(), size=size, mode=mode)
