"""The store of artifacts: bytes of a project, each known by its SHA-256, kept as files that every web process shares.

Uploads may be cut off anywhere and go on from where they were: what has arrived
lies beside, and becomes the artifact once it is whole and its digest is the one
that it was announced with. Projects share nothing, so that nobody learns what
another tenant keeps. A manifest (`agent/manifest.py`) is an artifact too, and
names a whole folder.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q, Sum
from django.utils.translation import gettext

from provisioning import manifest_texts
from provisioning.agent import manifest
from provisioning.agent.folders import matcher
from provisioning.agent.manifest import BadManifest, Entry
from provisioning.errors import ArtifactsFull, ArtifactTooLarge, BadFolder, NoArtifact, WrongDigest, WrongOffset
from provisioning.models import Artifact, ArtifactState, Instance, Phase

log = structlog.get_logger("provisioning.artifacts")

KEPT_UNUSED, KEPT_UNFINISHED = timedelta(days=30), timedelta(days=2)
READ_BYTES = 1 << 20
SMALL_BYTES = 64 << 10
# The manifest of an empty folder has room in every project: that nothing could be kept can always be told.
NOTHING = (manifest.digest(manifest.EMPTY), len(manifest.EMPTY))
# How exactly it is known when an artifact was last used.
USED_GRAIN = timedelta(hours=1)
FROM_BYTE = re.compile(r"bytes=(\d{1,16})-", re.ASCII)
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('artifacts of ' || %s::bigint, 0))"


def find(*, project_id: int, sha256: str) -> Artifact | None:
    """Return what a project has of an artifact, whole or not."""
    row = Artifact.objects.filter(project=project_id, sha256=sha256).first()
    return row if row is None or row.state == ArtifactState.UPLOADING or _path(row).exists() else None


def offset_of(row: Artifact) -> int:
    """Return how many bytes of an artifact are here, from its first on."""
    if row.state == ArtifactState.STORED:
        return row.size_bytes
    try:
        return min(_partial(row).stat().st_size, row.size_bytes)
    except FileNotFoundError:
        return 0


def receive(
    *, project_id: int, sha256: str, size_bytes: int, offset: int, pieces: Iterable[bytes], at: datetime
) -> Artifact:
    """Take bytes of an artifact from `offset` on; return it, stored once it is whole.

    What came before the pieces broke off is kept. Raises ArtifactTooLarge,
    ArtifactsFull, WrongOffset where that is not the next byte that is missing
    or somebody else sends it now or announced another size meanwhile, and
    WrongDigest where all of it is not what it was announced as: then nothing of
    it is kept.
    """
    row = _begin(project_id=project_id, sha256=sha256, size_bytes=size_bytes, at=at)
    if row.state == ArtifactState.STORED:
        return row
    with _locked(row) as file:
        if file is None:  # Somebody else finished it this moment.
            return _stored(row)
        have = file.seek(0, os.SEEK_END)
        if offset != have:
            raise WrongOffset(have)
        hashed = hashlib.sha256() if offset == 0 else None
        for piece in pieces:
            have += len(piece)
            if have > size_bytes:
                file.truncate(offset)
                raise ArtifactTooLarge(gettext("More bytes came than were announced: %(size)s.") % {"size": size_bytes})
            file.write(piece)
            if hashed is not None:
                hashed.update(piece)
        file.flush()
        if have < size_bytes:
            return row
        os.fsync(file.fileno())
        found = hashed.hexdigest() if hashed is not None else _digest(file)
        _finish(row, file, is_right=found == sha256)
    if found != sha256:
        raise WrongDigest(found)
    return _stored(row)


@transaction.atomic
def _begin(*, project_id: int, sha256: str, size_bytes: int, at: datetime) -> Artifact:
    """Return the row of an artifact that is to be kept; a new one counts against the project's room at once."""
    assert manifest.SHA256.fullmatch(sha256)
    if size_bytes > settings.ARTIFACT_BYTES_MAX:
        limit = settings.ARTIFACT_BYTES_MAX
        raise ArtifactTooLarge(gettext("One file has at most %(most)s bytes; split it.") % {"most": limit})
    known = Artifact.objects.select_for_update(no_key=True).filter(project=project_id, sha256=sha256)
    row = known.first()
    if row is None:
        if (sha256, size_bytes) != NOTHING:
            _make_room(project_id, size_bytes)
        row, _ = known.get_or_create(
            project_id=project_id, sha256=sha256, defaults={"size_bytes": size_bytes, "created_at": at, "used_at": at}
        )
    is_lost = row.state == ArtifactState.STORED and not _path(row).exists()
    if (is_lost or row.state == ArtifactState.UPLOADING) and size_bytes > row.size_bytes:
        _make_room(project_id, size_bytes, beyond=row.size_bytes)
    if is_lost:
        log.error("an artifact lost its file", project=project_id, sha256=sha256)
        row.move_to(ArtifactState.UPLOADING, size_bytes=size_bytes)
    if row.state == ArtifactState.UPLOADING and row.size_bytes != size_bytes:
        _partial(row).unlink(missing_ok=True)
        row.size_bytes = size_bytes
        row.save(update_fields=["size_bytes"])
    if at - row.used_at > USED_GRAIN:
        Artifact.objects.filter(pk=row.pk).update(used_at=at)
    return row


