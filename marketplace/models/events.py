"""What happened to a tenant's things, in one order for each of them, and where it is sent."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class Noted(models.Model):
    """A row that triggers leave for every new row of `source`; it is gone once that row became an event."""

    source = models.CharField(max_length=20)
    row = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.source} {self.row}"


class StateChange(models.Model):
    """A row of `source` that came to a state of which people are told; triggers write it, and note it."""

    source = models.CharField(max_length=20)
    row = models.BigIntegerField(help_text="which row of that table")
    state = models.CharField(max_length=20)
    at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.source} {self.row}: {self.state}"


class Event(models.Model):
    """One thing that happened. Primary keys follow the order in which events became visible, so nobody misses one.

    `source` and `row` say which row of ours it tells of; it tells each organization of it once.
    """

    public_id = PublicIdField(prefix="evt")
    organization = models.ForeignKey("marketplace.Organization", models.CASCADE, related_name="events", db_index=False)
    project = models.ForeignKey("marketplace.Project", models.CASCADE, null=True, related_name="events", db_index=False)
    type = models.CharField(max_length=40)
    subject_id = models.CharField(max_length=32)
    at = models.DateTimeField()
    data = models.JSONField(default=dict)
    source = models.CharField(max_length=20)
    row = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["source", "row", "organization"], name="event_once_per_row")]
        indexes = [models.Index(fields=["organization", "id"], name="event_in_order")]

    def __str__(self) -> str:
        return f"{self.type} {self.subject_id}"


class EventMail(models.Model):
    """That people are to be told of an event by e-mail; sent once, tried ever more seldom while it cannot be."""

    event = models.OneToOneField(Event, models.CASCADE, primary_key=True, related_name="mail")
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(F("next_try_at"), condition=Q(sent_at=None), name="event_mail_pending")]

    def __str__(self) -> str:
        return f"mail about {self.event}"


class WebhookEndpoint(models.Model):
    """Where an organization wants its events sent. Its secrets rest sealed; two are good while one is replaced."""

    public_id = PublicIdField(prefix="whk")
    organization = models.ForeignKey("marketplace.Organization", models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=500)
    description = models.CharField(max_length=200, blank=True)
    types = models.JSONField(default=list, help_text="instance.failed, or instance.* for all of a kind; empty: all")
    is_enabled = models.BooleanField(default=True)
    disabled_because = models.CharField(max_length=200, blank=True)
    secret_sealed = models.TextField()
    former_secret_sealed = models.TextField(blank=True)
    former_until = models.DateTimeField(null=True, help_text="until then the former secret signs as well")
    failing_since = models.DateTimeField(null=True, help_text="nothing arrived since then")
    created_by = models.ForeignKey("marketplace.User", models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(former_secret_sealed="", former_until=None)
                | (~Q(former_secret_sealed="") & Q(former_until__isnull=False)),
                name="webhook_former_secret_has_an_end",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization}: {self.url}"


class WebhookDelivery(models.Model):
    """One event on its way to one endpoint. At least once: the receiver tells repeats by the event's id."""

    class State(models.TextChoices):
        PENDING = "pending", _("On its way")
        DELIVERED = "delivered", _("Delivered")
        FAILED = "failed", _("Given up")

    MOVES: dict[str, set[str]] = {
        State.PENDING: {State.DELIVERED, State.FAILED},
        State.DELIVERED: {State.PENDING},  # Sent again because somebody asked.
        State.FAILED: {State.PENDING},
    }

    public_id = PublicIdField(prefix="whd")
    endpoint = models.ForeignKey(WebhookEndpoint, models.CASCADE, related_name="deliveries")
    event = models.ForeignKey(Event, models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=9, choices=State.choices, default=State.PENDING)
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["endpoint", "event"], name="webhook_once_per_event")]
        indexes = [models.Index(F("next_try_at"), condition=Q(state="pending"), name="webhook_pending")]

    def __str__(self) -> str:
        return f"{self.event} to {self.endpoint}: {self.state}"


class WebhookAttempt(models.Model):
    """What came of one try. `status` is null where nobody answered; `answer` is what was answered, cut short."""

    delivery = models.ForeignKey(WebhookDelivery, models.CASCADE, related_name="attempts")
    at = models.DateTimeField()
    status = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=200, blank=True)
    answer = models.TextField(blank=True)
    milliseconds = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.delivery}: {self.status or self.error}"
