"""Asking for a higher limit, and which requests need nobody's look."""

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.models import Instance, Quota


class QuotaRequest(models.Model):
    """Somebody asks for a limit, with a reason; the words are those of the `Quota` that it would set."""

    class State(models.TextChoices):
        PENDING = "pending", _("Pending")
        APPROVED = "approved", _("Approved")
        DENIED = "denied", _("Denied")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    MOVES: dict[str, set[str]] = {
        State.PENDING: {State.APPROVED, State.DENIED, State.WITHDRAWN},
        State.APPROVED: set(),
        State.DENIED: set(),
        State.WITHDRAWN: set(),
    }

    public_id = PublicIdField(prefix="qrq")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="quota_requests")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, null=True, related_name="quota_requests")
    gpu_model = models.CharField(max_length=80, blank=True)
    market = models.CharField(max_length=10, blank=True, choices=Instance.Market.choices)
    unit = models.CharField(max_length=15, choices=Quota.Unit.choices, default=Quota.Unit.GPUS)
    limit = models.BigIntegerField(help_text="what is asked for")
    reason = models.CharField(max_length=500)
    state = models.CharField(max_length=9, choices=State.choices, default=State.PENDING)
    asked_by = models.ForeignKey("marketplace.User", models.SET_NULL, null=True, related_name="+")
    asked_by_name = models.CharField(max_length=254)
    decided_by_name = models.CharField(max_length=254, blank=True, help_text="a person, or the rule that decided")
    is_automatic = models.BooleanField(default=False)
    note = models.CharField(max_length=500, blank=True, help_text="the customer sees it")
    created_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(limit__gte=0), name="quota_request_is_never_negative"),
            models.CheckConstraint(
                condition=Q(state="pending", decided_at=None) | (~Q(state="pending") & Q(decided_at__isnull=False)),
                name="quota_request_is_decided_when_it_is_closed",
            ),
            models.UniqueConstraint(
                fields=["organization", "project", "gpu_model", "market", "unit"],
                condition=Q(state="pending"),
                nulls_distinct=False,
                name="quota_request_open_once_per_limit",
            ),
        ]
        indexes = [
            models.Index(F("created_at"), condition=Q(state="pending"), name="quota_request_pending"),
        ]

    def __str__(self) -> str:
        return f"{self.limit} {self.unit} for {self.project or self.organization}: {self.state}"

    @property
    def is_spend(self) -> bool:
        return self.unit == Quota.Unit.MICROS_PER_HOUR


class QuotaRule(models.Model):
    """A rule by which requests are approved at once: up to so much, for who has paid so much and owes nothing."""

    public_id = PublicIdField(prefix="qru")
    name = models.CharField(max_length=100, unique=True)
    gpu_model = models.CharField(max_length=80, blank=True, help_text="empty: any")
    market = models.CharField(max_length=10, blank=True, choices=Instance.Market.choices, help_text="empty: any")
    gpus_max = models.PositiveIntegerField(help_text="no request above it")
    currency = models.CharField(max_length=3, default="USD")
    paid_micros_min = models.BigIntegerField(default=0, help_text="paid in cash so far, at least")
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(paid_micros_min__gte=0), name="quota_rule_asks_for_nothing_negative"),
        ]

    def __str__(self) -> str:
        return self.name
