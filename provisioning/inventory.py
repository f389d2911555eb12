"""What is built into a node. A node's Gpu rows are what was accepted; what it says may differ, and then it is held.

The GPUs differ when one is missing or new, or sits at another index or bus address, or has another serial. Facts that
a maintenance changes without a GPU changing (VBIOS, driver, MIG) are written down and hold nobody back. An NVLink that
a GPU had and that is down now is a health event, and the gate asks for every link that a GPU was accepted with. A
hold ends by itself as soon as the node says again exactly what was accepted: whether a GPU that went and came back is
well is a question of health, not of inventory. Otherwise a manager accepts what is there.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any

import msgspec
import structlog
from django.db import transaction
from django.db.models import F, Q

from provisioning import calendar, holds, placement
from provisioning.errors import InventoryMismatch, ProvisioningError
from provisioning.models import Gpu, GpuHold, Node, NodeHold, NodeInventory, Remediation
from provisioning.placing.boards import INDICES_MAX
from provisioning.protocol import GpuFact, Inventory

log = structlog.get_logger("provisioning.inventory")

# Facts that belong to the piece of hardware and its place; one that is not told differs from nothing.
IDENTITY = ("serial", "pci_bus_id")
KINDS = frozenset({"nvlink", "pix", "pxb", "phb", "node", "sys"})
FACTS_MAX, TEXT_MAX, BIGGEST = 60, 400, 2**53
NAMED_MAX = 3
LINK = re.compile(r"[0-9]{1,3}")
INDEX_ASIDE = 16_384  # Above every real index, where GPUs wait that change places.


class GpusHeld(ProvisioningError):
    """A GPU that is gone still belongs to somebody's instance; end that first."""


@transaction.atomic
def take(*, node: Node, said: Inventory, at: datetime) -> bool:
    """Write down what a node says it has; the first time it is accepted. Locks the node.

    A GPU that is missing now is unhealthy. A node's stranger is nobody's until it is accepted. Returns
    whether there are fewer good GPUs than before: then the caller counts them, last of all.
    """
    placement.lock([node.pk])
    facts = [_as_kept(gpu) for gpu in said.gpus]
    NodeInventory.objects.update_or_create(
        node=node,
        defaults={"driver": said.driver or "", "gpus": facts, "links": _sound_links(said), "told_at": at},
    )
    _keep_groups(node, said)
    known = _accepted(node)
    if not known:
        Gpu.objects.bulk_create(_made(node, one) for one in facts)
        placement.recount([node.pk])
        return False
    healthy = {gpu.uuid for gpu in said.gpus if gpu.healthy}
    accepted = node.gpus.filter(removed_at=None)
    accepted.filter(uuid__in=healthy, healthy=False).update(healthy=True)
    broken = accepted.filter(healthy=True).exclude(uuid__in=healthy).update(healthy=False)
    changes = differences(known, facts)
    if changes:
        _hold(node, ", ".join(changes), at)
    else:
        _write_facts(node, known, facts, at)
        if node.is_held:
            holds.let_go(node=node, kind=NodeHold.Kind.INVENTORY_CHANGED, at=at)
    placement.recount([node.pk])
    return broken > 0


