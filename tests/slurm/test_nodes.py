"""Slurm's nodes are ours too: what either side keeps out of work, the other hears once, and nothing comes back."""

import pytest

from provisioning import nodes
from provisioning.drivers.slurmrest import Slurm
from provisioning.models import Gpu, Node, NodeHold, SlurmNode
from tests.packages import needs
from tests.slurm.stage import SlurmStage

pytestmark = [pytest.mark.django_db, needs("slurmctld")]


def state(slurm: SlurmStage) -> tuple[str, str]:
    """Return gpu1's state and reason as Slurm says."""
    with Slurm(slurm.cluster) as rest:
        told = next(node for node in rest.nodes() if node.name == "gpu1")
    return told.shown, told.reason


@pytest.fixture
def node(slurm: SlurmStage) -> Node:
    return Node.objects.get(name="north-gpu1")


def errands(slurm: SlurmStage) -> int:
    listed = slurm.daemons.run("squeue", "-h", "-t", "all", "-n", "gpumarket-errand", "-o", "%i")
    return len(listed.split())


def test_nodes_come_with_their_gpus_and_racks(slurm: SlurmStage) -> None:
    found = Node.objects.filter(driver="slurm").order_by("name")
    assert [(node.name, node.rack, node.free_gpus, node.state, node.reachability) for node in found] == [
        ("north-gpu1", "r1", 8, "available", "online"),
        ("north-gpu2", "r1", 8, "available", "online"),
        ("north-gpu3", "r2", 8, "available", "online"),
        ("north-gpu4", "r2", 8, "available", "online"),
    ]
    assert Gpu.objects.filter(node__name="north-gpu3", uuid="slurm:north:gpu3:7").exists()


def test_a_drain_in_slurm_is_a_hold_here_and_is_not_told_back(slurm: SlurmStage, node: Node) -> None:
    before = errands(slurm)
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=new cables")
    slurm.until(lambda: Node.objects.get(pk=node.pk).is_held)
    hold = NodeHold.objects.get(released_at=None)
    assert (hold.kind, hold.reason) == ("slurm", "Drained in Slurm: new cables")
    assert Node.objects.get(pk=node.pk).state == "available"
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    slurm.until(lambda: not Node.objects.get(pk=node.pk).is_held)
    assert errands(slurm) == before


def test_our_cordon_is_a_drain_in_slurm_and_is_not_told_back(slurm: SlurmStage, node: Node) -> None:
    nodes.cordon(node=node, reason="it's loud")
    slurm.until(lambda: state(slurm) == ("idle+drain", "gpumarket: cordoned: it's loud"))
    slurm.look()
    assert not NodeHold.objects.exists()
    nodes.uncordon(node=node)
    slurm.until(lambda: "drain" not in state(slurm)[0])
    slurm.look()
    assert Node.objects.get(pk=node.pk).state == "available"
    assert SlurmNode.objects.get(node=node).is_done


def test_what_slurms_people_lift_is_not_drained_again_until_we_ask_anew(slurm: SlurmStage, node: Node) -> None:
    nodes.cordon(node=node, reason="first")
    slurm.until(lambda: "drain" in state(slurm)[0] and SlurmNode.objects.get(node=node).is_done)
    asked = errands(slurm)
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    for _ in range(3):
        slurm.look()
    assert "drain" not in state(slurm)[0]
    assert errands(slurm) == asked
    assert Node.objects.get(pk=node.pk).state == "cordoned"
    nodes.drain(node=node, reason="second")
    slurm.until(lambda: state(slurm) == ("idle+drain", "gpumarket: draining: second"))
    nodes.uncordon(node=node)
    slurm.until(lambda: "drain" not in state(slurm)[0])


def test_a_drain_of_slurms_people_stays_theirs_when_we_uncordon(slurm: SlurmStage, node: Node) -> None:
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=theirs")
    slurm.until(lambda: Node.objects.get(pk=node.pk).is_held)
    nodes.cordon(node=node, reason="ours")
    slurm.look()
    nodes.uncordon(node=node)
    slurm.look()
    assert state(slurm) == ("idle+drain", "theirs")
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")


def test_another_number_of_gpus_holds_the_node_back(slurm: SlurmStage, node: Node) -> None:
    Node.objects.filter(pk=node.pk).update(gpu_count=9)
    slurm.look()
    assert NodeHold.objects.get(released_at=None).kind == "inventory_changed"
    Node.objects.filter(pk=node.pk).update(gpu_count=8)
    slurm.look()
    assert not Node.objects.get(pk=node.pk).is_held
