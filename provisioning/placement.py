"""Where an instance runs: choose nodes, claim their GPUs all or nothing, give them back.

The choice is made in memory, from a shard that one statement brings up to
date (`shards`), by a pure function (`placing`). A second statement takes the
GPUs: it locks the nodes, in id order, looks into their own rows whether the
GPUs are still free, and only then writes. What it decides on stands in the
locked row (`free_mask`), so it may be one statement: rows of other tables would
be read as they were before the lock. The partial unique index on live holds is
the last word.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any
from zlib import crc32

from django.db import connection, transaction
from django.utils.translation import gettext

from billing.prepared import ask
from billing.public_ids import new_public_id
from provisioning import alone, calendar, decisions, policies, shards, taking
from provisioning.errors import NeverFits, NoCapacity, PolicyExcludes
from provisioning.health import wipes
from provisioning.models import Assignment, GpuHold, Instance, Node
from provisioning.models.placement import LEVELS
from provisioning.placing import policy, reasons
from provisioning.placing.asking import Choice, Refusal, Request
from provisioning.placing.choice import choose
from provisioning.placing.shard import Shard
from provisioning.shards import LiveShard, Tenant

# A choice may be overtaken before it is locked; then another is made from fresher rows.
ATTEMPTS_MAX = 3
# Nodes that are named for one instance that fits on one, and as many more at each further attempt; the first that
# nobody is claiming this moment is taken.
ALTERNATIVES = 3
OPEN_ENDED = Instance.Market.ON_DEMAND

RECOUNT = """
UPDATE provisioning_node node SET free_mask = counted.mask,
    exclusive_to_id = CASE WHEN counted.is_used THEN node.exclusive_to_id END,
    kept_for = CASE WHEN NOT counted.is_used AND node.exclusive_to_id IS NOT NULL AND EXISTS (
        SELECT FROM marketplace_reservationstrip WHERE reservation_id = %(block)s::bigint
            AND starts_at <= %(at)s::timestamptz AND ends_at > %(at)s::timestamptz
    ) THEN 'block' ELSE node.kept_for END
FROM (
    SELECT gpu.node_id, bool_or(hold.id IS NOT NULL) AS is_used, coalesce(bit_or(1::bigint << gpu.index)
        FILTER (WHERE gpu.healthy AND gpu.state = 'clean' AND hold.id IS NULL AND gpu.index < 63), 0) AS mask
    FROM provisioning_gpu gpu
    LEFT JOIN provisioning_gpuhold hold ON hold.gpu_id = gpu.id AND hold.released_at IS NULL
    WHERE gpu.node_id = ANY (%(nodes)s::bigint[]) GROUP BY gpu.node_id
) counted WHERE node.id = counted.node_id RETURNING node.exclusive_to_id IS NOT NULL
"""


def claim(
    *,
    instance: Instance,
    at: datetime,
    home: int | None = None,
    spares: frozenset[int] | None = None,
    is_owed: bool = False,
) -> list[Assignment]:
    """Claim GPUs for every replica of this run, or raise NoCapacity with nothing claimed.

    Runs inside the caller's transaction. Replicas share the tightest level that
    has room, unless the instance asks for something else. Policies of the
    project and its organization are read here, whoever calls, and never
    relaxed: PolicyExcludes. Nor are the nodes that its order avoids ever taken, or
    those that are kept for who waits: what had its turn says which of them it
    `spares`, and what is no new order, but `is_owed` its GPUs, takes them where there is no other.
    So is the one that failed the last run. What would not fit
    into an empty fleet either is NeverFits. With a `home`, where a local volume of theirs lies,
    all of them run there or nowhere. The decision is recorded: with the claim,
    or by whoever rolls back a refusal (`decisions.keep`).
    """
    lost, turn = frozenset[int](), frozenset[int]() if is_owed else spares
    for attempt in range(1, ATTEMPTS_MAX + 1):
        with shards.current(instance.offer_id) as live:
            tenant = live.refresh(instance.project_id)
            request = _beside_blocks(
                instance, request_of(instance, tenant, home, kept_from(instance, tenant, live, turn))
            )
            asked = _Asked(instance, at, tenant, request, yields=_yields(live, request, turn))
            _check_policies(asked, live)
            choices, waits = _choices(live.shard, asked, lost, alternatives=ALTERNATIVES * attempt)
            if not choices and live.counts_claims:
                # What others are claiming this moment may come back: it is worth waiting for.
                live.refresh(instance.project_id, trusts_claims=False)
                choices, waits = _choices(live.shard, asked, frozenset(), alternatives=1)[0], True
            if not choices:
                raise _refusal(asked, live)
            able, rejected = reasons.rejected(live.shard, asked.request)
            live.take(choices[0].places, asked.alone or 0)
        is_new = spares is None and not is_owed
        told = {
            "candidates": able, "rejected": json.dumps(rejected), "is_new": is_new,
            "has_block_nodes": has_block_nodes(instance, tenant),
        }  # fmt: skip
        # What closes nodes counts them at once, and takes nothing where they are promised to others.
        with transaction.atomic() if asked.request.is_exclusive else nullcontext():
            claimed = _commit(asked, choices, told, waits=waits)
            if claimed and asked.request.is_exclusive:
                calendar.count_closed(instance=instance, at=at)
        _look_again(asked, choices, claimed)
        if claimed:
            transaction.on_commit(live.end_claim)
            return claimed
        lost |= {node_id for choice in choices for node_id, _ in choice.places}
    raise NoCapacity(gettext("Others were quicker %(times)s times; try again.") % {"times": ATTEMPTS_MAX})


def _beside_blocks(instance: Instance, request: Request) -> Request:
    """Return a request that leaves to a tenant's own blocks, which have paid for them, the nodes that they began on."""
    if not request.is_exclusive or instance.market != OPEN_ENDED:
        return request
    own = alone.nodes_of_blocks(offer_id=instance.offer_id, tenant_id=request.owner)
    return replace(request, kept=request.kept | own) if own else request


