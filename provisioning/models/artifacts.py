"""Bytes that a project keeps with us, known by their SHA-256."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class ArtifactState(models.TextChoices):
    UPLOADING = "uploading", _("Being uploaded")
    STORED = "stored", _("Stored")


# Back only where its file was lost: then it must come again.
ARTIFACT_MOVES: dict[ArtifactState, set[ArtifactState]] = {
    ArtifactState.UPLOADING: {ArtifactState.STORED},
    ArtifactState.STORED: {ArtifactState.UPLOADING},
}


class Artifact(models.Model):
    """Bytes of one project. The file has the same name; it is there, whole, where this is stored."""

    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="artifacts")
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    state = models.CharField(max_length=9, choices=ArtifactState.choices, default=ArtifactState.UPLOADING)
    created_at = models.DateTimeField(default=timezone.now)
    used_at = models.DateTimeField(default=timezone.now, help_text="when something last asked for it or named it")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "sha256"], name="artifact_once_per_project"),
            models.CheckConstraint(condition=Q(size_bytes__gte=0), name="artifact_size_is_not_negative"),
        ]
        indexes = [models.Index(fields=["used_at"], name="artifact_longest_unused")]

    def __str__(self) -> str:
        return self.sha256[:12]

    def move_to(self, state: ArtifactState, **changes: object) -> bool:
        """Change state if the map allows it and nobody did meanwhile; return whether that was so."""
        assert state in ARTIFACT_MOVES[ArtifactState(self.state)]
        changes["state"] = state
        if not Artifact.objects.filter(pk=self.pk, state=self.state).update(**changes):
            return False
        for name, value in changes.items():
            setattr(self, name, value)
        return True
