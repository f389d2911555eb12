"""What is built into a node: what it says is written down, and where that is not what was accepted it is held."""

from datetime import datetime
from typing import Any

import pytest
from django.utils import timezone
from msgspec import structs

from provisioning import inventory, nodes
from provisioning.errors import InventoryMismatch
from provisioning.inventory import GpusHeld
from provisioning.models import Gpu, GpuHold, HealthEvent, Node, NodeHold, NodeInventory, Remediation
from provisioning.protocol import GpuFact, Inventory, Link
from tests.conftest import Fleet, Rent, Run
from tests.nodes import facts

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(fleet: Fleet) -> Node:
    return Node.objects.get(name="h200-1")


def take(node: Node, gpus: list[GpuFact], *, at: datetime | None = None, **more: Any) -> Node:
    inventory.take(node=node, said=Inventory(generation=1, gpus=gpus, **more), at=at or timezone.now())
    return Node.objects.get(pk=node.pk)


def reason(node: Node) -> str:
    live = NodeHold.objects.filter(node=node, kind=NodeHold.Kind.INVENTORY_CHANGED, released_at=None)
    return ", ".join(live.values_list("reason", flat=True))


def with_facts(gpus: list[GpuFact], **told: Any) -> list[GpuFact]:
    return [structs.replace(gpu, facts={name: f"{value}{gpu.index}" for name, value in told.items()}) for gpu in gpus]


def test_facts_driver_and_links_are_kept_and_change_without_a_hold(node: Node) -> None:
    well = facts(node)
    link = Link(a=well[0].uuid, b=well[1].uuid, kind="nvlink")
    node = take(node, with_facts(well, serial="s", vbios="1."), driver="580.1", links=[link])
    assert not node.is_held
    assert node.gpus.get(index=3).facts == {"serial": "s3", "vbios": "1.3"}
    told = NodeInventory.objects.get(node=node)
    assert (told.driver, told.links) == ("580.1", [{"a": link.a, "b": link.b, "kind": "nvlink"}])
    node = take(node, with_facts(well, serial="s", vbios="2."), driver="590.1")
    assert not node.is_held
    assert node.gpus.get(index=3).facts["vbios"] == "2.3"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda gpus: gpus[1:], "missing: 0 (GPU-h200-1-0)"),
        (lambda gpus: [*gpus, structs.replace(gpus[0], uuid="GPU-new", index=8)], "new: 8 (GPU-new)"),
        (
            lambda gpus: [structs.replace(gpus[0], index=1), structs.replace(gpus[1], index=0), *gpus[2:]],
            "other index: 0 → 1, 1 → 0",
        ),
        (lambda gpus: [structs.replace(gpus[0], facts={"serial": "other"}), *gpus[1:]], "changed: serial of 0"),
    ],
)
def test_other_gpus_hold_the_node_and_the_same_again_let_it_go(node: Node, change: Any, said: str) -> None:
    well = with_facts(facts(node), serial="s")
    take(node, well)
    held = take(node, change(well))
    assert held.is_held
    assert reason(held) == said
    assert not take(node, well).is_held
    assert reason(held) == ""


def test_a_held_node_stays_held_while_anything_else_differs(node: Node) -> None:
    well = facts(node)
    take(node, well[2:])
    held = take(node, well[1:])
    assert held.is_held
    assert reason(held) == "missing: 0 (GPU-h200-1-0)"


def test_a_gpu_that_is_told_as_ill_is_not_missing(node: Node) -> None:
    ill, *well = facts(node)
    node = take(node, [structs.replace(ill, healthy=False), *well])
    assert not node.is_held
    assert node.free_gpus == 7


def test_a_fact_that_is_not_told_differs_from_nothing(node: Node) -> None:
    take(node, with_facts(facts(node), serial="s"))
    assert not take(node, facts(node)).is_held


def test_accepting_makes_what_is_there_the_inventory(node: Node) -> None:
    gone, *well = facts(node)
    new = structs.replace(gone, uuid="GPU-new", index=0)
    take(node, [new, *well])
    node.refresh_from_db()
    assert node.free_gpus == 7
    changes = inventory.accept(node=node, at=timezone.now())
    assert changes == ["missing: 0 (GPU-h200-1-0)", "new: 0 (GPU-new)"]
    node.refresh_from_db()
    assert (node.is_held, node.free_gpus, node.gpu_count) == (False, 8, 8)
    assert node.gpus.get(index=0, removed_at=None).uuid == "GPU-new"
    assert not Gpu.objects.get(uuid=gone.uuid).healthy
    assert inventory.accept(node=node, at=timezone.now()) == []


def test_fewer_gpus_and_changed_places_are_accepted(node: Node) -> None:
    well = facts(node)
    swapped = [structs.replace(gpu, index=5 - gpu.index) for gpu in well[:6]]
    take(node, swapped)
    inventory.accept(node=node, at=timezone.now())
    node.refresh_from_db()
    assert (node.is_held, node.free_gpus, node.gpu_count) == (False, 6, 6)
    live = node.gpus.filter(removed_at=None).order_by("index")
    assert list(live.values_list("uuid", flat=True)) == [gpu.uuid for gpu in reversed(well[:6])]


def test_a_gpu_that_is_gone_while_an_instance_holds_it_cannot_be_accepted(
    node: Node, rent: Rent, run_until_idle: Run
) -> None:
    rent(gpus=1)
    run_until_idle()
    held = GpuHold.objects.get(released_at=None).gpu
    other = held.node
    take(other, [gpu for gpu in facts(other) if gpu.uuid != held.uuid])
    with pytest.raises(GpusHeld, match=f"still holds {held.uuid}"):
        inventory.accept(node=other, at=timezone.now())
    assert take(other, [gpu for gpu in facts(other) if gpu.uuid != held.uuid]).is_held


