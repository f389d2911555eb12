"""Slurm's nodes as nodes of ours, and each side's wish to keep one out of work told to the other, once.

Two things that never mix: what Slurm's people drained, or what is down there,
is a *hold* of ours (kind `slurm`) and never told back; what our managers
cordoned or drained is a drain in Slurm whose reason begins with our name. So
neither side's wish comes back as the other's.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import structlog
from django.db import transaction

from provisioning import nodes, placement
from provisioning.drivers import slurm_job
from provisioning.drivers.slurmrest import Job, SeenNode, Slurm
from provisioning.errors import OutsideFault
from provisioning.models import Cluster, Gpu, Heartbeat, Node, NodeHold, SlurmNode

log = structlog.get_logger("provisioning.slurm_nodes")

OURS = "gpumarket: "
NODES_MAX = 5000
ERRANDS_MAX = 20
# A wish that Slurm has not shown by then is told again.
ASK_AGAIN_AFTER = timedelta(seconds=60)
# How long an errand may wait in Slurm before people are told.
ERRAND_WAITS = timedelta(seconds=20)
RACK = "rack-"
ERROR_MAX = 300
REASON_MAX = 200
WISHES = {Node.State.CORDONED: "cordoned", Node.State.DRAINING: "draining"}


def take(cluster: Cluster, seen: Sequence[SeenNode], *, running: Collection[str], at: datetime) -> None:
    """Write down the nodes of the cluster's partitions: new ones, their GPUs, their state, that they are alive.

    `running` are the assignments whose jobs Slurm says to run: their meters open again where a node was silent.
    """
    sold = {name for name in (cluster.partition, cluster.spot_partition) if name}
    known = {row.name: row for row in SlurmNode.objects.filter(cluster=cluster).select_related("node")}
    for told in sorted(seen, key=lambda node: node.name)[:NODES_MAX]:
        row = known.get(told.name)
        if sold & set(told.partitions) and (row := row or _made(cluster, told, at)) is not None:
            _take_one(row, told, running, at)


@transaction.atomic
def _made(cluster: Cluster, told: SeenNode, at: datetime) -> SlurmNode | None:
    """Make our row of a node that Slurm has and we do not know; its rack is a feature such as "rack-r1".

    None where the cluster was retired while we looked.
    """
    if not Cluster.objects.select_for_update(no_key=True).filter(pk=cluster.pk, retired_at=None).exists():
        return None
    rack = next((word.removeprefix(RACK) for word in told.features if word.startswith(RACK)), cluster.name)
    node = Node.objects.create(
        name=f"{cluster.name}-{told.name}".replace(".", "-")[:63],
        fabric=cluster.fabric,
        offer=cluster.offer,
        rack=rack[:40],
        gpu_model=cluster.offer.gpu_model,
        gpu_count=told.gpus,
        gpu_memory_mib=cluster.offer.gpu_memory_gib * 1024,
        state=Node.State.AVAILABLE,
        reachability=Node.Reachability.ONLINE,
        driver="slurm",
        joined_at=at,
    )
    Heartbeat.objects.create(
        node=node, boot_id="slurm", agent_epoch=0, seq=0, last_seen=at, hostname=told.hostname,
        agent_version=told.version[:40], runtime="slurm", gpu_source="slurm",
    )  # fmt: skip
    Gpu.objects.bulk_create(
        Gpu(node=node, uuid=f"slurm:{cluster.name}:{told.name}:{index}"[:64], index=index) for index in range(told.gpus)
    )
    placement.lock([node.pk])
    placement.recount([node.pk])
    log.info("node joined", node=node.public_id, name=node.name, gpus=told.gpus)
    return SlurmNode.objects.create(node=node, cluster=cluster, name=told.name, state=told.shown)


def _take_one(row: SlurmNode, told: SeenNode, running: Collection[str], at: datetime) -> None:
    node = row.node
    if told.answers:
        Heartbeat.objects.filter(node=node).update(last_seen=at)
        if node.reachability != Node.Reachability.ONLINE:
            with transaction.atomic():
                nodes.come_back(node=node, at=at, running=running)
    facts = {"state": told.shown, "reason": told.reason[:REASON_MAX], "cpus": told.cpus, "memory_mib": told.memory_mib}
    if any(getattr(row, name) != value for name, value in facts.items()):
        SlurmNode.objects.filter(pk=row.pk).update(**facts)
    _hold(node, NodeHold.Kind.SLURM, _why_held(told), at)
    changed = f"Slurm says it has {told.gpus} GPUs; it had {node.gpu_count}." if told.gpus != node.gpu_count else ""
    if not changed and told.gpus != node.offer.gpus_per_node:
        changed = f"It has {told.gpus} GPUs; nodes of its offer have {node.offer.gpus_per_node}."
    _hold(node, NodeHold.Kind.INVENTORY_CHANGED, changed, at)
    _note_done(row, told)


def _why_held(told: SeenNode) -> str:
    """Return why Slurm itself gives no work to a node; empty where it does, or where only we asked for it."""
    if not told.answers:
        return f"Slurm: {told.shown}. {told.reason}"
    if told.is_drained and not told.reason.startswith(OURS):
        return f"Drained in Slurm: {told.reason}"
    if told.flags & {"FAIL", "MAINTENANCE", "REBOOT", "REBOOT_REQUESTED", "REBOOT_ISSUED"}:
        return f"Slurm: {told.shown}. {told.reason}"
    return ""


def _hold(node: Node, kind: NodeHold.Kind, reason: str, at: datetime) -> None:
    live = NodeHold.objects.filter(node=node, kind=kind, released_at=None)
    if reason and not live.exists():
        nodes.hold(node=node, kind=kind, reason=reason, at=at)
    elif reason:
        live.exclude(reason=reason[:REASON_MAX]).update(reason=reason[:REASON_MAX])
    elif live.exists():
        nodes.let_go(node=node, kind=kind, at=at)


def _note_done(row: SlurmNode, told: SeenNode) -> None:
    """Note that Slurm has done what we asked. What its people do afterwards is theirs, and we do not ask again."""
    is_so = told.is_drained if row.asked == SlurmNode.Asked.DRAIN else not told.is_drained
    if not row.is_done and is_so:
        SlurmNode.objects.filter(pk=row.pk).update(is_done=True, asked_error="")


def note_errands(cluster: Cluster, jobs: Sequence[Job], *, at: datetime) -> None:
    """Write down why an errand has not done what it was sent for, so that people see it."""
    by_id = {job.id: job for job in jobs}
    for row in SlurmNode.objects.filter(cluster=cluster, is_done=False, errand_id__in=list(by_id)):
        error = _why_not_done(by_id[row.errand_id or 0], waits=at > (row.asked_at or at) + ERRAND_WAITS)
        if error and error != row.asked_error:
            SlurmNode.objects.filter(pk=row.pk, errand_id=row.errand_id, is_done=False).update(asked_error=error)
            log.warning("errand failed", node=row.node_id, job=row.errand_id, error=error)


def _why_not_done(job: Job, *, waits: bool) -> str:
    """Return why a job of ours did not set a node's state; empty where it may yet."""
    if job.state in {"RUNNING", "COMPLETING", "COMPLETED"} or (job.state == "PENDING" and not waits):
        return ""
    if job.state == "PENDING":
        return f"It waits in Slurm: {job.reason}"[:ERROR_MAX]
    said = job.comment.partition(slurm_job.FAILED)[2].strip()
    return (said or f"Its job ended as {job.state}. {job.reason}".strip())[:ERROR_MAX]


