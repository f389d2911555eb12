"""What capacity managers see and do about health. Everything they do leaves an audit entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import NotFound
from provisioning.health import breaker, remedies
from provisioning.health.rules import Table, current
from provisioning.models import Breaker, Gpu, HealthEvent, NodeInventory, Operation, Remediation, WipeRecord

SHOWN_MAX = 50
CLOSED_WITHIN = timedelta(hours=24)


@dataclass(frozen=True)
class Overview:
    """Everything of the page of health."""

    breakers: Sequence[Breaker]
    repairs: Sequence[Remediation]
    quarantined: Sequence[Gpu]
    operations: Sequence[Operation]
    events: Sequence[HealthEvent]
    wipes: Sequence[WipeRecord]
    table: Table
    uncovered: Sequence[str]


def overview(*, at: datetime) -> Overview:
    """Return what is open, and the latest of what happened. Seven queries."""
    repairs = Remediation.objects.exclude(closed_at__lt=at - CLOSED_WITHIN).select_related("node", "gpu")
    return Overview(
        breakers=list(open_breakers()),
        repairs=list(repairs.order_by("-pk")[:SHOWN_MAX]),
        quarantined=list(quarantined()[:SHOWN_MAX]),
        operations=list(Operation.objects.select_related("node", "gpu").order_by("-pk")[:SHOWN_MAX]),
        events=list(HealthEvent.objects.select_related("node", "gpu").order_by("-pk")[:SHOWN_MAX]),
        wipes=list(WipeRecord.objects.select_related("gpu__node").order_by("-pk")[:SHOWN_MAX]),
        table=current(),
        uncovered=uncovered_drivers(),
    )


def uncovered_drivers() -> list[str]:
    """Return the versions of drivers, of all nodes, that the table of rules was not made for."""
    drivers = NodeInventory.objects.order_by("driver").values_list("driver", flat=True).distinct()
    return [driver for driver in drivers if not current().covers(driver)]


def open_breakers() -> QuerySet[Breaker]:
    """Return the breakers that hold repairs back."""
    return Breaker.objects.filter(opened_at__isnull=False).select_related("offer").order_by("opened_at")


def quarantined() -> QuerySet[Gpu]:
    """Return the GPUs that are out of placement."""
    found = Gpu.objects.filter(state=Gpu.State.QUARANTINED).select_related("node")
    return found.order_by("node__name", "index")


# These end only when a person does something.
FOR_A_PERSON = (Remediation.State.STUCK, Remediation.State.CONDEMNED)


def open_repairs() -> QuerySet[Remediation]:
    """Return the repairs under way, those that need a person first."""
    found = Remediation.objects.filter(closed_at=None).select_related("node", "gpu")
    return found.order_by(ExpressionWrapper(Q(state__in=FOR_A_PERSON), BooleanField()).desc(), "state_since")


def gpu_for(gpu_id: str) -> Gpu:
    """Return a GPU, or raise NotFound."""
    found = Gpu.objects.select_related("node").filter(public_id=gpu_id).first()
    if found is None:
        raise NotFound
    return found


def repair_for(repair_id: str) -> Remediation:
    """Return a repair, or raise NotFound."""
    found = Remediation.objects.select_related("node", "gpu").filter(public_id=repair_id).first()
    if found is None:
        raise NotFound
    return found


def breaker_for(breaker_id: str) -> Breaker:
    """Return a breaker, or raise NotFound."""
    found = Breaker.objects.select_related("offer").filter(public_id=breaker_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def quarantine(*, actor: Actor, gpu: Gpu, reason: str, at: datetime) -> None:
    """Place nothing on a GPU any more until a manager leads it to the gate."""
    remedies.take_out(gpu=gpu, reason=reason, at=at)
    _record(actor, "gpu.quarantine", gpu.public_id, reason)


@transaction.atomic
def release_gpu(*, actor: Actor, gpu: Gpu, reason: str, at: datetime) -> None:
    """Lead a quarantined GPU to the gate."""
    remedies.release_gpu(gpu=gpu, at=at)
    _record(actor, "gpu.release", gpu.public_id, reason)


@transaction.atomic
def release(*, actor: Actor, repair: Remediation, reason: str, at: datetime) -> None:
    """Lead what is being repaired to the gate."""
    remedies.release(remediation=repair, at=at)
    _record(actor, "repair.release", repair.public_id, reason)


@transaction.atomic
def replaced(*, actor: Actor, repair: Remediation, reason: str, at: datetime) -> None:
    """Note that the broken part was replaced."""
    remedies.replaced(remediation=repair, at=at)
    _record(actor, "repair.replaced", repair.public_id, reason)


@transaction.atomic
def close_breaker(*, actor: Actor, opened: Breaker, reason: str, at: datetime) -> None:
    """Let repairs go on."""
    breaker.close(breaker=opened, at=at)
    _record(actor, "breaker.close", opened.public_id, reason)


def _record(actor: Actor, verb: str, subject_id: str, reason: str) -> None:
    audit.record(actor=actor, organization=None, verb=verb, subject_id=subject_id, after={"reason": reason})