def _make_room(project_id: int, size_bytes: int, *, beyond: int = 0) -> None:
    """Raise ArtifactsFull where a project may not keep so much more. Two uploads that begin at once ask in turn.

    `beyond` is what of it counts already: it was announced smaller before.
    Small files have some room beyond the limit, so that what ran can still tell what it left.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [project_id])
    kept = Artifact.objects.filter(project=project_id).aggregate(bytes=Sum("size_bytes"))["bytes"] or 0
    limit = settings.ARTIFACTS_PROJECT_BYTES_MAX
    if size_bytes <= SMALL_BYTES:
        limit += limit // 100
    if kept - beyond + size_bytes > limit:
        raise ArtifactsFull(
            gettext("The project keeps %(kept)s of at most %(most)s bytes, and this is %(size)s more.")
            % {"kept": kept, "most": limit, "size": size_bytes - beyond}
        )


@contextmanager
def _locked(row: Artifact) -> Iterator[BinaryIO | None]:
    """Open what has arrived for us alone; None where it is whole by now. Raises WrongOffset while others write it."""
    path = _partial(row)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WrongOffset(file.seek(0, os.SEEK_END)) from None
            if _path(row).exists():
                path.unlink(missing_ok=True)
                yield None
                return
            # Between opening and locking it may have been finished and lost, or refused: then there is another file.
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether this open file is still the one of that name."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


@transaction.atomic
def _finish(row: Artifact, file: BinaryIO, *, is_right: bool) -> None:
    """Let all that has arrived be the artifact, or keep nothing of it. Raises WrongOffset where it counts no more.

    Whoever announces another size or removes it holds its row while the file goes, and so do we.
    """
    known = Artifact.objects.select_for_update().filter(pk=row.pk).first()
    if known is None or known.size_bytes != row.size_bytes or not _is_at(_partial(row), file):
        raise WrongOffset(0)
    if is_right:
        _place(row)
        return
    _partial(row).unlink()
    Artifact.objects.filter(pk=row.pk, state=ArtifactState.UPLOADING).delete()


def _place(row: Artifact) -> None:
    """Let what has arrived be the artifact. It is whole on the disk before it has its name."""
    path = _path(row)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.replace(_partial(row), path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stored(row: Artifact) -> Artifact:
    if not row.move_to(ArtifactState.STORED):
        row.refresh_from_db()
    return row


def keep(*, project_id: int, data: bytes, at: datetime) -> str:
    """Store bytes of ours, such as a manifest that was put together here; return their digest."""
    sha256 = manifest.digest(data)
    row = _begin(project_id=project_id, sha256=sha256, size_bytes=len(data), at=at)
    have = offset_of(row)
    if row.state == ArtifactState.UPLOADING:
        receive(project_id=project_id, sha256=sha256, size_bytes=len(data), offset=have, pieces=[data[have:]], at=at)
    return sha256


def missing(*, project_id: int, sha256s: Collection[str]) -> list[str]:
    """Return which of these a project does not have whole, in the order in which they were asked for. One query."""
    rows = Artifact.objects.filter(project=project_id, sha256__in=set(sha256s), state=ArtifactState.STORED)
    there = {row.sha256 for row in rows if _path(row).exists()}
    return [sha256 for sha256 in dict.fromkeys(sha256s) if sha256 not in there]


def size_of(*, project_id: int, sha256: str) -> int:
    """Return how many bytes an artifact has. Raises NoArtifact where the project does not have it whole."""
    try:
        return _path(Artifact(project_id=project_id, sha256=sha256)).stat().st_size
    except FileNotFoundError:
        raise NoArtifact(sha256) from None


def pieces_of(*, project_id: int, sha256: str, offset: int = 0) -> Iterator[bytes]:
    """Yield the bytes of an artifact from `offset` on. Nothing is open before the first is asked for."""
    with _path(Artifact(project_id=project_id, sha256=sha256)).open("rb") as file:
        file.seek(offset)
        while piece := file.read(READ_BYTES):
            yield piece


def first_byte(asked: str, *, size_bytes: int) -> int | None:
    """Return from which byte on a Range header asks for an artifact, None for all of it."""
    found = FROM_BYTE.fullmatch(asked)
    return min(int(found[1]), size_bytes) if found else None


@lru_cache(maxsize=16)
def files_of(project_id: int, sha256: str) -> tuple[Entry, ...]:
    """Return the files of the folder that a manifest names, in the order of their paths.

    Raises NoArtifact where the project does not have it, and BadManifest. What
    a digest names never changes, so a process reads it once.
    """
    size_of(project_id=project_id, sha256=sha256)
    data = b""
    for piece in pieces_of(project_id=project_id, sha256=sha256):
        data += piece
        if len(data) > manifest.MANIFEST_BYTES_MAX:
            break
    return manifest.read(data)


def lacking(*, project_id: int, sha256: str, patterns: Sequence[str]) -> list[str]:
    """Return which of these patterns name no file of a folder that a project keeps; all, where it keeps no such folder.

    This is our own record of what was left behind, whatever the node says of it.
    """
    if not patterns or not sha256:
        return list(patterns)
    try:
        paths = [entry.path for entry in files_of(project_id, sha256)]
    except (NoArtifact, BadManifest):
        return list(patterns)
    return [pattern for pattern in patterns if not any(map(matcher(pattern).fullmatch, paths))]


def check_folder(*, project_id: int, sha256: str) -> tuple[Entry, ...]:
    """Return the files of a folder that a project has whole, or raise BadFolder with what is wrong or missing."""
    if not manifest.SHA256.fullmatch(sha256):
        raise BadFolder(gettext("A folder is named by the SHA-256 of its manifest: 64 characters of 0-9 and a-f."))
    if missing(project_id=project_id, sha256s=[sha256]):
        raise BadFolder(
            gettext("The project has no manifest %(sha256)s; upload the folder first.") % {"sha256": sha256}
        )
    try:
        entries = files_of(project_id, sha256)
    except BadManifest as error:
        raise BadFolder(
            gettext("%(sha256)s is no manifest: %(why)s.") % {"sha256": sha256, "why": manifest_texts.said(error)}
        ) from error
    if lacking := missing(project_id=project_id, sha256s=[entry.sha256 for entry in entries]):
        path = next(entry.path for entry in entries if entry.sha256 == lacking[0])
        raise BadFolder(
            gettext("%(count)s files of the folder were not uploaded yet, the first is %(path)s.")
            % {"count": len(lacking), "path": path}
        )
    return entries


def touch(*, project_id: int, folders: Collection[str], at: datetime) -> None:
    """Note that these folders are still needed: their manifests, and all files in them.

    Whoever needs what no living instance names, such as the outputs of a job, says so more often than once a month.
    """
    used = _with_files(project_id, folders)
    stale = Q(used_at__lt=at - USED_GRAIN)
    Artifact.objects.filter(stale, project=project_id, sha256__in=used).update(used_at=at)


def _with_files(project_id: int, folders: Iterable[str]) -> set[str]:
    used = {sha256 for sha256 in folders if sha256}
    for sha256 in tuple(used):
        try:
            used |= {entry.sha256 for entry in files_of(project_id, sha256)}
        except (NoArtifact, BadManifest):
            continue
    return used


def sweep(*, at: datetime, limit: int) -> int:
    """Remove what nothing has used for long, and uploads that were given up; return how many. Bounded by `limit`.

    What an instance that is not gone for good begins with or left behind is in use.
    """
    old = Q(used_at__lt=at - KEPT_UNUSED) | Q(state=ArtifactState.UPLOADING, used_at__lt=at - KEPT_UNFINISHED)
    doomed = list(Artifact.objects.filter(old).order_by("used_at")[:limit])
    for project_id in {row.project_id for row in doomed}:
        touch(project_id=project_id, folders=_folders_in_use(project_id), at=at)
    return sum(_remove(row.pk, old) for row in doomed)


def _folders_in_use(project_id: int) -> set[str]:
    living = Instance.objects.filter(project=project_id).exclude(phase=Phase.TERMINATED)
    rows = living.values_list("inputs", "outputs_sha256", "checkpoint_sha256")
    return {sha256 for row in rows for sha256 in row if sha256}


@transaction.atomic
def _remove(pk: int, old: Q) -> bool:
    """Remove an artifact if it is still old. Its file goes while the row is locked: whoever wants it now waits."""
    row = Artifact.objects.select_for_update(skip_locked=True).filter(old, pk=pk).first()
    if row is None:
        return False
    row.delete()
    for path in (_path(row), _partial(row)):
        path.unlink(missing_ok=True)
    return True


def _path(row: Artifact) -> Path:
    return Path(settings.ARTIFACTS) / str(row.project_id) / row.sha256[:2] / row.sha256


def _partial(row: Artifact) -> Path:
    return Path(settings.ARTIFACTS) / str(row.project_id) / "arriving" / row.sha256
