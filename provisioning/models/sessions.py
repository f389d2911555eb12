"""Who was inside an instance by SSH, as its node told it."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

# What the record above us has not heard of yet: an opening, or an end.
UNNOTED = Q(open_noted=False) | Q(closed_at__isnull=False, close_noted=False)


class SshSession(models.Model):
    """One shell, command, transfer or forwarded port; or one login that was refused. Times are the node's."""

    class Kind(models.TextChoices):
        SHELL = "shell", _("Shell")
        EXEC = "exec", _("Command")
        SFTP = "sftp", _("Files")
        FORWARD = "forward", _("Forwarded port")
        LOGIN = "login", _("Login")

    session = models.CharField(max_length=32, help_text="the node's own name for it")
    assignment = models.ForeignKey("provisioning.Assignment", models.CASCADE, related_name="ssh_sessions")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    is_refused = models.BooleanField(default=False)
    fingerprint = models.CharField(max_length=64, help_text="of the key that was shown")
    peer = models.CharField(max_length=64, help_text="the address that dialled")
    message = models.CharField(max_length=200, blank=True)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    open_noted = models.BooleanField(default=False)
    close_noted = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["assignment", "session"], name="ssh_session_once_per_assignment"),
            models.CheckConstraint(
                condition=Q(closed_at=None) | Q(closed_at__gte=F("opened_at")), name="ssh_session_ends_after_it_began"
            ),
        ]
        indexes = [
            models.Index(fields=["id"], name="ssh_session_unnoted", condition=UNNOTED),
            models.Index(fields=["assignment"], name="ssh_session_open", condition=Q(closed_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.kind} in {self.assignment}"
