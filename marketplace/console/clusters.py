"""Slurm clusters in the console: adding, changing, retiring one, seeing how it is. Changes leave audit entries."""

from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Count, F, Q, QuerySet
from django.utils.translation import gettext as _

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Offer
from provisioning import clusters
from provisioning.errors import ClusterInUse
from provisioning.models import Assignment, Cluster, Fabric, SlurmJob, SlurmNode
from provisioning.secrets import seal

JOBS_MAX = 100
# What a job that runs there was submitted with: another user could not end it, another folder has not its output.
FIXED_WHILE_USED = ("user", "partition", "spot_partition", "log_path")
SILENT_AFTER = timedelta(seconds=25)


def listed() -> QuerySet[Cluster]:
    """Return all clusters with how many nodes and living jobs each has."""
    living = Count("jobs", filter=~Q(jobs__assignment__observed=Assignment.Observed.GONE), distinct=True)
    found = Cluster.objects.select_related("offer", "fabric__site")
    counted = found.annotate(node_count=Count("nodes", distinct=True), job_count=living)
    return counted.order_by(F("retired_at").asc(nulls_first=True), "name")


def offers() -> QuerySet[Offer]:
    """Return the offers that run Slurm jobs."""
    return Offer.objects.filter(runtime=Offer.Runtime.SLURM).select_related("site").order_by("name")


def cluster_for(cluster_id: str) -> Cluster:
    """Return a cluster, or raise NotFound."""
    cluster = listed().filter(public_id=cluster_id).first()
    if cluster is None:
        raise NotFound
    return cluster


def living_cluster_for(cluster_id: str) -> Cluster:
    """Return a cluster that was not retired, or raise NotFound."""
    cluster = cluster_for(cluster_id)
    if cluster.retired_at is not None:
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
    return Cluster.objects.filter(late, retired_at=None).order_by("last_contact", "pk")


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


@transaction.atomic
def change(*, actor: Actor, cluster: Cluster, at: datetime, **facts: str) -> None:
    """Change a cluster's name, address, user, partitions or folder of output; it is looked at at once.

    Its nodes keep their names. Raises BadOrder naming the field: a name that is taken, or what is fixed while
    something runs there.
    """
    row = Cluster.objects.select_for_update(no_key=True).get(pk=cluster.pk, retired_at=None)
    before = {name: getattr(row, name) for name in facts if getattr(row, name) != facts[name]}
    if not before:
        return
    fixed = [name for name in FIXED_WHILE_USED if name in before]
    running = _names([instance.name for instance in clusters.living_on(row)[: clusters.RUNNING_NAMED + 1]])
    if fixed and running:
        raise BadOrder(fixed[0], _("This cannot change while instances run there: %(names)s.") % {"names": running})
    after = {name: facts[name] for name in before}
    try:
        with transaction.atomic():
            Cluster.objects.filter(pk=row.pk).update(**after, due_at=at, failures=0)
    except IntegrityError as error:
        raise BadOrder("name", _("There is a cluster named %(name)s already.") % {"name": facts["name"]}) from error
    audit.record(
        actor=actor, organization=None, verb="cluster.change", subject_id=row.public_id, before=before, after=after
    )


@transaction.atomic
def change_errands(*, actor: Actor, cluster: Cluster, errand_user: str, errand_token: str, at: datetime) -> None:
    """Have errands run as a user of their own, or, where none is named, as that of jobs. Nodes are asked at once."""
    if bool(errand_user) != bool(errand_token.strip()):
        missing = "errand_token" if errand_user else "errand_user"
        raise BadOrder(missing, _("Name both, the user and their token, or neither."))
    sealed = seal(errand_token.strip()) if errand_user else ""
    Cluster.objects.filter(pk=cluster.pk, retired_at=None).update(
        errand_user=errand_user, errand_token_sealed=sealed, due_at=at
    )
    audit.record(
        actor=actor, organization=None, verb="cluster.errands", subject_id=cluster.public_id,
        before={"errand_user": cluster.errand_user}, after={"errand_user": errand_user},
    )  # fmt: skip


@transaction.atomic
def retire(*, actor: Actor, cluster: Cluster, reason: str, at: datetime) -> None:
    """Sell a cluster's nodes no more and forget its tokens, for good. Raises BadOrder saying what runs there."""
    try:
        clusters.retire(cluster=cluster, at=at)
    except ClusterInUse as refusal:
        told = {"names": _names(refusal.names)}
        raise BadOrder("reason", _("Instances run there: %(names)s. Stop them first.") % told) from refusal
    audit.record(
        actor=actor, organization=None, verb="cluster.retire", subject_id=cluster.public_id, after={"reason": reason}
    )


def _names(names: list[str]) -> str:
    shown = names[: clusters.RUNNING_NAMED]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