def has_block_nodes(instance: Instance, tenant: Tenant) -> bool:
    """Return whether an instance may have nodes that are kept for blocks of whole nodes; spot makes room for them."""
    is_alone = policy.wants_whole_hosts(tenant.policies)
    return instance.market == Instance.Market.SPOT or (instance.market == Instance.Market.RESERVED and is_alone)


def kept_from(
    instance: Instance, tenant: Tenant, live: LiveShard, spares: frozenset[int] | None = None
) -> frozenset[int]:
    """Return the nodes that are kept for others than an instance; an order that waited for its turn `spares` some."""
    return live.kept_from(has_block_nodes=has_block_nodes(instance, tenant), spares=spares)


def _yields(live: LiveShard, request: Request, turn: frozenset[int] | None) -> frozenset[int]:
    """Return the nodes that are kept for others, which a request takes where there is no other."""
    if turn:
        return frozenset()
    return live.kept - request.kept - (live.for_blocks if request.is_exclusive else frozenset())


def check_possible(*, instance: Instance, at: datetime, home: int | None = None) -> None:
    """Raise PolicyExcludes or NeverFits where every `claim` would, whatever is free; nothing is claimed."""
    with shards.current(instance.offer_id) as live:
        tenant = live.refresh(instance.project_id)
        asked = _Asked(instance, at, tenant, request_of(instance, tenant, home))
        _check_policies(asked, live)
        if _never(asked, live):
            raise _refusal(asked, live)


def check_order(*, project_id: int, offer_id: int, gpus: int, at: datetime) -> None:
    """Raise PolicyExcludes for hours that are ordered of an offer. One query where no policy applies.

    That is what `claim` would say later: nobody is sold hours that they may not use. Who shares with nobody is sold
    whole nodes, since nobody else could have the rest of them.
    """
    if policies.may_exclude(project_id=project_id, offer_id=offer_id):
        wanted = Instance(project_id=project_id, offer_id=offer_id, replicas=1, gpus_per_replica=gpus)
        with shards.current(offer_id) as live:
            tenant = live.refresh(project_id)
            asked = _Asked(wanted, at, tenant, request_of(wanted, tenant, None))
            _check_policies(asked, live)
            _check_whole_nodes(asked, live.shard.size)


def release(*, instance: Instance, at: datetime) -> None:
    """Give back every GPU of this instance. Only for what is confirmed gone; releasing twice changes nothing.

    It fails closed: a GPU without a good record of its wipe stays out of placement. The last locks of a transaction,
    since what is left free on a node that a tenant has alone is counted.
    """
    held = GpuHold.objects.filter(assignment__instance=instance, released_at=None)
    node_ids = sorted(set(held.values_list("gpu__node_id", flat=True)))
    lock(node_ids)
    wipes.settle_released(held.select_related("assignment__node"))
    held.update(released_at=at)
    if recount(node_ids, block_id=instance.reservation_id, at=at):
        calendar.count(at=at, offer_id=instance.offer_id)


