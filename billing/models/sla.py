"""How available things were, what was given back for it, and what suppliers were charged or paid beside their use."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.models.guarantees import GuaranteeHour
from billing.public_ids import PublicIdField


class SlaVerdict(models.Model):
    """How available a resource was in a month, and all that this follows from. Written once: a trigger keeps it.

    `evidence` is `availability.Seen`; under the terms of its version it gives these figures again, by whoever wants.
    """

    public_id = PublicIdField(prefix="sla")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="sla_verdicts")
    resource_id = models.CharField(max_length=64)
    resource_name = models.CharField(max_length=200)
    project = models.CharField(max_length=32, blank=True)
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, null=True, related_name="+")
    offer = models.CharField(max_length=32, blank=True)
    currency = models.CharField(max_length=3)
    month = models.DateTimeField()
    terms_version = models.CharField(max_length=20)
    up_ms = models.BigIntegerField()
    down_ms = models.BigIntegerField()
    degraded_ms = models.BigIntegerField()
    availability_ppm = models.PositiveIntegerField()
    paid_micros = models.BigIntegerField()
    credit_bps = models.PositiveIntegerField()
    credit_micros = models.BigIntegerField()
    evidence = models.JSONField()
    at = models.DateTimeField()

    class Meta:
        verbose_name = "SLA verdict"
        constraints = [
            models.UniqueConstraint(fields=["resource_id", "month"], name="sla_judged_once_per_month"),
            models.CheckConstraint(
                condition=Q(credit_micros__gte=0, credit_micros__lte=F("paid_micros")),
                name="sla_credits_no_more_than_was_paid",
            ),
            models.CheckConstraint(
                condition=Q(up_ms__gte=0, down_ms__gte=0, degraded_ms__gte=0, degraded_ms__lte=F("up_ms"))
                & Q(availability_ppm__lte=1_000_000),
                name="sla_figures_make_sense",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-month", "resource_id"], name="sla_newest_month_first"),
            models.Index(fields=["supplier", "-month"], condition=Q(credit_micros__gt=0), name="sla_of_supplier"),
        ]

    def __str__(self) -> str:
        return f"{self.resource_name} {self.month:%Y-%m}: {self.availability_ppm} ppm"


class SupplierAdjustment(models.Model):
    """What a supplier gets (above zero) or gives (below) beside the share of use. Moves once, when it is approved.

    A service credit is charged by itself, by the rate card or by the terms of a guarantee, and a part of results is
    given by itself, by their contract; everything else needs two people.
    """

    class Kind(models.TextChoices):
        SLA = "sla", _("Service credit")
        OUTCOME = "outcome", _("Share of results")
        REFUND = "refund", _("Refund to a customer")
        OTHER = "other", _("Other")

    class State(models.TextChoices):
        PROPOSED = "proposed", _("proposed")
        APPROVED = "approved", _("approved")
        DECLINED = "declined", _("declined")

    public_id = PublicIdField(prefix="sad")
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="supplier_adjustments")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    cause = models.CharField(max_length=80, unique=True, help_text="the verdict's id, or the proposal's key")
    verdict = models.OneToOneField(SlaVerdict, models.PROTECT, null=True, related_name="back_charge")
    hour = models.OneToOneField(GuaranteeHour, models.PROTECT, null=True, related_name="back_charge")
    offer = models.CharField(max_length=32, blank=True)
    currency = models.CharField(max_length=3)
    amount_micros = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    state = models.CharField(max_length=8, choices=State.choices, default=State.PROPOSED)
    proposed_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(amount_micros=0), name="supplier_adjustment_moves_something"),
            models.CheckConstraint(
                condition=~Q(state="approved")
                | (Q(verdict__isnull=False) | Q(hour__isnull=False)) & Q(kind="sla", proposed_by=None, decided_by=None)
                | Q(kind="outcome", verdict=None, proposed_by=None, decided_by=None)
                | Q(decided_by__isnull=False, proposed_by__isnull=False) & ~Q(decided_by=F("proposed_by")),
                name="supplier_adjustment_needs_a_second_person",
            ),
            models.CheckConstraint(
                condition=~Q(kind="sla")
                | Q(amount_micros__lt=0) & (Q(verdict__isnull=False, hour=None) | Q(verdict=None, hour__isnull=False)),
                name="supplier_adjustment_of_sla_takes",
            ),
        ]
        indexes = [models.Index(fields=["supplier", "-id"], name="supplier_adjustment_newest")]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.amount_micros} micros ({self.state})"
