"""What can be asked of an instance. Each verb is safe to repeat; the workflow does the work.

Lock order everywhere: workflow, instance, budget, quota, account, node, assignment, capacity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from billing import usage
from billing.models import PriceVersion
from provisioning import calendar, engine, placement, volumes
from provisioning.errors import IllegalMove, NeverFits, NoCapacity
from provisioning.models import AT_REST, Instance, Phase, Reason, Workflow
from provisioning.work import NOTHING, Work

# Meters lock their organization's accounts: in the same order whichever node or GPU breaks.
MONEY_ORDER = ("project__organization", "pk")


def lock(instance_ids: Iterable[int]) -> list[Instance]:
    """Lock instances and before them their workflows, and return them as they are now, in the order of their money.

    For whoever closes several meters in one transaction: an account may be
    locked only once all of these are.
    """
    chosen = sorted(set(instance_ids))
    list(Workflow.objects.select_for_update().filter(pk__in=chosen).order_by("pk"))
    list(Instance.objects.select_for_update(no_key=True).filter(pk__in=chosen).order_by("pk"))
    return list(Instance.objects.filter(pk__in=chosen).order_by(*MONEY_ORDER))


# Without a savepoint: on a refusal the caller rolls back everything anyway, and every launch waits here.
@transaction.atomic(savepoint=False)
def create(
    *,
    public_id: str,
    project_id: int,
    offer_id: int,
    price_version: PriceVersion,
    name: str,
    replicas: int,
    gpus_per_replica: int,
    command: Sequence[str],
    env: Mapping[str, str],
    image: str = "",
    ports: Sequence[int] = (),
    lease: str = Instance.Lease.STICKY,
    on_failure: str = Instance.OnFailure.STOP,
    wish: Mapping[str, Any] | None = None,
    attach: str = Instance.Attach.AUTO,
    reservation_id: int | None = None,
    at: datetime,
    uses: Sequence[volumes.Use] = (),
    market: str = Instance.Market.ON_DEMAND,
    claims: bool = True,
    spares: frozenset[int] | None = None,
    token_id: int | None = None,
    work: Work | None = None,
) -> Instance:
    """Make an instance, claim its GPUs and set its workflow going, or raise NoCapacity. `wish` is how to place it.

    Inside a reservation its GPUs are committed already: those that are lent or
    still being cleaned come back within the notice, so there it queues for
    them. Otherwise the caller holds quota and funds for it under `public_id`
    already, and rolls everything back on a refusal. A new order leaves to those who wait their GPUs and nodes; what
    waited for its turn says which nodes it `spares`.
    Without `claims` it only queues, and whoever lets it in wakes its workflow.
    """
    instance = Instance(
        public_id=public_id,
        project_id=project_id,
        offer_id=offer_id,
        price_version=price_version,
        name=name,
        market=Instance.Market.RESERVED if reservation_id else market,
        replicas=replicas,
        gpus_per_replica=gpus_per_replica,
        command=list(command),
        env=dict(env),
        image=image,
        ports=list(ports),
        lease=lease,
        on_failure=on_failure,
        placement=dict(wish or {}),
        attach=attach,
        reservation_id=reservation_id,
        quota_held=replicas * gpus_per_replica,
        ordered_with_id=token_id,
        created_at=at,
        phase_since=at,
        **_columns(work or NOTHING),
    )
    instance.queue(due_at=at if claims else None)
    instance.attached = volumes.attach_at_launch(instance=instance, uses=uses, at=at) if uses else ()
    if not claims:
        return instance
    home = volumes.home_of(use.volume for use in uses)
    _claim(instance, at=at, home=home, spares=spares)
    engine.nudge(instance.pk)
    return instance


def _claim(instance: Instance, *, at: datetime, home: int | None, spares: frozenset[int] | None) -> None:
    if instance.reservation_id is None:
        instance.claimed = placement.claim(instance=instance, at=at, home=home, spares=spares)
        calendar.open_ended(offer_id=instance.offer_id, gpus=instance.gpus, at=at, is_first=spares is not None)
        return
    try:
        instance.claimed = placement.claim(instance=instance, at=at, home=home, is_owed=True)
    except NeverFits:
        raise
    except NoCapacity:
        return  # It queues: lent GPUs come back within the notice.


def _columns(work: Work) -> dict[str, Any]:
    """Return what an instance's own columns say of its work."""
    return asdict(work) | {"outputs": list(work.outputs), "avoid_nodes": list(work.avoid_nodes)}  # As JSON has them.


