"""The only way back into placement: every GPU wiped and checked by its node, and nothing known against it here."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from provisioning.health import operations, parts
from provisioning.health.rules import Severity
from provisioning.models import Gpu, HealthEvent, Node, Operation, Remediation

Kind = Operation.Kind
Outcome = Operation.Outcome


@dataclass(frozen=True)
class Passage:
    """What the gate says in the end."""

    is_open: bool
    why: str = ""
    is_unknown: bool = False


def begin(remediation: Remediation, *, at: datetime) -> None:
    """Have every GPU of it wiped: what happened to its memory during the fault is not known."""
    gpus = parts.of(remediation)
    parts.show(gpus=gpus, state=Gpu.State.WIPING)
    wipes = Operation.objects.filter(gpu__in=gpus, kind=Kind.WIPE, outcome=Outcome.PENDING)
    wipes.update(outcome=Outcome.CANCELLED, finished_at=at)
    for gpu in gpus:
        operations.order(kind=Kind.WIPE, node=remediation.node, gpu=gpu, remediation=remediation, at=at)


def look(remediation: Remediation, *, at: datetime) -> Passage | None:
    """Return what the gate says, or None while the node is still at work."""
    node = remediation.node
    if node.reachability != Node.Reachability.ONLINE:
        return None
    for kind in (Kind.WIPE, Kind.VERIFY):
        asked = _asked(remediation, kind)
        if kind == Kind.VERIFY and not asked.exists():
            parts.show(gpus=parts.of(remediation), state=Gpu.State.VERIFYING)
            operations.order(kind=Kind.VERIFY, node=node, gpu=remediation.gpu, remediation=remediation, at=at)
            return None
        outcomes = set(asked.values_list("outcome", flat=True))
        if Outcome.PENDING in outcomes:
            return None
        if Outcome.UNKNOWN in outcomes:
            return Passage(is_open=False, is_unknown=True, why="Nobody knows how the check ended.")
        if bad := asked.exclude(outcome=Outcome.SUCCEEDED).first():
            return Passage(is_open=False, why=f"{bad.get_kind_display()}: {bad.message}"[:200])
    why = _against(remediation)
    return Passage(is_open=not why, why=why)


def _asked(remediation: Remediation, kind: Operation.Kind) -> QuerySet[Operation]:
    return remediation.operations.filter(kind=kind, reserved_at__gte=remediation.state_since)


def _against(remediation: Remediation) -> str:
    """Return what we ourselves know against it: the inventory, and what was told since it came to the gate."""
    gpus = parts.of(remediation)
    if ill := [str(gpu.index) for gpu in gpus if not gpu.healthy]:
        return f"Not healthy: GPU {', '.join(ill)}."
    if remediation.gpu is None and len(gpus) != remediation.node.gpu_count:
        return f"It has {len(gpus)} GPUs of {remediation.node.gpu_count}."
    news = HealthEvent.objects.filter(node=remediation.node, at__gt=remediation.state_since)
    news = news.filter(severity__gte=Severity.DEGRADE)
    if remediation.gpu is not None:
        news = news.filter(gpu=remediation.gpu)
    latest = news.first()
    return f"Another fault at the gate: {latest.code}." if latest else ""
