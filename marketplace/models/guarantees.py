"""Guaranteed performance: which instance runs under which version's floor, from when to when."""

from django.db import models
from django.db.models import F, Q

from billing.public_ids import PublicIdField
from marketplace.models.contracts import ContractVersion


class Guarantee(models.Model):
    """An instance under the floor of a version that its organization agreed to. Each whole UTC hour is judged once.

    `judged_until` is the end of the last hour that was: what is before it stays as it was found. It ends with the
    instance, or when its customer ends it.
    """

    public_id = PublicIdField(prefix="gua")
    instance = models.ForeignKey("provisioning.Instance", models.PROTECT, related_name="guarantees")
    version = models.ForeignKey(ContractVersion, models.PROTECT, related_name="guarantees")
    since = models.DateTimeField()
    judged_until = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    is_judged = models.BooleanField(default=False, help_text="it has ended, and all of its hours are judged")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance"], condition=Q(ended_at=None), name="guarantee_one_at_a_time_per_instance"
            ),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(ended_at__gte=F("since")), name="guarantee_runs_forward"
            ),
            models.CheckConstraint(
                condition=Q(is_judged=False) | Q(ended_at__isnull=False), name="guarantee_is_judged_once_it_ended"
            ),
        ]
        indexes = [
            models.Index(fields=["judged_until"], condition=Q(is_judged=False), name="guarantee_to_judge"),
        ]

    def __str__(self) -> str:
        return f"{self.instance} under {self.version}"