@transaction.atomic
def start(
    *,
    instance: Instance,
    price_version: PriceVersion,
    at: datetime,
    reason: Reason = Reason.NONE,
    message: str = "",
    notice: Mapping[str, object] | None = None,
    restarts: int = 0,
    token_id: int | None = None,
    reservation_id: int | None = None,
) -> None:
    """Queue a stopped, failed or interrupted instance for a new run at this price. The caller holds quota for it.

    `restarts` counts the starts of ours since its customer's own, which have a `reason`.
    """
    if Phase(instance.phase) not in {Phase.STOPPED, Phase.FAILED, Phase.INTERRUPTED}:
        raise IllegalMove(f"{instance.name} is {instance.get_phase_display()} and cannot be started.")
    if instance.quota_held:
        raise IllegalMove(f"{instance.name} still gives back the GPUs of its last run; try again in a moment.")
    lock([instance.pk])
    # A copy that is being asked for this moment holds the volume's lock, and is seen once it is over.
    volumes.lock(volumes.of_instance(instance))
    if refusal := volumes.why_not_started(instance):
        raise IllegalMove(refusal)
    engine.wake(instance.pk, step="place")
    instance.move_to(
        Phase.QUEUED,
        at=at,
        reason=reason,
        message=message,
        notice=notice,
        desired=Instance.Desired.RUNNING,
        health=Instance.Health.UNKNOWN,
        restarts=restarts,
        price_version=price_version,
        reservation_id=reservation_id,
        market=_market_of(instance, reservation_id),
        quota_held=instance.gpus,
        ordered_with_id=token_id,
        run=instance.run + 1,
        generation=instance.generation + 1,
        exit_code=None,
        retryable=False,
        ready_at=None,
        admitted_at=None,
        outputs_sha256="",
    )


def _market_of(instance: Instance, reservation_id: int | None) -> str:
    """Return on which market a new run is: a reservation's own, else on demand if the last one's has ended."""
    if reservation_id is not None:
        return Instance.Market.RESERVED
    return Instance.Market.ON_DEMAND if instance.market == Instance.Market.RESERVED else instance.market


def stop(*, instance: Instance, at: datetime, reason: Reason = Reason.USER, message: str = "") -> None:
    """Ask for the GPUs to be given back; the instance can be started again. Charges end now."""
    if Phase(instance.phase) in {Phase.STOPPING, Phase.STOPPED}:
        return
    _take_down(instance, Phase.STOPPING, desired=Instance.Desired.STOPPED, at=at, reason=reason, message=message)


def terminate(*, instance: Instance, at: datetime, reason: Reason = Reason.USER, message: str = "") -> None:
    """Ask for the instance to end for good. Charges end now."""
    if Phase(instance.phase) in {Phase.TERMINATING, Phase.TERMINATED}:
        return
    _take_down(instance, Phase.TERMINATING, desired=Instance.Desired.TERMINATED, at=at, reason=reason, message=message)


def rename(*, instance: Instance, name: str) -> None:
    """Give it another name; usage that is already measured keeps the old one."""
    Instance.objects.filter(pk=instance.pk).update(name=name)
    instance.name = name


@transaction.atomic
def _take_down(
    instance: Instance, phase: Phase, *, desired: Instance.Desired, at: datetime, reason: Reason, message: str
) -> None:
    engine.wake(instance.pk, step="tear_down")
    instance.move_to(
        phase,
        at=max(at, instance.phase_since),
        reason=reason,
        message=message,
        desired=desired,
        generation=instance.generation + 1,
    )
    usage.stop(resource_id=instance.public_id, at=instance.charged_until(instance.phase_since))


def actions(instance: Instance) -> dict[str, str]:
    """Return what may be asked now: each verb with a sentence why not, empty when it may."""
    phase = Phase(instance.phase)
    shown = {"phase": instance.get_phase_display()}
    if instance.is_off_limits:
        return dict.fromkeys(("start", "stop", "terminate", "rename"), _("It verifies a result, and ends by itself."))
    start = stop = end = ""
    if phase == Phase.INTERRUPTED and instance.reason != Reason.RESERVATION_END:
        start = _("It queues again by itself, as soon as its GPUs are given back.")
    elif phase not in {Phase.STOPPED, Phase.FAILED, Phase.INTERRUPTED}:
        start = _("Only what is stopped or failed can be started; this is: %(phase)s.") % shown
    elif instance.quota_held:
        start = _("Its last run still gives its GPUs back; try again in a moment.")
    if phase in AT_REST | {Phase.STOPPING, Phase.DRAINING, Phase.TERMINATING}:
        stop = _("There is nothing to stop; this is: %(phase)s.") % shown
    if phase in {Phase.TERMINATING, Phase.TERMINATED}:
        end = _("It has ended for good; this is: %(phase)s.") % shown
    return {"start": start, "stop": stop, "terminate": end, "rename": end}
