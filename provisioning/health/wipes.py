"""How clean GPUs are between tenants. Only a good record makes one clean; without one it is never placed again."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Exists, OuterRef, Q

from provisioning.models import (
    CHARGED_PHASES,
    Assignment,
    Gpu,
    GpuHold,
    InstanceEvent,
    Node,
    Operation,
    Remediation,
    WipeRecord,
)

log = structlog.get_logger("provisioning.health")

# What an agent says that has no tool to scrub memory with.
NONE_AVAILABLE = "none available"
# What an agent says of an assignment that ended before anything of it was on the node.
NEVER_USED = "never used"
LIVE_HOLD = GpuHold.objects.filter(gpu=OuterRef("pk"), released_at=None)
BETWEEN_TENANTS = (Gpu.State.DIRTY, Gpu.State.WIPING, Gpu.State.VERIFYING)


def is_good(record: WipeRecord) -> bool:
    """Say whether a record proves that a GPU is clean. An operator may ask that its memory was really scrubbed."""
    is_enough = record.method != NONE_AVAILABLE or not settings.GPU_WIPE_NEEDS_SCRUB
    return record.result == WipeRecord.Result.OK and is_enough


def take(node: Node, at: datetime, body: Mapping[str, Any]) -> None:
    """Keep the record of a wipe (`wipe` in a node's journal); a GPU that nobody holds is clean or quarantined by it."""
    gpu = Gpu.objects.filter(node=node, uuid=str(body.get("gpu"))).first()
    if gpu is None:
        log.error("wipe of a GPU that is not there", node=node.public_id, gpu=str(body.get("gpu"))[:64])
        return
    assignment = Assignment.objects.filter(node=node, public_id=str(body.get("assignment") or "")).first()
    if assignment is not None and assignment.fence != body.get("fence"):
        log.error("wipe under another fence", assignment=assignment.public_id, fence=str(body.get("fence"))[:20])
        return
    if body.get("method") == NEVER_USED and (assignment is None or _was_used(assignment, gpu)):
        log.error("a GPU that was used is said to be unused", node=node.public_id, gpu=gpu.uuid)
        return
    record = WipeRecord.objects.create(
        gpu=gpu,
        assignment=assignment,
        operation=Operation.objects.filter(node=node, public_id=str(body.get("operation") or "")).first(),
        fence=assignment.fence if assignment else 0,
        at=at,
        method=str(body.get("method", ""))[:80],
        result=WipeRecord.Result.OK if body.get("result") == "ok" else WipeRecord.Result.FAILED,
        covered_bytes=_whole(body.get("covered_bytes")),
        duration_ms=min(_whole(body.get("duration_ms")) or 0, 2**31 - 1),
        message=str(body.get("message") or "")[:500],
    )
    log.info("wiped", gpu=gpu.uuid, method=record.method, result=record.result, record=record.public_id)
    _settle(record)


def _was_used(assignment: Assignment, gpu: Gpu) -> bool:
    """Return whether we know that a command may have run there: an agent that lost its memory knows nothing of it."""
    moves = InstanceEvent.objects.filter(instance=assignment.instance_id, run=assignment.fence)
    ran = moves.filter(new_phase__in=CHARGED_PHASES).exists()
    return ran or WipeRecord.objects.filter(assignment=assignment, gpu=gpu).exclude(method=NEVER_USED).exists()


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**62 else None


def _settle(record: WipeRecord) -> None:
    """Let a record that comes after the release decide; one of an earlier tenant decides nothing."""
    from provisioning import placement  # noqa: PLC0415  placement asks this file what a release leaves behind

    placement.lock([record.gpu.node_id])
    free = Gpu.objects.filter(~Exists(LIVE_HOLD), pk=record.gpu_id, state__in=BETWEEN_TENANTS)
    latest = GpuHold.objects.filter(gpu=record.gpu_id).order_by("-pk").values_list("assignment_id", flat=True).first()
    is_current = record.operation_id is not None or (
        record.assignment_id is not None and latest == record.assignment_id
    )
    if is_current and not _is_in_repair(record.gpu):
        free.update(**_left_behind(record))
        placement.recount([record.gpu.node_id])


def _is_in_repair(gpu: Gpu) -> bool:
    return Remediation.objects.filter(Q(gpu=gpu) | Q(gpu=None, node=gpu.node_id), closed_at=None).exists()


def _left_behind(record: WipeRecord | None) -> dict[str, str]:
    if record is None:
        return {"state": Gpu.State.DIRTY, "state_reason": "No record of a wipe has come yet."}
    if is_good(record):
        return {"state": Gpu.State.CLEAN, "state_reason": ""}
    why = record.message or f"method: {record.method}"
    return {"state": Gpu.State.QUARANTINED, "state_reason": f"Its wipe failed: {why}"[:200]}


def settle_released(holds: Iterable[GpuHold]) -> None:
    """Set what each GPU is left as by the hold that ends now. The caller holds the locks of the nodes.

    What stands in quarantine stays there. Nodes that another engine runs clean
    up by that engine's own means, which is not ours to prove.
    """
    ours = [hold for hold in holds if hold.assignment.node.driver == "agent"]
    records: dict[tuple[int, int | None], WipeRecord] = {
        (record.gpu_id, record.assignment_id): record
        for record in WipeRecord.objects.filter(assignment__in={hold.assignment_id for hold in ours}).order_by("pk")
    }
    changes: dict[tuple[str, str], list[int]] = {}
    for hold in ours:
        left = _left_behind(records.get((hold.gpu_id, hold.assignment_id)))
        changes.setdefault((left["state"], left["state_reason"]), []).append(hold.gpu_id)
    for (state, reason), gpu_ids in changes.items():
        kept = Gpu.objects.filter(pk__in=gpu_ids).exclude(state=Gpu.State.QUARANTINED)
        kept.exclude(state=state).update(state=state, state_reason=reason)


def show_wiping(assignment: Assignment) -> None:
    """Show that a node has begun to wipe the GPUs of an assignment."""
    gpus = Gpu.objects.filter(node=assignment.node_id, uuid__in=assignment.gpu_uuids)
    gpus.exclude(state=Gpu.State.QUARANTINED).update(state=Gpu.State.WIPING, state_reason="")


def unproven() -> Iterable[Gpu]:
    """Return the GPUs of nodes that answer which nobody holds, nobody repairs and nobody has shown to be clean."""
    pending = Operation.objects.filter(gpu=OuterRef("pk"), kind=Operation.Kind.WIPE, outcome="pending")
    repairs = Remediation.objects.filter(Q(gpu=OuterRef("pk")) | Q(gpu=None, node=OuterRef("node")), closed_at=None)
    found = Gpu.objects.filter(
        ~Exists(LIVE_HOLD),
        ~Exists(pending),
        ~Exists(repairs),
        state__in=BETWEEN_TENANTS,
        removed_at=None,
        node__reachability=Node.Reachability.ONLINE,
        node__driver="agent",
    )
    return found.select_related("node").order_by("pk")