def test_gpus_of_another_node_or_model_cannot_be_accepted(node: Node) -> None:
    well = facts(node)
    stranger = structs.replace(well[0], uuid="GPU-h200-2-0")
    take(node, [stranger, *well[1:]])
    with pytest.raises(InventoryMismatch, match="belongs to another node"):
        inventory.accept(node=node, at=timezone.now())
    assert Gpu.objects.get(uuid="GPU-h200-2-0").node.name == "h200-2"
    take(node, [structs.replace(well[0], uuid="GPU-new", model="T4"), *well[1:]])
    with pytest.raises(InventoryMismatch, match="T4"):
        inventory.accept(node=node, at=timezone.now())


def test_a_gpu_that_was_taken_out_may_come_into_another_node(node: Node) -> None:
    moving, *left = facts(node)
    take(node, left)
    inventory.accept(node=node, at=timezone.now())
    other = Node.objects.get(name="h200-2")
    take(other, [structs.replace(moving, index=8), *facts(other)])
    inventory.accept(node=other, at=timezone.now())
    assert Gpu.objects.get(uuid=moving.uuid).node == other
    other.refresh_from_db()
    assert other.free_gpus == 9


def test_what_is_absurd_is_left_out(node: Node) -> None:
    gpus = facts(node)
    lies = {"serial": "x" * 500, "nul": "\x00", "list": [1], "float": 1.5, "big": 2**60, "vbios": "1", "none": None}
    take(
        node,
        [structs.replace(gpus[0], facts=lies), *gpus[1:]],
        links=[
            Link(a=gpus[0].uuid, b="GPU-elsewhere", kind="nvlink"),
            Link(a=gpus[0].uuid, b=gpus[0].uuid, kind="nvlink"),
            Link(a=gpus[0].uuid, b=gpus[1].uuid, kind="string"),
        ],
    )
    assert node.gpus.get(index=0).facts == {"vbios": "1", "none": None}
    assert NodeInventory.objects.get(node=node).links == []


def test_the_manager_s_cordon_and_other_holds_are_left_alone(node: Node) -> None:
    nodes.hold(node=node, kind=NodeHold.Kind.HEALTH, reason="XID 79", at=timezone.now())
    take(node, facts(node)[1:])
    node = take(node, facts(node))
    assert node.is_held
    assert list(NodeHold.objects.filter(released_at=None).values_list("kind", flat=True)) == ["health"]


def linked(gpus: list[GpuFact], *, down: str = "", count: int = 4, active: bool = True) -> list[GpuFact]:
    """These GPUs with NVLinks 0 to count - 1; some of the first one's are down."""
    told = []
    for gpu in gpus:
        off = set(down.split()) if gpu.index == 0 else set()
        up = " ".join(str(link) for link in range(count) if str(link) not in off)
        told.append(
            structs.replace(gpu, facts={"nvlinks_active": up, "nvlinks_down": " ".join(sorted(off))} if active else {})
        )
    return told


def links_of(node: Node) -> list[int] | None:
    found: list[int] | None = node.gpus.get(index=0).nvlinks
    return found


def test_the_links_that_a_gpu_had_are_remembered_when_they_go_and_grow_when_one_comes(node: Node) -> None:
    take(node, linked(facts(node), active=False))
    assert links_of(node) is None, "nobody knows"
    take(node, linked(facts(node), count=3))
    assert links_of(node) == [0, 1, 2]
    take(node, linked(facts(node), down="1"))
    assert links_of(node) == [0, 1, 2, 3]
    take(node, linked(facts(node), active=False))
    assert links_of(node) == [0, 1, 2, 3], "what is not told now was told before"


def test_what_is_no_number_of_a_link_is_left_out(node: Node) -> None:
    told = {"nvlinks_active": f"0 ² x -1 {'9' * 200}", "nvlinks_down": "²"}
    take(node, [structs.replace(gpu, facts=told) for gpu in facts(node)])
    assert links_of(node) == [0]


def test_a_link_that_is_down_is_an_event_once_and_what_is_not_told_is_none(node: Node) -> None:
    take(node, linked(facts(node)))
    take(node, linked(facts(node), active=False))
    assert not HealthEvent.objects.exists()
    for _ in range(2):
        assert not take(node, linked(facts(node), down="2 3")).is_held
    event = HealthEvent.objects.get()
    assert (event.code, event.gpu, event.source) == ("nvlink", node.gpus.get(index=0), "agent")
    assert event.detail == "NVLink 2, 3, which it was accepted with, is not active"


def test_a_link_that_goes_down_while_its_gpu_is_repaired_is_no_news(node: Node) -> None:
    take(node, linked(facts(node)))
    Remediation.objects.create(
        node=node, gpu=node.gpus.get(index=0), state="acting", action="reset_gpu", severity=3, rule="nvlink",
        table_version="1", reason="test", state_since=timezone.now(), opened_at=timezone.now(),
    )  # fmt: skip
    take(node, linked(facts(node), down="2"))
    assert not HealthEvent.objects.exists()


def test_accepting_what_is_there_accepts_the_links_that_are_there(node: Node) -> None:
    take(node, linked(facts(node)))
    take(node, linked(facts(node)[:-1], down="2"))
    assert links_of(node) == [0, 1, 2, 3]
    inventory.accept(node=node, at=timezone.now())
    assert links_of(node) == [0, 1, 3]
