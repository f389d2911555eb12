"""What is taken from an instance with notice: announced, counted down, carried out or called off."""

from datetime import timedelta

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField

# What a command gets between SIGTERM and SIGKILL; a shorter notice is halved.
GRACE_S_MAX = 10


class Interruption(models.Model):
    """One interruption of one run, under one id from its plan to its end.

    `since` is when the price began that drove it out: it never pays that one.
    The notice is binding: `deadline_at` is `notice_at` and `min_notice_s` more,
    and an end of ours before it is paid for.
    """

    class Reason(models.TextChoices):
        OUTBID = "outbid", _("Outbid")
        CAPACITY = "capacity", _("The capacity is needed")
        MAINTENANCE = "maintenance", _("Maintenance")
        RESERVATION_END = "reservation_end", _("Its reservation ends")
        OWNER_RECALL = "owner_recall", _("Recalled by the holder of the reservation")
        SIMULATED = "simulated", _("Simulated")

    class State(models.TextChoices):
        ADVISED = "advised", _("May be outbid")
        PLANNED = "planned", _("Planned")
        NOTIFIED = "notified", _("Announced")
        DRAINING = "draining", _("Draining")
        INTERRUPTED = "interrupted", _("Interrupted")
        CANCELLED = "cancelled", _("Called off")
        ENDED = "ended", _("Ended by itself")

    public_id = PublicIdField(prefix="int")
    instance = models.ForeignKey("provisioning.Instance", models.CASCADE, related_name="interruptions")
    run = models.PositiveIntegerField()
    reason = models.CharField(max_length=20, choices=Reason.choices)
    state = models.CharField(max_length=11, choices=State.choices, default=State.PLANNED)
    min_notice_s = models.PositiveIntegerField()
    free_before_s = models.PositiveIntegerField(default=0, help_text="a run that got its notice so soon is free")
    price_version = models.ForeignKey(
        "billing.PriceVersion", models.PROTECT, null=True, related_name="+", help_text="what it pays from `since` on"
    )
    since = models.DateTimeField()
    run_began_at = models.DateTimeField(null=True)
    advised_at = models.DateTimeField(null=True, help_text="when it was said that this may come")
    notice_at = models.DateTimeField(null=True)
    deadline_at = models.DateTimeField(null=True)
    drained_at = models.DateTimeField(null=True, help_text="when its end was asked for")
    ended_at = models.DateTimeField(null=True)
    settled_at = models.DateTimeField(null=True, help_text="when it was worked out whether something is given back")
    credited_micros = models.BigIntegerField(default=0)
    message = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance"],
                condition=Q(state__in=["advised", "planned", "notified", "draining"]),
                name="interruption_one_open_per_instance",
            ),
            models.CheckConstraint(
                condition=Q(notice_at=None, deadline_at=None)
                | Q(
                    notice_at__isnull=False, deadline_at__gte=F("notice_at") + F("min_notice_s") * timedelta(seconds=1)
                ),
                name="interruption_keeps_its_notice",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["notified", "draining", "interrupted"]) | Q(notice_at__isnull=False),
                name="interruption_takes_nothing_without_notice",
            ),
            models.CheckConstraint(condition=Q(credited_micros__gte=0), name="interruption_costs_its_customer_nothing"),
        ]
        indexes = [
            models.Index(fields=["id"], condition=Q(state="planned"), name="interruption_to_announce"),
            models.Index(fields=["notice_at"], condition=Q(notice_at__isnull=False), name="interruption_by_notice"),
            models.Index(
                fields=["id"],
                condition=Q(state__in=["interrupted", "ended"], settled_at=None),
                name="interruption_to_settle",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} of {self.instance} ({self.state})"

    @property
    def grace(self) -> timedelta:
        """How long before the deadline the command gets SIGTERM."""
        return min(timedelta(seconds=GRACE_S_MAX), timedelta(seconds=self.min_notice_s) / 2)


OPEN_STATES = (Interruption.State.PLANNED, Interruption.State.NOTIFIED, Interruption.State.DRAINING)

INTERRUPTION_MOVES: dict[Interruption.State, set[Interruption.State]] = {
    Interruption.State.ADVISED: {Interruption.State.PLANNED, Interruption.State.CANCELLED},
    Interruption.State.PLANNED: {
        Interruption.State.NOTIFIED,
        Interruption.State.CANCELLED,
        Interruption.State.ENDED,
    },
    Interruption.State.NOTIFIED: {
        Interruption.State.DRAINING,
        Interruption.State.CANCELLED,
        Interruption.State.ENDED,
    },
    Interruption.State.DRAINING: {Interruption.State.INTERRUPTED, Interruption.State.ENDED},
    Interruption.State.INTERRUPTED: set(),
    Interruption.State.CANCELLED: set(),
    Interruption.State.ENDED: set(),
}
