"""Who has to give GPUs back so that others can be placed: by node, since a count says nothing of where they are.

It asks the choice of placement itself what would be if this one and that one
were gone, so that topology, NVLink groups, policies and volumes hold here too.
Nothing is written and nothing is claimed; who waits is placed by its own
workflow once the GPUs are free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Exists, OuterRef, Q

from provisioning import placement, policies, shards, volumes
from provisioning.health.wipes import BETWEEN_TENANTS, LIVE_HOLD
from provisioning.models import OPEN_STATES, Gpu, GpuHold, Instance, Interruption, Phase
from provisioning.placing import boards
from provisioning.placing.asking import Choice, Request
from provisioning.placing.choice import choose
from provisioning.placing.shard import Shard

# What is in one of these lets go of its GPUs without being told.
LEAVING = (Phase.DRAINING, Phase.INTERRUPTED, Phase.STOPPING, Phase.TERMINATING, Phase.FAILED)
SPOT = Instance.Market.SPOT

# Of each node, by its primary key.
Masks = dict[int, int]


@dataclass(frozen=True)
class Room:
    """What it takes to place who waits.

    `taken_back` are the candidates that have to go, `spot_gpus` how many GPUs
    spot gives up for it in all, with what is leaving already. `stuck` would fit
    if the offer were empty, but not even without any of the candidates.
    """

    taken_back: list[int]
    spot_gpus: int
    stuck: list[Instance]


def waiting(offer_id: int) -> list[Instance]:
    """Return what waits for GPUs inside reservations of an offer, the longest first."""
    queue = Instance.objects.filter(offer=offer_id, market=Instance.Market.RESERVED, phase=Phase.QUEUED)
    holding = GpuHold.objects.filter(released_at=None, assignment__instance=OuterRef("pk"))
    return list(queue.filter(~Exists(holding), desired=Instance.Desired.RUNNING).order_by("phase_since", "pk"))


def make(*, offer_id: int, wanted: Sequence[Instance], candidates: Sequence[int]) -> Room:
    """Return which of the candidates have to give their GPUs back so that who waits can be placed, each in turn.

    `candidates` are instances, in the order in which they go: of all ways to
    make room, the one that needs the fewest of these from the front, and of
    those nobody who could stay. What is free or leaving already comes first.
    """
    asked = _allowed(offer_id, wanted)
    held, of_spot = _held(offer_id, candidates)
    with shards.current(offer_id) as live:
        tenants = {project_id: live.refresh(project_id) for project_id in {one.project_id for one, _ in asked}}
        stage = _Stage(live.shard, held, back=set(held).difference(candidates), more=_dirty(offer_id))
        taken_back, stuck = list[int](), list[Instance]()
        for instance, home in asked:
            request = placement.request_of(instance, tenants[instance.project_id], home)
            way = stage.way(request, candidates)
            if way is not None:
                taken_back += way
            elif not home and choose(live.empty(), request) is not None:
                stuck.append(instance)
    return Room(taken_back, sum(stage.gpus_of(one) for one in stage.gone & of_spot), stuck)


def has_place(instance: Instance, *, candidates: Sequence[int]) -> bool:
    """Return whether a new order would find a place if these instances gave their GPUs back; nothing is given."""
    asked = _allowed(instance.offer_id, [instance])
    held, _ = _held(instance.offer_id, candidates)
    with shards.current(instance.offer_id) as live:
        tenant = live.refresh(instance.project_id)
        stage = _Stage(live.shard, held, back=set(held), more=_dirty(instance.offer_id))
        kept = placement.kept_from(instance, tenant, live)
        return any(stage.has_place(placement.request_of(one, tenant, home, kept)) for one, home in asked)


def _allowed(offer_id: int, wanted: Sequence[Instance]) -> list[tuple[Instance, int | None]]:
    """Return those that no policy and no volume keeps out of the offer, each with its home."""
    excluded = policies.exclusions((one.project_id, offer_id) for one in wanted)
    homes = volumes.homes_of(wanted)
    return [(one, homes[one.pk]) for one in wanted if one.pk in homes and (one.project_id, offer_id) not in excluded]


def _held(offer_id: int, candidates: Sequence[int]) -> tuple[dict[int, Masks], set[int]]:
    """Return what the candidates hold, and what is leaving already; and which of both are spot's."""
    told = Interruption.objects.filter(instance=OuterRef("assignment__instance"), state__in=OPEN_STATES)
    mine = Q(assignment__instance__in=candidates) | Q(assignment__instance__phase__in=LEAVING) | Q(Exists(told))
    holds = GpuHold.objects.filter(mine, released_at=None, gpu__healthy=True, gpu__node__offer=offer_id)
    held: dict[int, Masks] = {}
    of_spot = set[int]()
    rows = holds.filter(gpu__index__lt=boards.INDICES_MAX).values_list(
        "assignment__instance", "assignment__instance__market", "gpu__node", "gpu__index"
    )
    for instance_id, market, node_id, index in rows:
        _add(held.setdefault(instance_id, {}), {node_id: 1 << index})
        if market == SPOT:
            of_spot.add(instance_id)
    return held, of_spot


