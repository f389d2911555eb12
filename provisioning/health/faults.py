"""What a fault of our machines means for those who rent them: no charge from the fault on, and the reason in words."""

from datetime import UTC, datetime, timedelta

from django.db import transaction

from billing import usage
from provisioning import engine, instances
from provisioning.models import (
    CHARGED_PHASES,
    STARTING,
    Assignment,
    Gpu,
    Instance,
    InstanceEvent,
    Node,
    Phase,
    Reason,
)

LIVING = {*CHARGED_PHASES, *STARTING}
DEGRADED_FOR = timedelta(minutes=10)


def using(*, gpu: Gpu | None = None, node: Node | None = None) -> list[Instance]:
    """Return the instances that have something on this GPU, or on this node."""
    live = Assignment.objects.exclude(observed=Assignment.Observed.GONE)
    live = live.filter(holds__gpu=gpu, holds__released_at=None) if gpu is not None else live.filter(node=node)
    found = Instance.objects.filter(pk__in=live.values("instance"), phase__in=LIVING)
    return list(found.order_by(*instances.MONEY_ORDER))


@transaction.atomic
def fail(*, instance: Instance, happened: str, fault_at: datetime, at: datetime) -> bool:
    """End a run whose hardware broke; False where it has ended anyway.

    The meter closes at the fault, which is never before the run began nor after
    now. The whole gang ends: it started together. The instance can be started
    again, and is by itself where its customer asked for that.
    """
    [instance] = instances.lock([instance.pk])
    if Phase(instance.phase) not in LIVING:
        return False
    ran = instance.health != Instance.Health.UNKNOWN
    ends_at = min(max(fault_at, instance.ready_at or fault_at), at)
    engine.wake(instance.pk, step="tear_down")
    instance.move_to(
        Phase.FAILED,
        at=max(ends_at, instance.phase_since),
        reason=Reason.GPU_FAULT,
        message=_message(instance, happened, ends_at if ran else None),
        retryable=True,
        health=Instance.Health.UNKNOWN,
    )
    usage.stop(resource_id=instance.public_id, at=instance.charged_until(ends_at) if ran else instance.ready_at or at)
    return True


def _message(instance: Instance, happened: str, ends_at: datetime | None) -> str:
    """Say what happened, what it costs and what comes next."""
    who = "" if instance.replicas == 1 else f" All {instance.replicas} replicas end together."
    cost = "It never ran and is not charged."
    if ends_at is not None:
        cost = f"It is not charged since {ends_at.astimezone(UTC):%H:%M:%S} UTC."
    following = "Start it again; it gets GPUs that are in order."
    if instance.on_failure == Instance.OnFailure.RESTART:
        following = "It starts again by itself, on GPUs that are in order."
    return f"{happened}{who} {cost} {following}"


def note(*, instance: Instance, message: str, at: datetime) -> None:
    """Tell the customer of something that does not end the instance."""
    InstanceEvent.objects.create(
        kind=InstanceEvent.Kind.HEALTH,
        instance=instance,
        run=instance.run,
        at=at,
        old_phase=instance.phase,
        new_phase=instance.phase,
        message=message,
    )
    healthy = Instance.objects.filter(pk=instance.pk, health=Instance.Health.HEALTHY)
    healthy.update(health=Instance.Health.DEGRADED)


def heal(*, at: datetime, limit: int) -> int:
    """Call those healthy again of whom nothing was noted for a while, and whose GPUs are not in repair."""
    recent = InstanceEvent.objects.filter(kind=InstanceEvent.Kind.HEALTH, at__gt=at - DEGRADED_FOR)
    in_repair = Assignment.objects.filter(holds__released_at=None, holds__gpu__state=Gpu.State.QUARANTINED)
    over = Instance.objects.filter(health=Instance.Health.DEGRADED, phase__in=CHARGED_PHASES)
    over = over.exclude(pk__in=recent.values("instance")).exclude(pk__in=in_repair.values("instance"))
    healed = 0
    for pk in list(over.order_by("pk").values_list("pk", flat=True)[:limit]):
        degraded = Instance.objects.filter(pk=pk, health=Instance.Health.DEGRADED)
        healed += degraded.update(health=Instance.Health.HEALTHY)
    return healed