@transaction.atomic
def accept(*, node: Node, at: datetime) -> list[str]:
    """Make what the node says its inventory, and let it go; return what changed.

    Raises GpusHeld (an instance holds a GPU that is gone) or InventoryMismatch (GPUs of another
    model, or of another node). Accepting what is accepted changes nothing.
    """
    placement.lock([node.pk])
    told = NodeInventory.objects.filter(node=node).first()
    if told is None:
        raise ProvisioningError(f"{node.name} has never said what it has.")
    known, facts = _accepted(node), list(told.gpus)
    uuids = [one["uuid"] for one in facts]
    _refuse_other_models(node, facts)
    refuse_gpus_of_others(node, uuids)
    gone = [gpu for name, gpu in known.items() if name not in uuids]
    held = GpuHold.objects.filter(gpu__in=gone, released_at=None).select_related("assignment__instance", "gpu").first()
    if held is not None:
        raise GpusHeld(
            f"{held.assignment.instance} still holds {held.gpu.uuid}, which is gone: stop or terminate it first."
        )
    changes = differences(known, facts)
    Gpu.objects.filter(pk__in=[gpu.pk for gpu in gone]).update(removed_at=at, healthy=False)
    _put_in_place(node, facts)
    Node.objects.filter(pk=node.pk).update(gpu_count=len(facts), free_mask=0)
    placement.recount([node.pk])
    holds.let_go(node=node, kind=NodeHold.Kind.INVENTORY_CHANGED, at=at)
    node.refresh_from_db(fields=["gpu_count", "free_gpus"])
    calendar.count(at=at, offer_id=node.offer_id)
    log.info("inventory accepted", node=node.public_id, changes=changes)
    return changes


