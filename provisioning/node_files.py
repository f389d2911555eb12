"""Files between nodes and the store: what a node may fetch and send for an assignment, and whether what it says holds.

A node is not believed: what it sends is hashed here, and what it says of outputs
and checkpoints counts only once every byte of them is in the store. One that
sends something else than it said fails the run, which is its own fault and not
its customer's, and a health event takes it out of placement.
"""

import hmac
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
import structlog
from django.db import transaction
from django.db.models import Q

from provisioning import artifacts, engine, nodes, texts
from provisioning.agent.manifest import BadManifest, Entry
from provisioning.errors import BadFolder, NoArtifact, NodeUnknown, NotAssigned, WrongDigest, WrongOffset
from provisioning.health import events
from provisioning.models import Artifact, Assignment, Instance, Node
from provisioning.protocol import Said

log = structlog.get_logger("provisioning.node_files")

FALSE_DIGEST = "false_digest"
# Then nothing is left to be told of; what a node says late must not keep it from being gone.
OVER = {"failed", "wiping", "gone"}


def holder(*, node: str, key: str, assignment: str, fence: int) -> Assignment:
    """Return the assignment for which a node may fetch and send files now. Raises NodeUnknown, NotAssigned."""
    asked_by = Node.objects.filter(public_id=node).first()
    if asked_by is None or not asked_by.key_hash or not hmac.compare_digest(nodes.digest(key), asked_by.key_hash):
        raise NodeUnknown("This key opens nothing here.")
    live = Assignment.objects.filter(~Q(observed=Assignment.Observed.GONE), node=asked_by, public_id=assignment)
    found = live.filter(fence=fence).select_related("instance").first()
    if found is None:
        raise NotAssigned("This node has no such assignment with this fence.")
    found.node = asked_by
    return found


def readable(row: Assignment, sha256: str) -> int:
    """Return the size of an artifact that an assignment begins with. Raises NoArtifact for every other."""
    instance = row.instance
    for folder in filter(None, (instance.inputs, instance.checkpoint_sha256)):
        with suppress(BadManifest):
            if sha256 == folder or any(entry.sha256 == sha256 for entry in _files(instance, folder)):
                return artifacts.size_of(project_id=instance.project_id, sha256=sha256)
    raise NoArtifact(sha256)


def _files(instance: Instance, folder: str) -> Sequence[Entry]:
    return artifacts.files_of(instance.project_id, folder)


def missing(row: Assignment, sha256s: Collection[str]) -> list[str]:
    """Return which of these a node must still send. Raises NotAssigned where nothing is wanted of it."""
    _check_wanted(row)
    return artifacts.missing(project_id=row.instance.project_id, sha256s=sha256s)


def find(row: Assignment, sha256: str) -> Artifact | None:
    """Return what is here of an artifact that a node sends. Raises NotAssigned."""
    _check_wanted(row)
    return artifacts.find(project_id=row.instance.project_id, sha256=sha256)


def receive(
    row: Assignment, *, sha256: str, size_bytes: int, offset: int, pieces: Iterable[bytes], at: datetime
) -> Artifact:
    """Take bytes of an artifact from a node, as `artifacts.receive` does. Raises NotAssigned, too.

    It is accused of wrong ones only where all of them came from it, at once:
    what lay here before may be anybody's of its project, and is sent anew.
    """
    _check_wanted(row)
    try:
        return artifacts.receive(
            project_id=row.instance.project_id, sha256=sha256, size_bytes=size_bytes, offset=offset, pieces=pieces,
            at=at,
        )  # fmt: skip
    except WrongDigest as error:
        if offset > 0:
            raise WrongOffset(0) from error
        _accuse(row, f"said {sha256}, sent {error.found}", at=at)
        raise


def _check_wanted(row: Assignment) -> None:
    if row.replica or not (row.instance.outputs or row.instance.checkpoint):
        raise NotAssigned("Nothing is to be kept of this assignment.")


@transaction.atomic
def _accuse(row: Assignment, detail: str, *, at: datetime) -> None:
    """Fail an assignment whose node sent something else than it said."""
    engine.wake(row.instance_id)
    Assignment.objects.filter(pk=row.pk).exclude(observed__in=[Assignment.Observed.GONE]).update(
        observed=Assignment.Observed.FAILED, message=texts.LIED(), exited_at=at
    )
    _tell(row, detail, at=at)


def _tell(row: Assignment, detail: str, *, at: datetime) -> None:
    log.error("false digest", node=row.node_id, assignment=row.public_id, detail=detail)
    events.note(node_id=row.node_id, code=FALSE_DIGEST, detail=f"{row.public_id}: {detail}", at=at)


# What a report says of folders.


def is_news(row: Assignment, word: Said) -> bool:
    """Return whether a node names a folder that we do not know yet."""
    if row.replica or word.state in OVER:
        return False
    said = {word.outputs: row.instance.outputs_sha256, word.checkpoint: row.instance.checkpoint_sha256}
    return any(sha256 and sha256 != known for sha256, known in said.items())


def checked(row: Assignment, word: Said, *, at: datetime) -> Said:
    """Return what is believed of a node's word: that it failed, where a folder that it names is not here whole."""
    if row.replica or word.state in OVER:
        return word
    instance = row.instance
    for known, sha256 in ((instance.outputs_sha256, word.outputs), (instance.checkpoint_sha256, word.checkpoint)):
        if not sha256 or sha256 == known:
            continue
        try:
            artifacts.check_folder(project_id=instance.project_id, sha256=sha256)
        except BadFolder as error:
            _tell(row, f"said {sha256}; {error}", at=at)
            return _failed(word, texts.LIED())
    if word.state == "exited" and word.exit_code == 0 and instance.outputs and not word.outputs:
        return _failed(word, texts.NO_OUTPUTS())
    return word


def _failed(word: Said, why: str) -> Said:
    return msgspec.structs.replace(word, state="failed", exit_code=None, message=why, outputs=None, checkpoint=None)


def note(row: Assignment, word: Said, *, at: datetime) -> None:
    """Write down the folders of an instance that a node named and that were found whole."""
    said = {"outputs_sha256": word.outputs, "checkpoint_sha256": word.checkpoint}
    instance = row.instance
    fresh = {name: sha256 for name, sha256 in said.items() if sha256 and sha256 != getattr(instance, name)}
    if row.replica or word.state in OVER or not fresh:
        return
    Instance.objects.filter(pk=instance.pk, run=row.fence).update(**fresh)
    for name, sha256 in fresh.items():
        setattr(instance, name, sha256)
    artifacts.touch(project_id=instance.project_id, folders=list(fresh.values()), at=at)
