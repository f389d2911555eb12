"""Slurm clusters that sell their nodes here, and what we remember of their nodes and jobs."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.models.fleet import Fabric, Node


class Cluster(models.Model):
    """An existing Slurm cluster. We speak to its slurmrestd; the tokens rest sealed (`secrets.py`).

    Customers' jobs run as `user`. Errands, which drain and resume nodes, run as `errand_user`; as `user` too where that
    is empty. A retired cluster has no tokens any more.
    """

    public_id = PublicIdField(prefix="slc")
    name = models.SlugField(max_length=20, unique=True)
    fabric = models.ForeignKey(Fabric, models.PROTECT, related_name="clusters")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="clusters")
    base_url = models.CharField(max_length=200)
    version = models.CharField(max_length=10, default="v0.0.38")
    user = models.CharField(max_length=32)
    token_sealed = models.TextField(blank=True)
    errand_user = models.CharField(max_length=32, blank=True)
    errand_token_sealed = models.TextField(blank=True)
    partition = models.CharField(max_length=64)
    spot_partition = models.CharField(max_length=64, blank=True)
    log_path = models.CharField(max_length=200, blank=True, help_text="a folder that nodes and workers share")
    created_at = models.DateTimeField(default=timezone.now)
    last_contact = models.DateTimeField(null=True)
    last_error = models.TextField(blank=True)
    failures = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    lease_until = models.DateTimeField(null=True)
    retired_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class SlurmNode(models.Model):
    """What Slurm says of a node of ours, and what we asked Slurm for: each wish of ours is told once."""

    class Asked(models.TextChoices):
        NOTHING = "", "–"
        DRAIN = "drain", _("Drain")
        RESUME = "resume", _("Resume")

    node = models.OneToOneField(Node, models.CASCADE, primary_key=True, related_name="slurm")
    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="nodes")
    name = models.CharField(max_length=64)
    cpus = models.PositiveIntegerField(default=1)
    memory_mib = models.PositiveBigIntegerField(default=0)
    state = models.CharField(max_length=100)
    reason = models.CharField(max_length=200, blank=True)
    asked = models.CharField(max_length=6, choices=Asked.choices, default=Asked.NOTHING, blank=True)
    asked_reason = models.CharField(max_length=200, blank=True)
    asked_at = models.DateTimeField(null=True)
    errand_id = models.BigIntegerField(null=True, help_text="the job that was to do it")
    asked_error = models.CharField(max_length=300, blank=True, help_text="why it was not done the last time")
    is_done = models.BooleanField(default=True, help_text="Slurm has shown that it did what we asked")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cluster", "name"], name="slurm_node_once_per_cluster")]

    def __str__(self) -> str:
        return f"{self.name} of {self.cluster}"


class SlurmJob(models.Model):
    """The job of one assignment, written before it is submitted, so that a killed worker's job is found again."""

    assignment = models.OneToOneField(
        "provisioning.Assignment", models.CASCADE, primary_key=True, related_name="slurm_job"
    )
    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="jobs")
    job_id = models.BigIntegerField(null=True)
    state = models.CharField(max_length=40, blank=True)
    attempted_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["cluster"], name="slurm_job_to_be_found", condition=Q(job_id=None))]

    def __str__(self) -> str:
        return f"job {self.job_id} of {self.cluster}"
