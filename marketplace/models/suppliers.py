"""Who wants to sell capacity."""

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class SupplierApplication(models.Model):
    """An organization asks to sell capacity; a capacity manager decides, once."""

    class State(models.TextChoices):
        OPEN = "open", _("waits for an answer")
        APPROVED = "approved", _("approved")
        DECLINED = "declined", _("declined")

    public_id = PublicIdField(prefix="sap")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="supplier_applications")
    gpus = models.PositiveIntegerField(help_text="about how many")
    about = models.TextField(max_length=1000, help_text="which GPUs, where, and how they are connected")
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    applied_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    applied_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization"], condition=Q(state="open"), name="supplier_application_one_open"
            ),
            models.CheckConstraint(
                condition=Q(state="open", decided_by=None) | ~Q(state="open") & Q(decided_by__isnull=False),
                name="supplier_application_is_decided_by_somebody",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization}: {self.state}"
