"""Where tenants let their instances run, and the record of each decision where one runs."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField

LEVELS = {
    "nvlink": _("one NVLink group"),
    "node": _("one node"),
    "rack": _("one rack"),
    "fabric": _("one fabric"),
    "site": _("the whole site"),
}


class Policy(models.Model):
    """A hard filter on where instances of an organization, or of one project, may run: `placing/policy.py` reads it."""

    public_id = PublicIdField(prefix="pol")
    organization = models.OneToOneField("marketplace.Organization", models.CASCADE, null=True, related_name="+")
    project = models.OneToOneField("marketplace.Project", models.CASCADE, null=True, related_name="+")
    document = models.JSONField(default=dict)
    version = models.PositiveIntegerField(default=1)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(organization=None, project__isnull=False) | Q(organization__isnull=False, project=None),
                name="policy_is_of_an_organization_or_a_project",
            ),
        ]

    def __str__(self) -> str:
        return f"policy {self.public_id}"


class PlacementDecision(models.Model):
    """One answer of placement to one run of an instance: where it went, or why nowhere.

    A refused launch leaves no instance, but its decision. Repeated refusals of a
    waiting run are one row, counted in `times`. Kept for 30 days.
    """

    class Outcome(models.TextChoices):
        PLACED = "placed", _("Placed")
        REFUSED = "refused", _("Refused")

    public_id = PublicIdField(prefix="plc")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="+", db_index=False)
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="+", db_index=False)
    instance = models.ForeignKey("provisioning.Instance", models.CASCADE, null=True, related_name="decisions",
                                 db_index=False)  # fmt: skip
    run = models.PositiveIntegerField()
    at = models.DateTimeField()
    outcome = models.CharField(max_length=7, choices=Outcome.choices)
    times = models.PositiveIntegerField(default=1)
    request = models.JSONField(help_text="replicas, gpus, and what differs from packing them together")
    level = models.CharField(max_length=6, blank=True, help_text="the lowest level that all of it shares")
    nodes = models.PositiveIntegerField(default=0, help_text="on how many nodes; its assignments say which")
    candidates = models.PositiveIntegerField(default=0, help_text="nodes that could take a replica")
    rejected = models.JSONField(default=dict, help_text="nodes by the first rule that kept each out")
    most = models.JSONField(default=dict, help_text="the most replicas that one domain has room for, by level")
    relaxation = models.JSONField(default=dict, help_text="the cheapest change with which it would fit")
    policy_digest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the policies that applied")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance", "run", "outcome"], name="placement_decision_once_per_run_and_outcome"
            ),
            models.CheckConstraint(
                condition=Q(outcome="refused") | Q(instance__isnull=False), name="placement_placed_has_an_instance"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.outcome} {self.public_id}"

    @property
    def level_words(self) -> str:
        """The level in words."""
        return str(LEVELS.get(self.level, ""))
