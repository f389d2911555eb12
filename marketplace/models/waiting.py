"""Orders that wait until their GPUs are free."""

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class WaitingOrder(models.Model):
    """An order that starts by itself once its GPUs are free, at a price up to its own, until its time is over."""

    class State(models.TextChoices):
        WAITING = "waiting", _("Waiting")
        STARTED = "started", _("Started")
        CANCELLED = "cancelled", _("Cancelled")
        EXPIRED = "expired", _("Expired")

    MOVES: dict[str, set[str]] = {
        State.WAITING: {State.STARTED, State.CANCELLED, State.EXPIRED},
        State.STARTED: set(),
        State.CANCELLED: set(),
        State.EXPIRED: set(),
    }

    class Why(models.TextChoices):
        """Why it still waits; all but the first are passed over and keep their place."""

        CAPACITY = "capacity", _("Its GPUs are not free yet")
        PRICE = "price", _("The price is above its own")
        FUNDS = "funds", _("There is not enough credit")
        QUOTA = "quota", _("A quota is used up")
        BUDGET = "budget", _("It would pass a budget")
        SHARE = "share", _("The organization has its share of this offer while others wait")
        REFUSED = "refused", _("The order is refused as it is")

    public_id = PublicIdField(prefix="wtg")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="waiting_orders")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="waiting_orders")
    user = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+", help_text="who ordered it")
    token = models.ForeignKey("marketplace.ApiToken", models.CASCADE, null=True, related_name="+")
    gpus = models.PositiveSmallIntegerField(help_text="of each replica")
    replicas = models.PositiveIntegerField()
    order = models.JSONField(help_text="the rest of the order, as `waiting` writes and reads it")
    max_micros_per_gpu_hour = models.BigIntegerField()
    until = models.DateTimeField()
    state = models.CharField(max_length=9, choices=State.choices, default=State.WAITING)
    why = models.CharField(max_length=8, choices=Why.choices, default=Why.CAPACITY)
    message = models.TextField(blank=True)
    tried_at = models.DateTimeField(null=True)
    instance = models.OneToOneField(
        "provisioning.Instance", models.PROTECT, null=True, related_name="waited", help_text="what it became"
    )
    created_at = models.DateTimeField(default=timezone.now)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(gpus__gte=1, replicas__gte=1), name="waiting_order_wants_gpus"),
            models.CheckConstraint(condition=Q(max_micros_per_gpu_hour__gt=0), name="waiting_order_has_a_price"),
            models.CheckConstraint(
                condition=Q(state="started", instance__isnull=False) | (~Q(state="started") & Q(instance=None)),
                name="waiting_order_is_started_with_its_instance",
            ),
            models.CheckConstraint(
                condition=Q(state="waiting", closed_at=None) | (~Q(state="waiting") & Q(closed_at__isnull=False)),
                name="waiting_order_is_over_when_it_is_closed",
            ),
        ]
        indexes = [
            models.Index(F("offer"), F("id"), condition=Q(state="waiting"), name="waiting_order_queue"),
            models.Index(fields=["project", "-id"], name="waiting_order_newest_first"),
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.all_gpus} GPUs of {self.offer}, {self.state}"

    @property
    def all_gpus(self) -> int:
        return self.gpus * self.replicas
