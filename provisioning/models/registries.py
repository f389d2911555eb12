"""What opens a private image registry for a project."""

from django.db import models
from django.utils import timezone

from billing.public_ids import PublicIdField


class RegistryCredential(models.Model):
    """A project's way into one registry. The password rests sealed and is handed to the node that pulls, to no other.

    `handed_out_at` is when a node last asked for it.
    """

    public_id = PublicIdField(prefix="reg")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="registries")
    host = models.CharField(max_length=255)
    username = models.CharField(max_length=255)
    sealed_password = models.TextField()
    added_by = models.ForeignKey("marketplace.User", models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    handed_out_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "host"], name="registry_once_per_project_and_host"),
        ]

    def __str__(self) -> str:
        return f"{self.username} at {self.host}"