def _dirty(offer_id: int) -> Masks:
    """Return the GPUs that nobody holds and that are being cleaned."""
    found: Masks = {}
    dirty = Gpu.objects.filter(~Exists(LIVE_HOLD), node__offer=offer_id, healthy=True, state__in=BETWEEN_TENANTS)
    for node_id, index in dirty.filter(index__lt=boards.INDICES_MAX).values_list("node", "index"):
        _add(found, {node_id: 1 << index})
    return found


def _add(masks: Masks, more: Mapping[int, int]) -> None:
    for node_id, mask in more.items():
        masks[node_id] = masks.get(node_id, 0) | mask


class _Stage:
    """An offer as it will be: with what is on its way back, and without what was given to who waits."""

    def __init__(self, shard: Shard, held: Mapping[int, Masks], *, back: Iterable[int], more: Masks) -> None:
        self.shard, self.held = shard, held
        self.back, self.more = set(back), more
        self.given: Masks = {}
        # Whose GPUs were given away.
        self.gone = set[int]()

    def gpus_of(self, instance_id: int) -> int:
        return sum(mask.bit_count() for mask in self.held[instance_id].values())

    def way(self, request: Request, candidates: Sequence[int]) -> list[int] | None:
        """Give a request its GPUs; return which candidates have to go for that, None where it is of no use."""
        if self._choice(request, ()) is not None:
            needed: list[int] = []
        elif self._choice(request, candidates) is None:
            return None
        else:
            needed = self._fewest(request, self._first(request, candidates))
        choice = self._choice(request, needed)
        assert choice is not None, "what fits without more than these fits without these"
        self.back.update(needed)
        for node_id, mask in choice.places:
            _add(self.given, {node_id: mask})
        self.gone.update(needed, (one for one in self.back if self._is_on(one, choice)))
        return needed

    def has_place(self, request: Request) -> bool:
        """Return whether a request fits where all of it is free that is on its way back."""
        return self._choice(request, ()) is not None

    def _choice(self, request: Request, gone: Iterable[int]) -> Choice | None:
        masks = dict(self.more)
        for instance_id in self.back.union(gone):
            _add(masks, self.held.get(instance_id, {}))
        spots = self.shard.spots
        there = {
            pk: (spots[pk].mask | masks.get(pk, 0)) & ~self.given.get(pk, 0)
            for pk in {*masks, *self.given}
            if pk in spots
        }
        with self.shard.as_if(there):
            return choose(self.shard, request)

    def _first(self, request: Request, candidates: Sequence[int]) -> Sequence[int]:
        """Return as few candidates from the front as it takes. The more are gone, the more fits."""
        too_few, enough = 0, len(candidates)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._choice(request, candidates[:middle]) is None:
                too_few = middle
            else:
                enough = middle
        return candidates[:enough]

    def _fewest(self, request: Request, candidates: Sequence[int]) -> list[int]:
        """Return those of the candidates that really have to go: none of them could stay, the last least of all."""
        choice = self._choice(request, candidates)
        assert choice is not None
        needed = [one for one in candidates if self._is_on(one, choice, whole_nodes=request.is_exclusive)]
        if self._choice(request, needed) is None:
            needed = list(candidates)
        for one in reversed(needed):
            fewer = [other for other in needed if other != one]
            if self._choice(request, fewer) is not None:
                needed = fewer
        return needed

    def _is_on(self, instance_id: int, choice: Choice, *, whole_nodes: bool = False) -> bool:
        held = self.held.get(instance_id, {})
        return any(held.get(node_id, 0) & (-1 if whole_nodes else mask) for node_id, mask in choice.places)
