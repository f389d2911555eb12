"""What customers have to be told, and how near the end of their money they are."""

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class Notice(models.Model):
    """Something that a customer is told by e-mail, once per key. It may go out twice where a sender died after sending;
    never not at all. `facts` are what the words need, as text."""

    class Kind(models.TextChoices):
        RUNWAY_WEEK = "runway_week", _("Money for a week")
        RUNWAY_DAY = "runway_day", _("Money for a day")
        RUNWAY_HOUR = "runway_hour", _("Money for an hour")
        USED_UP = "used_up", _("Money used up")
        VOLUMES_KEPT = "volumes_kept", _("Volumes kept unpaid")
        VOLUMES_SOON = "volumes_soon", _("Volumes to be deleted soon")
        VOLUMES_DELETED = "volumes_deleted", _("Volumes deleted")
        DUE_SOON = "due_soon", _("Invoice due soon")
        PAST_DUE = "past_due", _("Invoice past due")
        DUE_RESTRICTED = "due_restricted", _("Nothing new starts")
        DUE_SPOT_STOPPED = "due_spot_stopped", _("Spot stopped")
        DUE_STOPPED = "due_stopped", _("Everything stopped")
        DUE_WRITTEN_OFF = "due_written_off", _("Invoice written off")
        CHARGE_FAILED = "charge_failed", _("Charge failed")
        CHARGE_NEEDS_YOU = "charge_needs_you", _("Charge needs the customer")
        DISPUTE_UPHELD = "dispute_upheld", _("Dispute upheld")
        DISPUTE_REJECTED = "dispute_rejected", _("Dispute rejected")
        PAYMENT_NEEDS_YOU = "payment_needs_you", _("Payment needs the customer")
        TOP_UP_PAUSED = "top_up_paused", _("Automatic top-up paused")
        CREDIT_EXPIRES = "credit_expires", _("Promotional credit expires")
        PAYMENT_TAKEN_BACK = "payment_taken_back", _("Payment taken back")
        INVOICE_OWED_AGAIN = "invoice_owed_again", _("Invoice owed again")
        TAKEN_BACK_DUE = "taken_back_due", _("Payment taken back is past due")
        COMMITMENT_OFFERED = "commitment_offered", _("Commitment offered")

    public_id = PublicIdField(prefix="ntc")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="notices")
    kind = models.CharField(max_length=24, choices=Kind.choices)
    key = models.CharField(max_length=200, unique=True)
    facts = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["next_try_at"], condition=Q(sent_at=None), name="notice_to_send"),
            models.Index(fields=["organization", "-id"], name="notice_newest_first"),
        ]

    def __str__(self) -> str:
        return f"{self.key}: {'sent' if self.sent_at else f'{self.tries} tries'}"


class RunwayWatch(models.Model):
    """On which rung of the ladder an organization's money stands, as it was last told. See `watch`.

    `crossing` grows whenever the money lasts longer again, so that each rung is told once per crossing. What runs is
    stopped at `grace_ends_at`, which whoever has used everything up has.
    """

    class Rung(models.TextChoices):
        ENOUGH = "enough", _("more than a week")
        WEEK = "week", _("a week")
        DAY = "day", _("a day")
        HOUR = "hour", _("an hour")
        USED_UP = "used_up", _("used up")

    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="runway_watch")
    rung = models.CharField(max_length=8, choices=Rung.choices, default=Rung.ENOUGH)
    crossing = models.PositiveIntegerField(default=1)
    since = models.DateTimeField()
    grace_ends_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "runway watches"
        constraints = [
            models.CheckConstraint(
                condition=Q(rung="used_up", grace_ends_at__isnull=False) | (~Q(rung="used_up") & Q(grace_ends_at=None)),
                name="runway_watch_has_a_grace_once_all_is_used_up",
            ),
        ]
        indexes = [
            models.Index(fields=["grace_ends_at"], condition=Q(rung="used_up"), name="runway_watch_used_up"),
        ]

    def __str__(self) -> str:
        return f"{self.rung} since {self.since:%Y-%m-%d %H:%M}"
