"""The first rung of the ladder: whoever may lose its GPUs soon is told so, with no promise when, or whether at all.

An advisory is an interruption in the state `advised`. Where it comes to a
notice, that has the same id (`interruptions.plan`); where the danger is over,
it is called off. It ends nothing and costs nothing, and nobody counts on it:
one whose instance has stopped meanwhile is called off by the next look.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet

from billing.public_ids import new_public_id
from provisioning import interruptions
from provisioning.models import OPEN_STATES, Instance, Interruption, Phase

State = Interruption.State
MESSAGE = "Its bid is near the price: the next auction may give its GPUs to others."


@transaction.atomic
def stand(*, offer_id: int, at_risk: Collection[int], min_notice_s: int, at: datetime) -> int:
    """Let exactly these instances of an offer stand advised, of those that run and were told nothing else.

    Returns for how many that changed; only their nodes are told. Six queries at most.
    """
    open_now = Interruption.objects.filter(instance__offer=offer_id, state=State.ADVISED)
    stays = open_now.filter(instance__in=at_risk, instance__phase=Phase.RUNNING, run=F("instance__run"))
    over = set(open_now.exclude(pk__in=stays.values("pk")).values_list("pk", "instance"))
    _call_off(Interruption.objects.filter(pk__in=[pk for pk, _ in over]), at=at)
    running = Instance.objects.filter(pk__in=at_risk, phase=Phase.RUNNING).order_by("pk")
    fresh = running.exclude(interruptions__state__in=[State.ADVISED, *OPEN_STATES])
    made = [
        Interruption(
            public_id=new_public_id("int"), instance_id=pk, run=run, reason=Interruption.Reason.OUTBID,
            state=State.ADVISED, min_notice_s=min_notice_s, since=at, advised_at=at, message=MESSAGE,
        )
        for pk, run in fresh.values_list("pk", "run")
    ]  # fmt: skip
    # Whoever was planned to be interrupted at this moment is told more than this.
    Interruption.objects.bulk_create(made, ignore_conflicts=True)
    changed = {instance for _, instance in over} | {one.instance_id for one in made}
    interruptions.tell_nodes(changed)
    return len(changed)


@transaction.atomic
def call_off(*, instance: Instance, at: datetime) -> None:
    """Take the advisory of an instance back, if there is one."""
    if _call_off(Interruption.objects.filter(instance=instance, state=State.ADVISED), at=at):
        interruptions.tell_nodes([instance.pk])


def _call_off(found: QuerySet[Interruption], *, at: datetime) -> int:
    """Call off what is still an advisory: one that has become a notice meanwhile stays."""
    still = found.filter(state=State.ADVISED)
    return still.update(state=State.CANCELLED, ended_at=at, settled_at=at, message="The danger is over.")


def holds_for(row: Interruption, instance: Instance) -> bool:
    """Return whether a row is an advisory that is still true of an instance."""
    return row.state == State.ADVISED and row.run == instance.run and instance.phase == Phase.RUNNING


def documents(instances_there: Iterable[Instance]) -> dict[int, dict[str, Any]]:
    """Return what nodes are told of the advisories of these instances. One query, none where nothing is by auction."""
    there = {one.pk: one for one in instances_there if one.market == Instance.Market.SPOT}
    if not there:
        return {}
    rows = Interruption.objects.filter(instance__in=list(there), state=State.ADVISED)
    return {
        row.instance_id: {"id": row.public_id, "level": "elevated", "advised_at": row.since.isoformat()}
        for row in rows
        if holds_for(row, there[row.instance_id])
    }