def differences(known: Mapping[str, Gpu], facts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say in what the GPUs that a node tells of differ from those that were accepted; empty where they do not."""
    told = {one["uuid"]: one for one in facts}
    missing = [f"{gpu.index} ({name})" for name, gpu in known.items() if name not in told]
    new = [f"{one['index']} ({name})" for name, one in told.items() if name not in known]
    both = [(gpu, told[name]) for name, gpu in known.items() if name in told]
    moved = [f"{gpu.index} → {one['index']}" for gpu, one in both if gpu.index != one["index"]]
    other = [
        f"{name} of {gpu.index}"
        for gpu, one in both
        for name in IDENTITY
        if None not in (was := gpu.facts.get(name), now := one["facts"].get(name)) and was != now
    ]
    found = {"missing": missing, "new": new, "other index": moved, "changed": other}
    return [f"{word}: {_some(names)}" for word, names in found.items() if names]


def refuse_gpus_of_others(node: Node, uuids: Iterable[str]) -> None:
    """Raise InventoryMismatch where one of these GPUs is built into another node, as far as was accepted."""
    elsewhere = Gpu.objects.filter(uuid__in=list(uuids), removed_at=None).exclude(node=node).first()
    if elsewhere is not None:
        raise InventoryMismatch(f"The GPU {elsewhere.uuid} belongs to another node already.")


def _accepted(node: Node) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in node.gpus.filter(removed_at=None).order_by("index")}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def _hold(node: Node, reason: str, at: datetime) -> None:
    holds.hold(node=node, kind=NodeHold.Kind.INVENTORY_CHANGED, reason=reason, at=at)
    live = NodeHold.objects.filter(node=node, kind=NodeHold.Kind.INVENTORY_CHANGED, released_at=None)
    live.update(reason=reason[: holds.REASON_MAX])  # It may differ in more by now than when the hold was placed.


def _write_facts(node: Node, known: Mapping[str, Gpu], facts: Iterable[Mapping[str, Any]], at: datetime) -> None:
    changed = []
    for one in facts:
        gpu = known[one["uuid"]]
        if gpu.facts != one["facts"]:
            _tell_of_lost_links(node, gpu, one["facts"], at)
            gpu.nvlinks = _links_with(gpu.nvlinks, one["facts"])
            gpu.facts = one["facts"]
            changed.append(gpu)
    Gpu.objects.bulk_update(changed, ["facts", "nvlinks"])


def _tell_of_lost_links(node: Node, gpu: Gpu, facts: Mapping[str, Any], at: datetime) -> None:
    """Take a link that was down when its agent began as an event: only who knew the link before can miss it."""
    from provisioning.health import events  # noqa: PLC0415  health stands on this file

    before = _numbers(gpu.facts.get("nvlinks_down")) or set()
    lost = ((_numbers(facts.get("nvlinks_down")) or set()) - before) & set(gpu.nvlinks or ())
    in_repair = Remediation.objects.filter(Q(gpu=gpu) | Q(gpu=None, node=node), closed_at=None)
    if lost and not in_repair.exists():
        words = f"NVLink {', '.join(map(str, sorted(lost)))}, which it was accepted with, is not active"
        events.take(node, at, {"gpu": gpu.uuid, "source": "agent", "code": "nvlink", "detail": words})


def _links_with(known: list[int] | None, facts: Mapping[str, Any]) -> list[int] | None:
    """Return the links that a GPU is known to have, with those that it tells to be active now."""
    told = _numbers(facts.get("nvlinks_active"))
    return known if told is None else sorted({*(known or ()), *told})


def _numbers(told: object) -> set[int] | None:
    """Return the numbers of links in a fact; None where it is not told. What is no such number is left out."""
    return {int(word) for word in told.split() if LINK.fullmatch(word)} if isinstance(told, str) else None


def _refuse_other_models(node: Node, facts: Iterable[Mapping[str, Any]]) -> None:
    strange = {one["model"] for one in facts} - {node.gpu_model}
    if strange:
        raise InventoryMismatch(f"{node.name} is sold with {node.gpu_model}, it has {', '.join(sorted(strange))}.")


def _put_in_place(node: Node, facts: list[dict[str, Any]]) -> None:
    """Give each GPU its index. They step aside first: two that change places must not meet."""
    node.gpus.filter(removed_at=None).update(index=F("index") + INDEX_ASIDE)
    there = {gpu.uuid: gpu for gpu in Gpu.objects.filter(uuid__in=[one["uuid"] for one in facts])}
    for one in facts:
        gpu = there.get(one["uuid"])
        if gpu is None:
            continue
        gpu.node, gpu.index, gpu.removed_at = node, one["index"], None
        gpu.facts, gpu.memory_mib, gpu.healthy = one["facts"], one["memory_mib"], one["healthy"]
        gpu.nvlinks = _links_with(None, one["facts"])
    written = ["node", "index", "removed_at", "facts", "nvlinks", "memory_mib", "healthy"]
    Gpu.objects.bulk_update(there.values(), written)
    Gpu.objects.bulk_create(_made(node, one) for one in facts if one["uuid"] not in there)


def _made(node: Node, one: Mapping[str, Any]) -> Gpu:
    return Gpu(
        node=node,
        uuid=one["uuid"],
        index=one["index"],
        memory_mib=one["memory_mib"],
        healthy=one["healthy"],
        facts=one["facts"],
        nvlinks=_links_with(None, one["facts"]),
    )


def _as_kept(gpu: GpuFact) -> dict[str, Any]:
    return msgspec.structs.asdict(gpu) | {"facts": _sound_facts(gpu.facts)}


def _sound_facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that can be kept and shown: a node is not to be trusted with the size of ours."""
    kept = list(told.items())[:FACTS_MAX]
    return {name: value for name, value in kept if len(name) <= TEXT_MAX and "\x00" not in name and _is_sound(value)}


def _is_sound(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= TEXT_MAX and "\x00" not in value
    return value is None or (isinstance(value, int) and abs(value) <= BIGGEST)


def _keep_groups(node: Node, said: Inventory) -> None:
    """Write down which GPUs NVLink ties together, for placement; nothing where it is all of them or nobody told."""
    index_of = {gpu.uuid: gpu.index for gpu in said.gpus if gpu.index < INDICES_MAX}
    groups = [1 << index for index in index_of.values()]
    for link in said.links:
        if link.kind == "nvlink" and link.a in index_of and link.b in index_of:
            tied = [group for group in groups if group & (1 << index_of[link.a] | 1 << index_of[link.b])]
            groups = [group for group in groups if group not in tied]
            groups.append(reduce(or_, tied))
    found = sorted(groups) if 1 < len(groups) < len(index_of) else []
    Node.objects.filter(pk=node.pk).exclude(nvlink_groups=found).update(nvlink_groups=found)


def _sound_links(said: Inventory) -> list[dict[str, str]]:
    names = {gpu.uuid for gpu in said.gpus}
    return [
        msgspec.structs.asdict(link)
        for link in said.links
        if link.kind in KINDS and link.a in names and link.b in names and link.a != link.b
    ]
