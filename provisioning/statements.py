"""What nodes sign: their keys, and what they state of assignments. docs/receipts.md has the form.

A statement counts if a key of the node that ran the assignment signed it and it contradicts nothing that the node
reported. One that does not count is kept with its trouble, so that nobody can say that it never came.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import structlog
from django.db import transaction

from provisioning.agent.signing import STATEMENT, digest, is_signed_by, key_id
from provisioning.errors import ProvisioningError
from provisioning.models import Assignment, CounterSample, Node, NodeKey, NodeStatement

log = structlog.get_logger("provisioning.statements")

BYTES_MAX = 64 * 1024
MOST_DEEP = 6
TEXTS = ("image", "command_sha256", "state", "message")
TEXTS_OR_NONE = ("image_digest", "inputs", "outputs", "running_at", "ended_at")
FIELDS = {
    "kind", "node", "assignment", "fence", "instance", "replica", "gpus", "exit_code", *TEXTS, *TEXTS_OR_NONE,
}  # fmt: skip
# What agents of before this member existed do not state.
MAYBE = {"counters"}


class AlreadyRevoked(ProvisioningError):
    """A key is revoked once; why and when stay as they are."""


def learn_key(*, node: Node, public: str, at: datetime) -> None:
    """Note the public key that a node told; nothing where it told none. One that another node has stays that node's."""
    if not public:
        return
    key, is_new = NodeKey.objects.get_or_create(
        public_id=key_id(public), defaults={"node": node, "public_key": public, "told_at": at}
    )
    if is_new:
        log.info("signing key", node=node.public_id, key=key.public_id)
    elif key.node_id != node.pk:
        log.error("a node told the signing key of another", node=node.public_id, key=key.public_id)


@transaction.atomic
def revoke_key(*, key: NodeKey, because: str, at: datetime) -> None:
    """From now on nothing that is signed with this key counts. Raises AlreadyRevoked."""
    if not NodeKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=at, revoked_because=because):
        raise AlreadyRevoked(f"{key.public_id} is revoked already.")
    key.revoked_at, key.revoked_because = at, because
    log.info("signing key revoked", key=key.public_id, because=because)


def take(node: Node, at: datetime, document: Mapping[str, Any]) -> None:
    """Keep what a node states of an assignment, once; the same words again change nothing.

    Other words of the same assignment mean that the node contradicts itself: then neither counts.
    """
    said = str(_member(document, "body", "assignment"))
    row = Assignment.objects.select_related("instance").filter(public_id=said[:32], node=node).first()
    if row is None or not _is_plain(document):
        log.error("statement of nobody", node=node.public_id, assignment=said[:32])
        return
    key, trouble = _judged(node, row, document)
    kept, is_new = NodeStatement.objects.get_or_create(
        assignment=row,
        defaults={
            "key": key,
            "digest": digest(document),
            "document": document,
            "trouble": trouble,
            "taken_at": at,
        },
    )
    if not is_new and kept.digest != digest(document):
        trouble = "the node signed two different statements of it"
        NodeStatement.objects.filter(pk=kept.pk, trouble="").update(trouble=trouble)
    if trouble:
        log.error("statement does not count", node=node.public_id, assignment=row.public_id, trouble=trouble)


def of_assignments(assignments: Iterable[int]) -> dict[int, NodeStatement]:
    """Return what was stated of these assignments, by their key. One query."""
    rows = NodeStatement.objects.filter(assignment__in=list(assignments)).select_related("key")
    return {row.assignment_id: row for row in rows}


def revoked_keys() -> list[NodeKey]:
    """Return the keys of nodes that count no more, the oldest first."""
    return list(NodeKey.objects.exclude(revoked_at=None).select_related("node").order_by("pk"))


def _judged(node: Node, row: Assignment, document: Mapping[str, Any]) -> tuple[NodeKey | None, str]:
    """Return the key that signed it, if any, and why it does not count, if so."""
    keys = NodeKey.objects.filter(node=node, revoked_at=None)
    key = next((one for one in keys if is_signed_by(document, one.public_key)), None)
    if key is None:
        return None, "no good key of the node signed it"
    return key, _contradiction(node, row, document["body"])


def _contradiction(node: Node, row: Assignment, body: Mapping[str, Any]) -> str:
    if set(body) - MAYBE != FIELDS or body["kind"] != STATEMENT:
        return "it is not of the form of a statement"
    known = {
        "node": node.public_id,
        "fence": row.fence,
        "instance": row.instance.public_id,
        "replica": row.replica,
        "gpus": row.gpu_uuids,
        "image": row.instance.image,
        "command_sha256": digest(row.instance.command),
        "inputs": row.instance.inputs or None,
    }
    if row.exit_code is not None:
        known["exit_code"] = row.exit_code
    if row.instance.outputs_sha256 and row.replica == 0 and body["outputs"] is not None:
        known["outputs"] = row.instance.outputs_sha256  # As the store itself worked it out.
    different = [name for name, value in known.items() if body[name] != value]
    if body.get("counters") is not None and not _were_told(row, body["counters"]):
        different.append("counters")
    if different:
        return f"it differs from what is known of: {', '.join(different)}"
    return "" if _has_its_kinds(body) else "a member is of the wrong kind"


def _were_told(row: Assignment, said: Any) -> bool:
    """Return whether each first and last reading is one that the node told when it read it."""
    if not isinstance(said, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in said.values()):
        return False
    told = set(CounterSample.objects.filter(assignment=row).values_list("name", "value"))
    return all(type(value) is int and (name, value) in told for name, pair in said.items() for value in pair)


def _has_its_kinds(body: Mapping[str, Any]) -> bool:
    texts = all(isinstance(body[name], str) for name in TEXTS)
    return texts and all(body[name] is None or isinstance(body[name], str) for name in TEXTS_OR_NONE)


def _member(document: Any, *names: str) -> Any:
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def _is_plain(document: Mapping[str, Any]) -> bool:
    """Return whether a database can keep it as it is: no fractions, which might change their form, and no NUL."""
    try:
        text = json.dumps(document, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return len(text) <= BYTES_MAX and "\\u0000" not in text and _has_plain_values(document, MOST_DEEP)


def _has_plain_values(value: Any, deep: int) -> bool:
    if isinstance(value, Mapping):
        return deep > 0 and all(_has_plain_values(one, deep - 1) for one in value.values())
    if isinstance(value, list):
        return deep > 0 and all(_has_plain_values(one, deep - 1) for one in value)
    return value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**53)
