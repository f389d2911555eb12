"""The driver of nodes of a Slurm cluster: one job for each assignment, named by its id, on the node that we chose.

The job is written down before it is submitted. What was perhaps submitted is
looked for by its name before another is; a job that arrives late all the same
finds no release at its barrier, and the next look cancels it (`clusters.py`).
That look also writes down what Slurm says, so `observe` costs nothing.
"""

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from provisioning import engine
from provisioning.drivers import slurm_job
from provisioning.drivers.agent import AgentDriver
from provisioning.drivers.protocol import Observation
from provisioning.drivers.slurmrest import Slurm
from provisioning.errors import OutsideFault
from provisioning.models import Assignment, Cluster, SlurmJob, SlurmNode

# A submit that was cut off is either in the controller by then or nowhere.
SETTLED_AFTER = timedelta(seconds=12)


class SlurmDriver:
    """Keeps the promise of `Driver` over slurmrestd; raises OutsideFault where that does not answer."""

    def create(self, assignment: Assignment) -> None:
        """Submit its job once; adopt the one that an earlier attempt left."""
        job, is_new = _written(assignment)
        if job is None or job.job_id is not None:
            return
        place = SlurmNode.objects.select_related("node").get(node=assignment.node_id)
        with Slurm(job.cluster) as slurm:
            job_id = None if is_new else _found(slurm, assignment)
            if job_id is None and not is_new and timezone.now() < job.attempted_at + SETTLED_AFTER:
                raise OutsideFault("The last submit was cut off and may yet arrive; looking again.")
            if job_id is None:
                SlurmJob.objects.filter(pk=job.pk).update(attempted_at=timezone.now())
                script = slurm_job.script(job.cluster, assignment, _hosts(assignment))
                job_id = slurm.submit(script=script, job=slurm_job.order(job.cluster, assignment, place=place))
            if not _adopt(assignment, job_id):
                slurm.cancel(job_id)
        _look_soon(job.cluster)

    def start(self, assignment: Assignment) -> None:
        """Release the barrier; only once it is known that the job stands there, and never after."""
        rows = Assignment.objects.filter(pk=assignment.pk)
        rows.filter(desired=Assignment.Desired.PREPARED).update(desired=Assignment.Desired.RUNNING)
        waiting = rows.filter(desired=Assignment.Desired.RUNNING, observed=Assignment.Observed.PREPARED)
        job = SlurmJob.objects.filter(assignment__in=waiting).select_related("cluster").first()
        if job is not None and job.job_id is not None:
            with Slurm(job.cluster) as slurm:
                slurm.signal(job.job_id, "URG")
            _look_soon(job.cluster)

    def observe(self, assignment: Assignment) -> Observation:
        return AgentDriver().observe(assignment)

    def destroy(self, assignment: Assignment) -> bool:
        """Cancel its job; True once a look at the cluster has seen its end."""
        Assignment.objects.filter(pk=assignment.pk).update(desired=Assignment.Desired.GONE)
        assignment.refresh_from_db(fields=["observed"])
        if assignment.observed == Assignment.Observed.GONE:
            return True
        job = SlurmJob.objects.filter(assignment=assignment).select_related("cluster").first()
        if job is None:
            return _never_was(assignment)
        with Slurm(job.cluster) as slurm:
            job_id = job.job_id or _found(slurm, assignment)
            if job_id is not None:
                SlurmJob.objects.filter(pk=job.pk, job_id=None).update(job_id=job_id)
                slurm.cancel(job_id)
            elif timezone.now() > job.attempted_at + SETTLED_AFTER:
                return _never_was(assignment)
        _look_soon(job.cluster)
        return False


@transaction.atomic
def _written(assignment: Assignment) -> tuple[SlurmJob | None, bool]:
    """Write down that a job will be submitted, unless the assignment is to go; say whether this is the first time."""
    row = Assignment.objects.select_for_update(no_key=True).get(pk=assignment.pk)
    if row.desired == Assignment.Desired.GONE:
        return None, False
    cluster = Cluster.objects.get(nodes__node=row.node_id)
    return SlurmJob.objects.select_related("cluster").get_or_create(
        assignment=row, defaults={"cluster": cluster, "attempted_at": timezone.now()}
    )


@transaction.atomic
def _adopt(assignment: Assignment, job_id: int) -> bool:
    """Keep a job's number; False if another job is there already, or the assignment is to go meanwhile."""
    row = Assignment.objects.select_for_update(no_key=True).get(pk=assignment.pk)
    SlurmJob.objects.filter(assignment=row, job_id=None).update(job_id=job_id)
    kept = SlurmJob.objects.filter(assignment=row, job_id=job_id).exists()
    return kept and row.desired != Assignment.Desired.GONE


def _found(slurm: Slurm, assignment: Assignment) -> int | None:
    return next((job.id for job in slurm.jobs() if job.name == assignment.public_id), None)


@transaction.atomic
def _never_was(assignment: Assignment) -> bool:
    engine.wake(assignment.instance_id)
    Assignment.objects.filter(pk=assignment.pk).update(observed=Assignment.Observed.GONE)
    return True


def _hosts(assignment: Assignment) -> list[str]:
    gang = Assignment.objects.filter(instance=assignment.instance_id, fence=assignment.fence).order_by("replica")
    return [name or "" for name in gang.values_list("node__heartbeat__hostname", flat=True)]


def _look_soon(cluster: Cluster) -> None:
    Cluster.objects.filter(pk=cluster.pk, failures=0).update(due_at=timezone.now())
