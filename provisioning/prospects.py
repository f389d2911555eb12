"""What placement would say now. Nothing is claimed, and nothing written."""

from collections.abc import Sequence

from provisioning import shards
from provisioning.models import Instance
from provisioning.placement import kept_from, request_of
from provisioning.placing import keeping, reasons
from provisioning.placing.choice import choose


def kept_for(*, instance: Instance, home: int | None, spares: frozenset[int]) -> frozenset[int] | None:
    """Return the nodes to keep for what finds no place beside those that it `spares`, as `keeping.kept_for` does."""
    with shards.current(instance.offer_id) as live:
        tenant = live.refresh(instance.project_id)
        return keeping.kept_for(
            live.shard, request_of(instance, tenant, home, kept_from(instance, tenant, live, spares))
        )


def fitting(wanted: Sequence[tuple[Instance, int | None]]) -> set[int]:
    """Return by primary key which of these new orders, each with its home, would find a place now, in this order.

    All are of one offer; each leaves to those after it what it does not take.
    """
    if not wanted:
        return set()
    with shards.current(wanted[0][0].offer_id) as live:
        tenants = {project: live.refresh(project) for project in {one.project_id for one, _ in wanted}}
        found = set()
        with live.shard.trying() as take:
            for instance, home in wanted:
                tenant = tenants[instance.project_id]
                request = request_of(instance, tenant, home, kept_from(instance, tenant, live))
                choice = choose(live.shard, request)
                for node_id, mask in choice.places if choice is not None else ():
                    found.add(instance.pk)
                    take(node_id, mask, request.owner if request.is_exclusive else 0)
    return found


def gpus_ever(offer_id: int) -> int:
    """Return how many GPUs of an offer there would be if all were free, by the rule of `NeverFits`."""
    with shards.current(offer_id) as live:
        live.refresh()
        with live.whole_fleet() as fleet:
            return sum(fleet.frees[klass] * count for klass, count in enumerate(fleet.counts))


def room(*, project_id: int, offer_id: int, gpus: int) -> reasons.Room:
    """Return what of new replicas of so many GPUs could start now for a project."""
    with shards.current(offer_id) as live:
        one = Instance(project_id=project_id, offer_id=offer_id, replicas=1, gpus_per_replica=gpus)
        tenant = live.refresh(project_id)
        return reasons.room(live.shard, request_of(one, tenant, None, live.kept))


def hints(offer_id: int) -> reasons.Hints:
    """Return the largest gangs of an offer that could start now, and what keeps larger ones from it."""
    with shards.current(offer_id) as live:
        live.refresh()
        return reasons.hints(live.shard)