def places(instances: Iterable[Instance]) -> list[Assignment]:
    """Return where the current run of each instance is or was, by replica. One query, none for a claim of just now."""
    instances = list(instances)
    known = [row for instance in instances for row in instance.claimed if row.fence == instance.run]
    runs = {instance.pk: instance.run for instance in instances}
    for row in known:
        runs.pop(row.instance_id, None)
    if not runs:
        return known
    rows = (
        Assignment.objects.filter(instance__in=list(runs))
        .select_related("node__heartbeat")
        .order_by("instance", "replica")
    )
    rows = rows.only("instance_id", "fence", "replica", "gpu_uuids", "observed", "ports", "node__name",
                     "node__heartbeat__access", "node__heartbeat__hostname")  # fmt: skip
    return known + [row for row in rows if row.fence == runs[row.instance_id]]


def lock(node_ids: Iterable[int]) -> list[Node]:
    """Lock node rows in id order, so that two claims and releases cannot deadlock."""
    return list(Node.objects.select_for_update(no_key=True).filter(pk__in=list(node_ids)).order_by("pk"))


def recount(node_ids: Iterable[int], *, block_id: int | None = None, at: datetime | None = None) -> bool:
    """Set which GPUs are free from the GPUs themselves. The caller holds the locks of these nodes.

    A node that nobody uses any more is kept for nobody, but for the block that has it alone and has hours
    now. Returns whether a tenant still has one alone.
    """
    with connection.cursor() as cursor:
        cursor.execute(RECOUNT, {"nodes": list(node_ids), "block": block_id, "at": at})
        return any(is_closed for (is_closed,) in cursor.fetchall())


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who asks for what."""

    instance: Instance
    at: datetime
    tenant: Tenant
    request: Request
    # Nodes that it takes where there is no other.
    yields: frozenset[int] = frozenset()

    @property
    def alone(self) -> int | None:
        """The tenant who is to have the nodes alone."""
        return self.request.owner if self.request.is_exclusive else None

    @property
    def about(self) -> dict[str, Any]:
        """What a decision says of it."""
        documents = json.dumps(self.tenant.policies, sort_keys=True)
        return {
            "project": self.instance.project_id,
            "offer": self.instance.offer_id,
            "instance": self.instance.pk,
            "run": self.instance.run,
            "at": self.at,
            "policy_digest": sha256(documents.encode()).hexdigest() if self.tenant.policies else "",
        }


def request_of(instance: Instance, tenant: Tenant, home: int | None, kept: frozenset[int] = frozenset()) -> Request:
    """Return what an instance asks of placement, for a tenant as the offer's shard knows it, beside what is kept."""
    wish = instance.placement
    return Request(
        replicas=instance.replicas,
        gpus=instance.gpus_per_replica,
        strategy=wish.get("strategy", "pack"),
        level=wish.get("level", "site"),
        is_required=wish.get("required", False),
        max_skew=wish.get("max_skew", 1),
        owner=tenant.organization_id,
        is_exclusive=policy.wants_whole_hosts(tenant.policies),
        home=home or 0,
        barred=_barred(instance),
        kept=kept,
        tie=crc32(f"{instance.public_id} {instance.run}".encode()),
    )


def _barred(instance: Instance) -> frozenset[int]:
    if not instance.avoid_nodes:
        return frozenset()
    return frozenset(Node.objects.filter(public_id__in=instance.avoid_nodes).values_list("pk", flat=True))


def _choices(shard: Shard, asked: _Asked, lost: frozenset[int], *, alternatives: int) -> tuple[list[Choice], bool]:
    """Return where it may go, the best first, and whether to wait for it: only where there is nothing else."""
    request, failed_on = asked.request, asked.instance.failed_on_id
    avoided = frozenset({failed_on} if failed_on and not request.home else ())
    for avoid in dict.fromkeys((avoided | lost | asked.yields, avoided | lost, lost, frozenset[int]())):
        # Among equals the first; who was overtaken there looks elsewhere than the others who were.
        first = choose(shard, replace(request, avoid=avoid, tie=request.tie if lost else 0))
        if first is None:
            continue
        if request.home or _nodes(first) > 1 or avoid != avoid | lost:
            return [first], True
        return [first, *_others(shard, request, avoid, first, alternatives - 1)], False
    return [], False


