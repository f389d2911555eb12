"""Looking at Slurm clusters: a bounded sweep that writes down what each says of its nodes and jobs.

A look asks for all nodes and all jobs, outside any transaction; only an answer
without error counts, so a bad token or a dead controller changes nothing but
the cluster's own row. Nodes that Slurm hears are thereby heard by us: their
heartbeat is the time of the look, and silence is noticed as with any node.
"""

import os
import stat
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from provisioning import calendar, engine, placement, slurm_nodes
from provisioning.drivers import slurm_job
from provisioning.drivers.slurmrest import Job, Slurm
from provisioning.errors import ClusterInUse, OutsideFault
from provisioning.models import Assignment, Cluster, GpuHold, Instance, Node, SlurmJob, SlurmNode
from provisioning.protocol import LogPiece
from provisioning.reports import LOG_BYTES_MAX, take_logs

log = structlog.get_logger("provisioning.clusters")

MOVING, RESTING = timedelta(seconds=1), timedelta(seconds=5)
# Below the silence after which nodes count as suspect, so that a controller that is back is noticed soon.
BACK_OFF_S = (1, 2, 4, 8, 12)
LEASE = timedelta(seconds=60)
LOG_PIECE, LOG_PIECES = 128 * 1024, 16
RUNNING_NAMED = 5  # How many instances a refusal names.