def ask(cluster: Cluster, *, at: datetime) -> None:
    """Tell Slurm what our managers want of its nodes and have not said yet. The network is outside transactions.

    What Slurm does not take is told again later; it is no fault of the cluster's, whose jobs may be well.
    """
    rows = SlurmNode.objects.filter(cluster=cluster).select_related("node").order_by("name")
    wishes = [(row, wish) for row in rows if (wish := _wish(row, at)) is not None]
    for row, (asked, reason) in wishes[:ERRANDS_MAX]:
        state = "DRAIN" if asked == SlurmNode.Asked.DRAIN else "RESUME"
        script, job = slurm_job.errand(cluster, node=row.name, state=state, reason=reason)
        told = {"asked": asked, "asked_reason": reason, "asked_at": at, "is_done": False}
        try:
            with Slurm(cluster, errands=True) as slurm:
                errand_id = slurm.submit(script=script, job=job)
        except OutsideFault as fault:
            error = str(fault)[:ERROR_MAX]
            SlurmNode.objects.filter(pk=row.pk).update(**told, errand_id=None, asked_error=error)
            log.warning("slurm takes no errand", node=row.node.public_id, wish=asked, error=error)
            return  # The next would meet the same.
        # The last error stays until one did what it should.
        SlurmNode.objects.filter(pk=row.pk).update(**told, errand_id=errand_id)
        log.info("asked slurm", node=row.node.public_id, wish=asked, reason=reason)


def _wish(row: SlurmNode, at: datetime) -> tuple[str, str] | None:
    """Return what Slurm is to be told of a node now, with the reason; None: nothing."""
    node, is_drained = row.node, "drain" in row.state.split("+")
    if node.state in WISHES:
        wish = (
            SlurmNode.Asked.DRAIN.value,
            f"{OURS}{WISHES[Node.State(node.state)]}: {node.state_reason}"[:REASON_MAX],
        )
        # Somebody else's drain serves, and stays theirs.
        is_needed = not is_drained
    else:
        wish = (SlurmNode.Asked.RESUME.value, "")
        is_needed = is_drained and row.reason.startswith(OURS)
    if not is_needed:
        return None
    if (row.asked, row.asked_reason) != wish:
        return wish
    is_overdue = not row.is_done and row.asked_at is not None and at > row.asked_at + ASK_AGAIN_AFTER
    return wish if is_overdue else None