def _others(shard: Shard, request: Request, avoid: frozenset[int], first: Choice, most: int) -> list[Choice]:
    """Return the next best nodes for what fits on one, so that a node in somebody's hands costs no second question."""
    found = list[Choice]()
    avoid |= {first.places[0][0]}
    while len(found) < most:
        other = choose(shard, replace(request, avoid=avoid))
        if other is None or _nodes(other) > 1:
            break
        found.append(other)
        avoid |= {other.places[0][0]}
    return found


def _nodes(choice: Choice) -> int:
    return len({node_id for node_id, _ in choice.places})


def _commit(asked: _Asked, choices: Sequence[Choice], told: dict[str, Any], *, waits: bool) -> list[Assignment]:
    """Take the GPUs of the first choice that can be had, and write down where it went; empty where none can."""
    if not waits:
        return _take(taking.TAKE_ONE_NOW, asked, choices, told | {"count": 1})
    # The savepoint gives the locks back where it was overtaken: the next choice must begin in id order again.
    with transaction.atomic():
        claimed = _take(taking.TAKE_ALL, asked, choices[:1], told | {"count": _nodes(choices[0])})
        if not claimed:
            transaction.set_rollback(True)
    return claimed


def _take(statement: str, asked: _Asked, choices: Sequence[Choice], told: dict[str, Any]) -> list[Assignment]:
    instance = asked.instance
    rows = [
        (rank, node_id, mask, replica, choice.level)
        for rank, choice in enumerate(choices)
        for replica, (node_id, mask) in enumerate(choice.places)
    ]
    ranks, nodes, masks, replicas, levels = (list(column) for column in zip(*rows, strict=True))
    wanted: dict[str, Any] = {
        "ranks": ranks, "nodes": nodes, "masks": masks, "replicas": replicas, "levels": levels,
        "public_ids": [new_public_id("asg") for _ in rows], "decision": new_public_id("plc"),
        "owner": asked.request.owner, "alone": asked.alone,
        "request": json.dumps(decisions.request_of(asked.request)),
    }  # fmt: skip
    found = ask(statement, wanted | asked.about | told)
    claimed = [
        Assignment(
            pk=pk, public_id=public_id, instance=instance, replica=replica, fence=instance.run,
            gpu_uuids=json.loads(gpu_uuids), created_at=asked.at, node=Node.from_db(None, ["id", "name"], node),
        )
        for pk, public_id, replica, gpu_uuids, *node in found
    ]  # fmt: skip
    held = sum(len(assignment.gpu_uuids) for assignment in claimed)
    assert held in {0, instance.gpus}, f"nodes {sorted(set(nodes))} do not have the free GPUs that they count"
    return claimed


def _look_again(asked: _Asked, choices: Sequence[Choice], claimed: Sequence[Assignment]) -> None:
    """Let the next refresh read what turned out otherwise than it was counted."""
    if {assignment.node_id for assignment in claimed} == {node_id for node_id, _ in choices[0].places}:
        return
    with shards.current(asked.instance.offer_id) as live:
        live.end_claim()
        live.doubt({node_id for choice in choices for node_id, _ in choice.places})


def _check_policies(asked: _Asked, live: LiveShard) -> None:
    """Raise PolicyExcludes where a policy lets nothing of this tenant run on this offer."""
    documents, offer = asked.tenant.policies, asked.instance.offer_id
    if not any(rule in document for document in documents for rule in policy.SITE_RULES):
        return
    rules = policy.broken_by(documents, policies.facts_of(offer))
    if not rules:
        return
    found = Refusal(candidates=0, rejected=dict.fromkeys(rules, len(live.shard.spots)), most={})
    why = gettext("A policy keeps this out of %(offer)s: it is %(rules)s. No policy is ever relaxed; choose another.")
    raise PolicyExcludes(
        why % {"offer": asked.instance.offer, "rules": decisions.said(rules)},
        decision=decisions.refused(asked.request, found, **asked.about),
    )


