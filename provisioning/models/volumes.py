"""Volumes: files that outlive the instances which use them, and who uses them now."""

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.models.fleet import Site

GIB = 1024**3


class Volume(models.Model):
    """A named folder that persists in a site. `node` keeps it.

    A local volume lies on its node's own disk and can be used there alone. A
    shared one lies on a path that every node of the site mounts; its node only
    makes, measures and removes it, and another takes over when that one falls
    silent. A snapshot is a volume that nobody mounts: it stays as it was made,
    and others are made from it.
    """

    class State(models.TextChoices):
        CREATING = "creating", _("Being made")
        AVAILABLE = "available", _("Available")
        ATTACHED = "attached", _("Attached")
        DELETING = "deleting", _("Being deleted")
        DELETED = "deleted", _("Deleted")
        FAILED = "failed", _("Failed")

    class Desired(models.TextChoices):
        PRESENT = "present"
        GONE = "gone"

    class Observed(models.TextChoices):
        PENDING = "pending"
        PRESENT = "present"
        GONE = "gone"
        FAILED = "failed"

    class Health(models.TextChoices):
        OK = "ok", _("In order")
        UNREACHABLE = "unreachable", _("Unreachable")
        MISSING = "missing", _("Missing on its node")

    public_id = PublicIdField(prefix="vol")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="volumes")
    site = models.ForeignKey("provisioning.Site", models.PROTECT, related_name="volumes")
    node = models.ForeignKey("provisioning.Node", models.PROTECT, related_name="volumes")
    kind = models.CharField(max_length=6, choices=Site.VolumeKind.choices)
    price_version = models.ForeignKey("billing.PriceVersion", models.PROTECT, related_name="+")
    name = models.CharField(max_length=63)
    size_gib = models.PositiveIntegerField()
    used_bytes = models.BigIntegerField(null=True, help_text="null until its node has measured it")
    measured_at = models.DateTimeField(null=True)
    source = models.ForeignKey("self", models.PROTECT, null=True, related_name="copies")
    is_snapshot = models.BooleanField(default=False)
    ordered_with = models.ForeignKey(
        "marketplace.ApiToken",
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="null: in the portal",
    )

    state = models.CharField(max_length=9, choices=State.choices, default=State.CREATING)
    desired = models.CharField(max_length=7, choices=Desired.choices, default=Desired.PRESENT)
    observed = models.CharField(max_length=7, choices=Observed.choices, default=Observed.PENDING)
    health = models.CharField(max_length=11, choices=Health.choices, default=Health.OK)
    message = models.TextField(blank=True)

    created_at = models.DateTimeField(default=timezone.now)
    ready_at = models.DateTimeField(null=True)
    unpaid_since = models.DateTimeField(null=True)
    delete_requested_at = models.DateTimeField(null=True)
    delete_after = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "name"], condition=~Q(state="deleted"), name="volume_name_once_per_project"
            ),
            models.CheckConstraint(condition=Q(size_gib__gte=1), name="volume_has_a_size"),
            models.CheckConstraint(
                condition=Q(state="deleting", delete_after__isnull=False)
                | Q(state="deleted", deleted_at__isnull=False)
                | (~Q(state__in=["deleting", "deleted"]) & Q(delete_after=None, deleted_at=None)),
                name="volume_deletion_says_when",
            ),
            models.CheckConstraint(
                condition=Q(desired="present") | Q(state__in=["deleting", "deleted"]),
                name="volume_is_removed_only_when_deleted",
            ),
            models.CheckConstraint(
                condition=Q(is_snapshot=False) | ~Q(state="attached"), name="volume_snapshot_is_never_attached"
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="volume_newest_first"),
            # What a node is told: all that is not confirmed gone.
            models.Index(fields=["node"], condition=~Q(state="deleted"), name="volume_kept_by_node"),
            models.Index(fields=["state", "id"], condition=~Q(state="deleted"), name="volume_alive"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def size_bytes(self) -> int:
        return self.size_gib * GIB

    @property
    def used_percent(self) -> int | None:
        """How full it is, above 100 where it holds more than its size; None until it was measured."""
        return None if self.used_bytes is None else self.used_bytes * 100 // self.size_bytes

    @property
    def is_charged(self) -> bool:
        """Whether its meter runs: it exists, nobody asked for its deletion, and its node answers for it."""
        return self.state in {self.State.AVAILABLE, self.State.ATTACHED} and self.health == self.Health.OK

    @property
    def can_be_restored(self) -> bool:
        """Whether a deletion can still be taken back: nothing was removed yet."""
        return self.state == self.State.DELETING and self.desired == self.Desired.PRESENT and self.ready_at is not None


class VolumeAttachment(models.Model):
    """An instance's use of a volume, from the order until the detachment or the instance's end.

    It outlives runs: a stopped instance keeps its volumes. That both are in one
    site is checked by a trigger (`volume_attached_within_its_site`).
    """

    volume = models.ForeignKey(Volume, models.PROTECT, related_name="attachments")
    instance = models.ForeignKey("provisioning.Instance", models.PROTECT, related_name="volume_attachments")
    path = models.CharField(max_length=200)
    read_only = models.BooleanField(default=False)
    attached_at = models.DateTimeField()
    detached_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["volume"], condition=Q(detached_at=None), name="volume_attached_to_one_instance_at_a_time"
            ),
            models.UniqueConstraint(
                fields=["instance", "path"],
                condition=Q(detached_at=None),
                name="instance_has_one_volume_at_a_path",
            ),
            models.CheckConstraint(condition=Q(path__startswith="/"), name="volume_path_is_absolute"),
            models.CheckConstraint(
                condition=Q(detached_at=None) | Q(detached_at__gte=F("attached_at")),
                name="volume_detached_after_it_was_attached",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.volume} at {self.path} of {self.instance}"
