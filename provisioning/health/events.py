"""Health events: kept as they come, decided on apart, each with the rule and the table that decided."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.utils import timezone

from provisioning.health import faults, remedies
from provisioning.health.classification import Seen, Verdict, classify
from provisioning.health.rules import Action, current
from provisioning.models import Gpu, HealthEvent, Node, NodeInventory

log = structlog.get_logger("provisioning.health")

HISTORY = timedelta(days=7)
HISTORY_MAX = 500
CODE = re.compile(r"[a-z_]{1,30}(:[a-z0-9_]{1,9})?")
SOURCES = {"nvml", "kmsg", "agent"}


def take(node: Node, at: datetime, body: Mapping[str, Any]) -> None:
    """Keep what a node tells (`health` in its journal). What it means is decided in a transaction of its own."""
    code, source = str(body.get("code")), str(body.get("source"))
    if not CODE.fullmatch(code) or source not in SOURCES:
        log.error("health event of no known form", node=node.public_id, code=code[:40], source=source[:10])
        return
    uuid = str(body.get("gpu") or "")
    gpu = Gpu.objects.filter(node=node, uuid=uuid).first() if uuid else None
    detail = str(body.get("detail") or "").replace("\x00", "")
    if uuid and gpu is None:
        detail = f"unknown GPU {uuid[:64]}; {detail}"
    received_at = timezone.now()
    HealthEvent.objects.create(
        node=node, gpu=gpu, at=min(at, received_at), received_at=received_at, source=source, code=code,
        detail=detail[:500],
    )  # fmt: skip
    nudge()


def note(*, node_id: int, code: str, detail: str, at: datetime) -> None:
    """Keep what the control plane itself saw of a node."""
    HealthEvent.objects.create(
        node_id=node_id, at=at, received_at=timezone.now(), source="control", code=code, detail=detail[:500]
    )
    nudge()


def nudge() -> None:
    """Have events decided once this transaction is committed; if the message is lost, the sweep finds them."""
    from provisioning.tasks import decide_health_events  # noqa: PLC0415  tasks import this room

    transaction.on_commit(lambda: decide_health_events.apply_async(retry=False), robust=True)


def decide_all(*, at: datetime, limit: int) -> int:
    """Decide on the events that nobody has decided on yet, the oldest first. Each in a transaction of its own."""
    waiting = HealthEvent.objects.filter(decided_at=None).order_by("pk").values_list("pk", flat=True)[:limit]
    return sum(_decided(event_id, at) for event_id in list(waiting))


def _decided(event_id: int, at: datetime) -> bool:
    """Decide on one event; one that cannot be decided on must not hold up the others."""
    try:
        return _decide(event_id, at)
    except Exception:
        log.exception("health event not decided", event=event_id)
        return False


@transaction.atomic
def _decide(event_id: int, at: datetime) -> bool:
    rows = HealthEvent.objects.select_for_update(skip_locked=True, of=("self",)).select_related("node", "gpu")
    event = rows.filter(pk=event_id, decided_at=None).first()
    if event is None:
        return False
    table = current()
    verdict = classify(_seen(event), _history(event), table)
    driver = NodeInventory.objects.filter(node=event.node).values_list("driver", flat=True).first()
    event.decided_at = at
    event.action, event.severity, event.scope = verdict.action, verdict.severity, verdict.scope
    event.rule, event.table_version = verdict.rule.id, verdict.table_version
    event.save()
    log.warning(
        "health event decided",
        health_event=event.public_id,
        node=event.node.public_id,
        gpu=event.gpu.uuid if event.gpu else None,
        code=event.code,
        rule=verdict.rule.id,
        table=verdict.table_version,
        action=verdict.action,
        **({} if table.covers(driver) else {"driver_outside_table": driver}),
    )
    _follow(event, verdict, at)
    return True


def _follow(event: HealthEvent, verdict: Verdict, at: datetime) -> None:
    if verdict.action == Action.RECORD:
        return
    if verdict.action == Action.APPLICATION:
        for instance in faults.using(gpu=event.gpu) if event.gpu else []:
            message = f"{verdict.rule.text} ({event.code}). The GPU itself is well; look at the program's own output."
            faults.note(instance=instance, message=message, at=event.at)
        return
    remediation = remedies.demand(event=event, verdict=verdict, at=at)
    HealthEvent.objects.filter(pk=event.pk).update(remediation=remediation)


def _history(event: HealthEvent) -> list[Seen]:
    near = HealthEvent.objects.filter(node=event.node, at__gt=event.at - HISTORY).exclude(pk=event.pk)
    return [_seen(other) for other in near.select_related("gpu").order_by("-at")[:HISTORY_MAX]]


def _seen(event: HealthEvent) -> Seen:
    return Seen(code=event.code, gpu=event.gpu.uuid if event.gpu else "", at=event.at, detail=event.detail)
