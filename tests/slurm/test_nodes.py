"""Slurm's nodes are ours too: what either side keeps out of work, the other hears once, and nothing comes back."""

import pytest
from django.utils import timezone

from marketplace import rentals
from marketplace.access import Actor
from provisioning import clusters, nodes, slurm_nodes
from provisioning.drivers.slurmrest import Slurm
from provisioning.errors import ClusterInUse
from provisioning.models import Assignment, Cluster, Gpu, Instance, Node, NodeHold, SlurmNode
from provisioning.secrets import seal
from tests.conftest import Rent
from tests.packages import needs
from tests.slurm import cluster as daemons
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
    nodes.cordon(node=node, reason="it's loud", at=timezone.now())
    slurm.until(lambda: state(slurm) == ("idle+drain", "gpumarket: cordoned: it's loud"))
    slurm.look()
    assert not NodeHold.objects.exists()
    nodes.uncordon(node=node)
    slurm.until(lambda: "drain" not in state(slurm)[0])
    slurm.look()
    assert Node.objects.get(pk=node.pk).state == "available"
    assert SlurmNode.objects.get(node=node).is_done


def test_what_slurms_people_lift_is_not_drained_again_until_we_ask_anew(slurm: SlurmStage, node: Node) -> None:
    nodes.cordon(node=node, reason="first", at=timezone.now())
    slurm.until(lambda: "drain" in state(slurm)[0] and SlurmNode.objects.get(node=node).is_done)
    asked = errands(slurm)
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    for _ in range(3):
        slurm.look()
    assert "drain" not in state(slurm)[0]
    assert errands(slurm) == asked
    assert Node.objects.get(pk=node.pk).state == "cordoned"
    nodes.drain(node=node, reason="second", at=timezone.now())
    slurm.until(lambda: state(slurm) == ("idle+drain", "gpumarket: draining: second"))
    nodes.uncordon(node=node)
    slurm.until(lambda: "drain" not in state(slurm)[0])


def test_a_drain_of_slurms_people_stays_theirs_when_we_uncordon(slurm: SlurmStage, node: Node) -> None:
    slurm.daemons.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=theirs")
    slurm.until(lambda: Node.objects.get(pk=node.pk).is_held)
    nodes.cordon(node=node, reason="ours", at=timezone.now())
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


def change(slurm: SlurmStage, **facts: str) -> None:
    Cluster.objects.filter(pk=slurm.cluster.pk).update(**facts)


def row(node: Node) -> SlurmNode:
    return SlurmNode.objects.get(node=node)


def test_an_errand_that_slurm_refuses_shows_why_until_one_did_what_it_should(slurm: SlurmStage, node: Node) -> None:
    plain = slurm.daemons.token(user=daemons.PLAIN_USER)
    change(slurm, errand_user=daemons.PLAIN_USER, errand_token_sealed=seal(plain))
    nodes.cordon(node=node, reason="it's loud", at=timezone.now())
    slurm.until(lambda: row(node).asked_error != "")
    assert "denied" in row(node).asked_error.lower() or "invalid user" in row(node).asked_error.lower()
    assert not row(node).is_done
    assert Cluster.objects.get(pk=slurm.cluster.pk).failures == 0  # The cluster is well; its jobs go on.
    change(slurm, errand_user="", errand_token_sealed="")
    SlurmNode.objects.filter(node=node).update(asked_at=timezone.now() - slurm_nodes.ASK_AGAIN_AFTER)
    slurm.until(lambda: row(node).is_done)
    assert row(node).asked_error == ""
    nodes.uncordon(node=node)
    slurm.until(lambda: row(node).asked == "resume" and row(node).is_done)


def test_an_errand_that_cannot_be_sent_shows_why_and_disturbs_no_look(slurm: SlurmStage, node: Node) -> None:
    change(slurm, errand_user="nobody", errand_token_sealed=seal("no token"))
    nodes.cordon(node=node, reason="it's loud", at=timezone.now())
    assert slurm.look()
    assert "Slurm refused" in row(node).asked_error
    change(slurm, errand_user="", errand_token_sealed="")
    SlurmNode.objects.filter(node=node).update(asked_at=timezone.now() - slurm_nodes.ASK_AGAIN_AFTER)
    slurm.until(lambda: row(node).is_done)
    nodes.uncordon(node=node)
    slurm.until(lambda: row(node).asked == "resume" and row(node).is_done)


def test_jobs_run_as_one_user_and_errands_as_another(slurm: SlurmStage, node: Node, rent: Rent, actor: Actor) -> None:
    change(
        slurm,
        user=daemons.PLAIN_USER,
        token_sealed=seal(slurm.daemons.token(user=daemons.PLAIN_USER)),
        errand_user=daemons.USER,
        errand_token_sealed=seal(slurm.daemons.token()),
    )
    instance = rent(
        offer=slurm.offer, gpus=2, command=["sh", "-c", "scontrol update NodeName=gpu1 State=DRAIN; sleep 99"]
    )
    slurm.run(lambda: Assignment.objects.get(instance=instance).observed == "running")
    asg = Assignment.objects.get(instance=instance).public_id
    users = dict(line.split() for line in slurm.daemons.run("squeue", "-h", "-o", "%j %u").splitlines())
    assert users[asg] == daemons.PLAIN_USER
    nodes.cordon(node=node, reason="it's loud", at=timezone.now())
    slurm.until(lambda: state(slurm)[1] == "gpumarket: cordoned: it's loud")  # Ours, and not what the command tried.
    assert not NodeHold.objects.filter(reason__startswith="Drained in Slurm").exists()
    nodes.uncordon(node=node)
    slurm.until(lambda: row(node).asked == "resume" and row(node).is_done)
    with pytest.raises(ClusterInUse) as refusal:
        clusters.retire(cluster=slurm.cluster, at=timezone.now())
    assert refusal.value.names == [instance.name]
    instance.refresh_from_db()
    rentals.terminate(actor=actor, instance=instance, at=timezone.now())
    slurm.run(lambda: fresh(instance) == "terminated")
    clusters.retire(cluster=slurm.cluster, at=timezone.now())
    assert set(Node.objects.filter(driver="slurm").values_list("state", flat=True)) == {"retired"}
    assert not slurm.look()


def fresh(instance: Instance) -> str:
    instance.refresh_from_db()
    return instance.phase
