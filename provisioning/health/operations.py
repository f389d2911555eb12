"""What nodes are asked to do once. An attempt is reserved before it is asked for; a result is kept for ever.

A result that nobody knows stays `unknown` until something is observed: the
node's own record of it, or another boot id after a restart. Nothing is asked
for twice under one id, and no second attempt is made while one is unknown.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import IntegrityError, transaction
from django.db.models import F

from provisioning.health import wipes
from provisioning.models import Gpu, Heartbeat, Node, Operation, Remediation

log = structlog.get_logger("provisioning.health")

LIMITS = {
    Operation.Kind.WIPE: timedelta(minutes=5),
    Operation.Kind.RESET_GPU: timedelta(minutes=5),
    Operation.Kind.REBOOT_NODE: timedelta(minutes=15),
    Operation.Kind.VERIFY: timedelta(minutes=10),
}
ENDS = {"succeeded", "failed", "unknown"}


@transaction.atomic
def reserve(*, remediation: Remediation, gpus: Sequence[Gpu | None], at: datetime) -> bool:
    """Use up one attempt and ask for its operation, on each GPU (None: the node). False where none is left.

    One update checks the limit and counts, so two workers cannot both take the
    last attempt; the operations are there exactly when the attempt is counted.
    """
    ready = Remediation.objects.filter(
        pk=remediation.pk,
        state=Remediation.State.DRAINING,
        attempts=remediation.attempts,
        attempts__lt=F("attempts_max"),
    )
    taken = ready.update(attempts=F("attempts") + 1, state=Remediation.State.ACTING, state_since=at)
    if not taken:
        return False
    remediation.refresh_from_db()
    kind = Operation.Kind(remediation.ladder[remediation.attempts - 1])
    for gpu in gpus if kind == Operation.Kind.RESET_GPU else [None]:
        order(kind=kind, node=remediation.node, gpu=gpu, remediation=remediation, at=at, attempt=remediation.attempts)
    return True


def order(
    *,
    kind: Operation.Kind,
    node: Node,
    gpu: Gpu | None,
    at: datetime,
    remediation: Remediation | None = None,
    attempt: int | None = None,
) -> Operation:
    """Ask a node for one operation; it is in the node's document from now on."""
    if attempt is None:
        earlier = Operation.objects.filter(remediation=remediation, kind=kind, gpu=gpu, node=node)
        attempt = earlier.count() + 1 if remediation else 1
    Node.objects.filter(pk=node.pk).update(desired_generation=F("desired_generation") + 1)
    boot_id = Heartbeat.objects.filter(node=node).values_list("boot_id", flat=True).first()
    made = Operation.objects.create(
        remediation=remediation,
        node=node,
        gpu=gpu,
        kind=kind,
        attempt=attempt,
        boot_id=boot_id or "",
        reserved_at=at,
        deadline_at=at + LIMITS[kind],
    )
    log.warning("operation", operation=made.public_id, kind=kind, node=node.public_id, gpu=gpu.uuid if gpu else None)
    return made


def document(node: Node) -> list[dict[str, Any]]:
    """Return what a node is asked to do, as the protocol spells it."""
    pending = Operation.objects.filter(node=node, outcome=Operation.Outcome.PENDING).select_related("gpu")
    return [
        {"id": one.public_id, "kind": one.kind, "gpu": one.gpu.uuid if one.gpu else "", "attempt": one.attempt}
        | ({"links": _links(one)} if one.kind == Operation.Kind.VERIFY else {})
        for one in pending.order_by("pk")
    ]


def _links(check: Operation) -> dict[str, list[int]]:
    """Return the NVLinks that the GPUs of a check were accepted with; one that told of none is left out."""
    gpus = [check.gpu] if check.gpu else check.node.gpus.filter(removed_at=None)
    return {gpu.uuid: gpu.nvlinks for gpu in gpus if gpu.nvlinks is not None}


def take(node: Node, at: datetime, body: Mapping[str, Any]) -> None:
    """Keep how an operation ended (`operation` in a node's journal). Only the first end counts, and what clears up one
    that was unknown."""
    result = body.get("result")
    if result not in ENDS:
        log.error("operation with a strange end", node=node.public_id, result=str(result)[:40])
        return
    open_ends = Operation.objects.filter(
        node=node,
        public_id=str(body.get("operation") or ""),
        outcome__in=[Operation.Outcome.PENDING, Operation.Outcome.UNKNOWN],
    )
    _end(open_ends.first(), Operation.Outcome(result), str(body.get("message") or ""), at)


def _end(operation: Operation | None, outcome: Operation.Outcome, message: str, at: datetime) -> None:
    if operation is None or operation.outcome == outcome:
        return
    # What left the document is asked for no more, so that the node may forget it.
    Node.objects.filter(pk=operation.node_id).update(desired_generation=F("desired_generation") + 1)
    same = Operation.objects.filter(pk=operation.pk, outcome=operation.outcome)
    same.update(outcome=outcome, message=message[:500], finished_at=at)
    log.warning("operation ended", operation=operation.public_id, kind=operation.kind, outcome=outcome, reason=message)


@transaction.atomic
def look(*, at: datetime, limit: int) -> int:
    """Settle what needs no word of the node: a restart that another boot id proves, and what took too long."""
    changed = 0
    open_ends = Operation.objects.filter(outcome__in=[Operation.Outcome.PENDING, Operation.Outcome.UNKNOWN])
    restarts = open_ends.filter(kind=Operation.Kind.REBOOT_NODE, node__reachability=Node.Reachability.ONLINE)
    restarts = restarts.exclude(node__heartbeat__boot_id=F("boot_id")).filter(
        node__heartbeat__last_seen__gt=F("reserved_at")
    )
    for operation in restarts.exclude(boot_id="").order_by("pk")[:limit]:
        _end(operation, Operation.Outcome.SUCCEEDED, "The node came back with another boot id.", at)
        changed += 1
    late = Operation.objects.filter(outcome=Operation.Outcome.PENDING, deadline_at__lt=at)
    for operation in late.order_by("pk")[:limit]:
        _end(operation, Operation.Outcome.UNKNOWN, "The node did not say in time how it ended.", at)
        changed += 1
    return changed


def order_wipes(*, at: datetime, limit: int) -> int:
    """Ask for a wipe of every GPU that nobody holds and nobody has shown to be clean."""
    asked = 0
    for gpu in list(wipes.unproven())[:limit]:
        if _tried_in_vain(gpu):
            continue
        try:
            with transaction.atomic():
                order(kind=Operation.Kind.WIPE, node=gpu.node, gpu=gpu, at=at)
        except IntegrityError:
            continue  # another worker has just asked
        asked += 1
    return asked


def _tried_in_vain(gpu: Gpu) -> bool:
    """Return whether the last wipe that we asked for ended without a record; it is not asked for again blindly."""
    last = Operation.objects.filter(gpu=gpu, kind=Operation.Kind.WIPE, remediation=None).order_by("-pk").first()
    if last is None or last.outcome in {Operation.Outcome.SUCCEEDED, Operation.Outcome.CANCELLED}:
        return False
    # A wipe may be repeated, and the one whose end nobody knows is; what failed is for a person.
    return last.outcome == Operation.Outcome.FAILED