def _check_whole_nodes(asked: _Asked, size: int) -> None:
    gpus = asked.instance.gpus_per_replica
    if asked.request.is_exclusive and size and gpus % size:
        why = gettext(
            "A policy lets nobody share its hosts, so its blocks are whole nodes of %(size)s GPUs; %(gpus)s are not. "
            "Ask for %(more)s."
        )
        raise PolicyExcludes(why % {"size": size, "gpus": gpus, "more": gpus + size - gpus % size})


def _never(asked: _Asked, live: LiveShard) -> str:
    """Return why a request would not fit into an empty fleet either; empty where it would, or where there is none."""
    request = replace(asked.request, avoid=frozenset(), barred=frozenset(), kept=frozenset())
    if request.home:
        spot = live.shard.spots.get(request.home)
        has_room = spot is not None and spot.total >= request.replicas * request.gpus
        return "" if has_room else _why_not_home(asked.instance, request.home)
    empty = live.empty()
    if not any(empty.counts[1:]) or choose(empty, request) is not None:
        return ""
    with live.whole_fleet() as fleet:
        return "" if choose(fleet, request) is not None else _why_never(asked, fleet)


def _refusal(asked: _Asked, live: LiveShard) -> NoCapacity:
    shard, request = live.shard, asked.request
    found = reasons.why_not(shard, request)
    never = _never(asked, live)
    now = _why_not_home(asked.instance, request.home) if request.home else _why(asked.instance, shard)
    if found.rejected.get("kept"):
        kept = gettext("Some of its nodes are kept for orders that wait and for reservations, which come first.")
        now = f"{now} {kept}"
    kind = NeverFits if never else NoCapacity
    decision = decisions.refused(request, found, **asked.about)
    return kind(" ".join(filter(None, [never or now, decisions.advice(found.relaxation)])), decision=decision)


def _why_never(asked: _Asked, empty: Shard) -> str:
    """Say which rule no fleet of this offer could keep: larger than the widest domain that is allowed, or uneven."""
    request = asked.request
    most = reasons.most_replicas(empty, request)
    is_spread = request.strategy == "spread"
    level = request.level if request.is_required and not is_spread else "site"
    if is_spread and most["site"] >= request.replicas:
        text = gettext(
            "%(shape)s GPUs of %(offer)s could not be spread with a skew of at most %(skew)s even if all of its nodes "
            "were empty."
        )
        return text % {"shape": _shape(asked.instance), "offer": asked.instance.offer, "skew": request.max_skew}
    text = gettext(
        "%(shape)s GPUs are larger than %(place)s of %(offer)s: even if all of its nodes were empty, there "
        "would be room for %(most)s × %(gpus)s."
    )
    return text % {
        "shape": _shape(asked.instance),
        "place": LEVELS[level],
        "offer": asked.instance.offer,
        "most": _most_in_group(empty, request.gpus) if level == "nvlink" else most[level],
        "gpus": request.gpus,
    }


def _most_in_group(empty: Shard, gpus: int) -> int:
    return max((wide for klass, wide in enumerate(empty.wides) if empty.counts[klass]), default=0) // gpus


def _why_not_home(instance: Instance, home: int) -> str:
    node = Node.objects.get(pk=home)
    shown = {"node": node.name, "gpus": instance.gpus, "free": node.free_gpus, "offer": instance.offer}
    if node.offer_id != instance.offer_id:
        return (
            gettext("Its volume lies on node %(node)s, which is not of %(offer)s; launch the offer of that node.")
            % shown
        )
    if node.state != Node.State.AVAILABLE or node.reachability != Node.Reachability.ONLINE:
        return gettext("Its volume lies on node %(node)s, which takes no instances now.") % shown
    text = gettext(
        "Its volume lies on node %(node)s, which has too few free GPUs now: %(free)s, of %(gpus)s asked for."
    )
    return text % shown


def _why(instance: Instance, shard: Shard) -> str:
    free = sum(shard.frees[klass] * count for klass, count in enumerate(shard.counts))
    text = gettext("Too few GPUs of %(offer)s are free now: %(free)s over all its nodes, of %(shape)s asked for.")
    return text % {"shape": _shape(instance), "offer": instance.offer, "free": free}


def _shape(instance: Instance) -> str:
    return f"{instance.replicas} × {instance.gpus_per_replica}" if instance.replicas > 1 else f"{instance.gpus}"
