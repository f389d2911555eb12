"""Slurm clusters in the console: adding one, giving it another token, seeing how it is. Changes leave audit entries."""

from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Count, Q, QuerySet
from django.utils.translation import gettext as _

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Offer
from provisioning.models import Assignment, Cluster, Fabric, SlurmJob, SlurmNode
from provisioning.secrets import seal

JOBS_MAX = 100
SILENT_AFTER = timedelta(seconds=25)


def listed() -> QuerySet[Cluster]:
    """Return all clusters with how many nodes and living jobs each has."""
    living = Count("jobs", filter=~Q(jobs__assignment__observed=Assignment.Observed.GONE), distinct=True)
    found = Cluster.objects.select_related("offer", "fabric__site")
    return found.annotate(node_count=Count("nodes", distinct=True), job_count=living).order_by("name")


def offers() -> QuerySet[Offer]:
    """Return the offers that run Slurm jobs."""
    return Offer.objects.filter(runtime=Offer.Runtime.SLURM).select_related("site").order_by("name")


def cluster_for(cluster_id: str) -> Cluster:
    """Return a cluster, or raise NotFound."""
    cluster = listed().filter(public_id=cluster_id).first()
    if cluster is None:
        raise NotFound
    return cluster


def nodes_of(cluster: Cluster) -> QuerySet[SlurmNode]:
    """Return what Slurm says of each node, by name."""
    return SlurmNode.objects.filter(cluster=cluster).select_related("node").order_by("name")


def jobs_of(cluster: Cluster) -> QuerySet[SlurmJob]:
    """Return the jobs that have not ended, the newest first."""
    living = SlurmJob.objects.filter(~Q(assignment__observed=Assignment.Observed.GONE), cluster=cluster)
    return living.select_related("assignment__instance", "assignment__node").order_by("-pk")[:JOBS_MAX]


def silent(*, at: datetime) -> QuerySet[Cluster]:
    """Return the clusters that have not answered well for as long as makes a node suspect."""
    late = Q(last_contact__lt=at - SILENT_AFTER) | Q(last_contact=None, created_at__lt=at - SILENT_AFTER)
    return Cluster.objects.filter(late).order_by("last_contact", "pk")


@transaction.atomic
def add(
    *,
    actor: Actor,
    name: str,
    offer: Offer,
    fabric: Fabric,
    base_url: str,
    user: str,
    token: str,
    partition: str,
    spot_partition: str,
    log_path: str,
) -> Cluster:
    """Take a cluster in; a look at it makes its nodes ours. Raises BadOrder naming the field."""
    if fabric.site_id != offer.site_id:
        raise BadOrder("fabric", _("Choose a fabric in %(site)s, where the offer is sold.") % {"site": offer.site})
    facts = {
        "name": name, "base_url": base_url, "user": user, "partition": partition, "spot_partition": spot_partition,
        "log_path": log_path,
    }  # fmt: skip
    try:
        with transaction.atomic():
            cluster = Cluster.objects.create(offer=offer, fabric=fabric, token_sealed=seal(token.strip()), **facts)
    except IntegrityError as error:
        raise BadOrder("name", _("There is a cluster named %(name)s already.") % {"name": name}) from error
    after = facts | {"offer": offer.slug, "fabric": str(fabric)}
    audit.record(actor=actor, organization=None, verb="cluster.add", subject_id=cluster.public_id, after=after)
    return cluster


@transaction.atomic
def change_token(*, actor: Actor, cluster: Cluster, token: str, at: datetime) -> None:
    """Speak with another token from now on, and look at once whether it is good."""
    Cluster.objects.filter(pk=cluster.pk).update(token_sealed=seal(token.strip()), due_at=at, failures=0)
    audit.record(actor=actor, organization=None, verb="cluster.token", subject_id=cluster.public_id)
