"""What one person proposes and another decides: limits of credit, bank transfers, rate cards."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _


class Proposal(models.Model):
    """A row that does nothing until somebody else than its proposer approves it. Moved by `decisions.decide` alone."""

    class State(models.TextChoices):
        PROPOSED = "proposed", _("proposed")
        APPROVED = "approved", _("approved")
        DECLINED = "declined", _("declined")

    state = models.CharField(max_length=8, choices=State.choices, default=State.PROPOSED)
    key = models.UUIDField(unique=True)
    proposed_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True


def second_person(what: str) -> models.CheckConstraint:
    """The constraint that every `Proposal` has under its own name."""
    return models.CheckConstraint(
        condition=Q(state="proposed", decided_by=None)
        | Q(state="declined", decided_by__isnull=False)
        | (Q(state="approved", decided_by__isnull=False) & ~Q(decided_by=F("proposed_by"))),
        name=f"{what}_needs_a_second_person",
    )