State = Assignment.Observed
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"}
THERE = {"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
LEAVING = "COMPLETING"
EXITED = {"COMPLETED", "FAILED"}
ENDINGS = {
    "CANCELLED": "It was cancelled in Slurm.",
    "PREEMPTED": "Interrupted: Slurm preempted it for a job of higher priority.",
    "NODE_FAIL": "Its node failed in Slurm.",
    "BOOT_FAIL": "Its node did not boot.",
    "TIMEOUT": "It reached the time limit of its Slurm partition.",
    "DEADLINE": "It reached its deadline in Slurm.",
    "OUT_OF_MEMORY": "It used more memory than Slurm allows.",
}


def due(*, at: datetime, limit: int) -> list[int]:
    """Return the clusters that a sweep should look at now: due, and looked at by nobody."""
    free = Q(lease_until=None) | Q(lease_until__lt=at)
    found = Cluster.objects.filter(free, due_at__lte=at, retired_at=None)
    return list(found.order_by("due_at").values_list("pk", flat=True)[:limit])


def look(cluster_id: int) -> bool:
    """Look at one cluster; return whether it answered. Whoever else looks at it now is left to it."""
    at = timezone.now()
    free = Q(lease_until=None) | Q(lease_until__lt=at)
    if not Cluster.objects.filter(free, pk=cluster_id, retired_at=None).update(lease_until=at + LEASE):
        return False
    cluster = Cluster.objects.select_related("offer", "fabric").get(pk=cluster_id)
    try:
        with Slurm(cluster) as slurm:
            _look(cluster, slurm, at)
    except OutsideFault as fault:
        _note_fault(cluster, str(fault))
        return False
    finally:
        Cluster.objects.filter(pk=cluster_id).update(lease_until=None)
    return True


def _look(cluster: Cluster, slurm: Slurm, at: datetime) -> None:
    # Rows before the answer: a job that is submitted meanwhile must not look as if Slurm had forgotten it.
    before = _live(cluster)
    seen, jobs = slurm.nodes(), slurm.jobs()
    Cluster.objects.filter(pk=cluster.pk).update(last_contact=at, last_error="", failures=0)
    slurm_nodes.take(cluster, seen, running=[job.name for job in jobs if job.state in THERE], at=at)
    _take_jobs(cluster, before, {job.id: job for job in jobs}, at)
    _put_right(cluster, slurm, jobs)
    slurm_nodes.note_errands(cluster, jobs, at=at)
    slurm_nodes.ask(cluster, at=at)
    pause = MOVING if any(_moves(job.assignment) for job in _live(cluster)) else RESTING
    # Whoever asked for a look while we looked gets it.
    Cluster.objects.filter(pk=cluster.pk, due_at__lte=at).update(due_at=at + pause)


def _note_fault(cluster: Cluster, message: str) -> None:
    seconds = BACK_OFF_S[min(cluster.failures, len(BACK_OFF_S) - 1)]
    due_at = timezone.now() + timedelta(seconds=seconds)
    Cluster.objects.filter(pk=cluster.pk).update(last_error=message, failures=F("failures") + 1, due_at=due_at)
    log.warning("cluster does not answer", cluster=cluster.public_id, failures=cluster.failures + 1, error=message)


def _live(cluster: Cluster) -> list[SlurmJob]:
    rows = SlurmJob.objects.filter(~Q(assignment__observed=State.GONE), cluster=cluster)
    return list(rows.select_related("assignment").order_by("pk"))


def _moves(row: Assignment) -> bool:
    return row.observed != State.RUNNING or row.desired != Assignment.Desired.RUNNING


def _take_jobs(cluster: Cluster, rows: Sequence[SlurmJob], jobs: dict[int, Job], at: datetime) -> None:
    """Write down how each job stands and what it printed; wake the workflows of those that moved."""
    for row in rows:
        if row.job_id is None:
            continue
        job = jobs.get(row.job_id)
        if job is not None and job.name != row.assignment.public_id:
            job = None  # a controller that forgot everything counts from one again
        ship_logs(cluster, row.assignment)
        state, message = standing(row.assignment, job)
        if (state, message) != (row.assignment.observed, row.assignment.message):
            _write(row, job, state, message, at)


def standing(row: Assignment, job: Job | None) -> tuple[str, str]:
    """Return what a job means for its assignment: a state and, where there is something to say, a sentence."""
    if job is None:
        return State.GONE, row.message or "Slurm does not know its job any more."
    has_ended = job.state in EXITED or job.state in ENDINGS
    if row.desired == Assignment.Desired.GONE:
        return (State.GONE if has_ended else row.observed), row.message
    if job.state == LEAVING or row.observed in {State.EXITED, State.FAILED}:
        return row.observed, row.message
    if job.state in WAITING:
        if row.observed in {State.PREPARED, State.RUNNING}:
            return State.FAILED, "Slurm took its node away and put its job back in the queue."
        return State.PREPARING, f"Waits in Slurm: {job.reason}" if job.reason else ""
    return _there(row, job) if job.state in THERE else _ended(row, job)


def _ended(row: Assignment, job: Job) -> tuple[str, str]:
    # The word to start was given, so what ended is the command, even where its last word was not heard.
    if job.state in EXITED and (_word(job) == slurm_job.STARTED or row.desired == Assignment.Desired.RUNNING):
        return State.EXITED, ""
    reason = f" ({job.reason})" if job.reason else ""
    return State.FAILED, f"{ENDINGS.get(job.state, f'Its Slurm job ended before its command: {job.state}.')}{reason}"


def _there(row: Assignment, job: Job) -> tuple[str, str]:
    # A controller that was restarted tells no GPUs until the node has registered again: none told is not none given.
    if job.gpus not in {0, len(row.gpu_uuids)}:
        return State.FAILED, f"Slurm gave it {job.gpus} GPUs and not {len(row.gpu_uuids)}."
    word = _word(job)
    if word == slurm_job.STARTED or row.observed == State.RUNNING:
        return State.RUNNING, ""
    return (State.PREPARED if word == slurm_job.READY else State.PREPARING), ""


def _word(job: Job) -> str:
    return job.comment.rpartition(" ")[2]


@transaction.atomic
def _write(row: SlurmJob, job: Job | None, state: str, message: str, at: datetime) -> None:
    assignment = row.assignment
    changes: dict[str, object] = {"observed": state, "message": message}
    if state == State.EXITED and job is not None:
        # The controller's clock counts whole seconds and may differ from ours.
        ended_at = min(job.ended_at or at, at)
        changes |= {"exit_code": job.exit_code, "exited_at": ended_at}
    if state != assignment.observed:
        engine.wake(assignment.instance_id)
    same = Assignment.objects.filter(pk=assignment.pk, observed=assignment.observed, desired=assignment.desired)
    if same.update(**changes):
        SlurmJob.objects.filter(pk=row.pk).update(state=job.state if job else "")
        log.info("observed", assignment=assignment.public_id, old=assignment.observed, new=state)
        assignment.observed, assignment.message = state, message


def _put_right(cluster: Cluster, slurm: Slurm, jobs: Sequence[Job]) -> None:
    """Cancel jobs of ours that nobody wants, adopt those that a cut-off submit left, repeat a lost word to start."""
    ours = [job for job in jobs if job.comment.startswith(slurm_job.mark(cluster)) and job.name.startswith("asg_")]
    living = [job for job in ours if job.state in WAITING | THERE]
    # Rows after the answer: each was written before its job was submitted.
    found = SlurmJob.objects.filter(assignment__public_id__in=[job.name for job in living])
    rows = {row.assignment.public_id: row for row in found.select_related("assignment")}
    for job in living:
        row = rows.get(job.name)
        if row is None or _is_to_go(row.assignment) or row.job_id not in {None, job.id}:
            slurm.cancel(job.id)
        elif row.job_id is None:
            SlurmJob.objects.filter(pk=row.pk, job_id=None).update(job_id=job.id)
        elif row.assignment.desired == Assignment.Desired.RUNNING and _word(job) == slurm_job.READY:
            slurm.signal(job.id, "URG")


def _is_to_go(row: Assignment) -> bool:
    return row.desired == Assignment.Desired.GONE or row.observed == State.GONE


def ship_logs(cluster: Cluster, row: Assignment) -> None:
    """Append what a job printed since the last look, from the folder that workers share with the nodes."""
    if not cluster.log_path or row.log_bytes >= LOG_BYTES_MAX:
        return
    path = Path(cluster.log_path) / f"{row.public_id}.log"
    for _ in range(LOG_PIECES):
        data = _read(path, row.log_bytes)
        if not data:
            return
        with transaction.atomic():
            take_logs([row], [LogPiece(assignment=row.public_id, offset=row.log_bytes, data=data)])


def _read(path: Path, offset: int) -> bytes:
    """Return the next piece of a job's output, none where there is no plain file: customers can write there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(handle, "rb") as file:
        kind = os.fstat(handle)
        if not stat.S_ISREG(kind.st_mode) or kind.st_nlink != 1:
            return b""
        file.seek(offset)
        return file.read(LOG_PIECE)


def living_on(cluster: Cluster) -> QuerySet[Instance]:
    """Return the instances that hold something on a cluster: each until Slurm has said that it is over."""
    held = GpuHold.objects.filter(gpu__node__slurm__cluster=cluster, released_at=None)
    return Instance.objects.filter(pk__in=held.values("assignment__instance")).order_by("name", "pk")


@transaction.atomic
def retire(*, cluster: Cluster, at: datetime) -> None:
    """Sell its nodes no more, look at it no more, forget its tokens. Raises ClusterInUse while anything runs there."""
    row = Cluster.objects.select_for_update(no_key=True).get(pk=cluster.pk)
    node_ids = list(row.nodes.values_list("node_id", flat=True))
    placement.lock(node_ids)  # A claim under way holds its GPUs before we look, or finds the nodes retired.
    running = list(living_on(row)[: RUNNING_NAMED + 1])
    if running:
        raise ClusterInUse([instance.name for instance in running])
    Node.objects.filter(pk__in=node_ids).update(state=Node.State.RETIRED, state_reason="Its cluster was retired.")
    Cluster.objects.filter(pk=row.pk).update(
        retired_at=at, token_sealed="", errand_token_sealed="", last_error="", failures=0
    )
    calendar.count(at=at, offer_id=row.offer_id)
    log.info("cluster retired", cluster=row.public_id, nodes=len(node_ids))


def nodes_of(cluster: Cluster) -> list[SlurmNode]:
    """Return a cluster's nodes by name, with our rows of them."""
    return list(cluster.nodes.select_related("node").order_by("name"))
