"""The GPUs of a node in the console: what they are, how they are joined, and accepting those that are there now."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from msgspec import structs

from marketplace.models import AuditEntry
from provisioning import inventory
from provisioning.models import GpuHold, Instance, Node
from provisioning.protocol import GpuFact, Inventory, Link
from tests.conftest import Fleet
from tests.marketplace.console.conftest import only_entry
from tests.nodes import facts


@pytest.fixture
def node(fleet: Fleet) -> Node:
    return fleet.nodes["h200-1"].node


def take(node: Node, gpus: list[GpuFact], **more: Any) -> None:
    inventory.take(node=node, said=Inventory(generation=1, gpus=gpus, **more), at=timezone.now())


def page_of(desk: Client, node: Node) -> str:
    return desk.get(reverse("console-node", args=[node.public_id])).content.decode()


def test_facts_links_and_the_driver_are_shown(desk: Client, node: Node) -> None:
    gpus = [structs.replace(gpu, facts={"serial": f"S{gpu.index}", "vbios": None, "mig": False}) for gpu in facts(node)]
    links = [Link(a=gpus[0].uuid, b=gpus[1].uuid, kind="nvlink"), Link(a=gpus[0].uuid, b=gpus[2].uuid, kind="sys")]
    take(node, gpus, driver="580.95.05", links=links)
    page = page_of(desk, node)
    assert "580.95.05" in page
    assert "S7" in page
    assert '<td class="number">nvlink</td><td class="number">sys</td><td class="number">—</td>' in page
    assert "Accept these GPUs" not in page


def test_changed_gpus_are_shown_and_can_be_accepted(desk: Client, node: Node) -> None:
    take(node, facts(node)[:-1])
    page = page_of(desk, node)
    assert "missing: 7 (GPU-h200-1-7)" in page
    assert "Accept these GPUs" in page
    desk.post(reverse("console-node-accept-inventory", args=[node.public_id]))
    node.refresh_from_db()
    assert (node.is_held, node.gpu_count, node.free_gpus) == (False, 7, 7)
    assert only_entry("node.accept_inventory").after == {"changes": ["missing: 7 (GPU-h200-1-7)"], "gpus": 7}
    assert "Accept these GPUs" not in page_of(desk, node)


def test_accepting_while_an_instance_holds_a_gpu_that_is_gone_is_refused(
    desk: Client, fleet: Fleet, running: Instance
) -> None:
    held = GpuHold.objects.get(released_at=None).gpu
    take(held.node, [gpu for gpu in facts(held.node) if gpu.uuid != held.uuid])
    answer: Any = desk.post(reverse("console-node-accept-inventory", args=[held.node.public_id]), follow=True)
    assert "still holds" in answer.content.decode()
    assert not AuditEntry.objects.filter(verb="node.accept_inventory").exists()
    assert Node.objects.get(pk=held.node_id).is_held
