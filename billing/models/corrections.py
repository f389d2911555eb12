"""Corrections of use that ended already: one person proposes when it really ended, another approves."""

from django.db import models
from django.db.models import F, Q

from billing.models.decisions import Proposal, second_person
from billing.models.usage import UsageSpan
from billing.public_ids import PublicIdField


class UsageCorrection(Proposal):
    """A span ended at another moment than was written down. What that costs or gives back moves with the approval."""

    public_id = PublicIdField(prefix="ucr")
    span = models.ForeignKey(UsageSpan, models.PROTECT, related_name="corrections")
    was_ended_at = models.DateTimeField(help_text="what was written when this was proposed")
    ended_at = models.DateTimeField()
    reason = models.CharField(max_length=200)
    amount_micros = models.BigIntegerField(null=True, help_text="what was charged for it, below zero: given back")

    class Meta:
        constraints = [
            second_person("usage_correction"),
            models.CheckConstraint(
                condition=~Q(ended_at=F("was_ended_at")) & ~Q(reason=""), name="usage_correction_says_what_and_why"
            ),
            models.CheckConstraint(
                condition=Q(state="approved", amount_micros__isnull=False)
                | Q(state__in=["proposed", "declined"], amount_micros=None),
                name="usage_correction_moves_money_with_its_approval",
            ),
            models.UniqueConstraint(
                fields=["span"], condition=Q(state="proposed"), name="usage_correction_one_waits_per_span"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.span_id} until {self.ended_at:%Y-%m-%d %H:%M:%S} ({self.state})"
