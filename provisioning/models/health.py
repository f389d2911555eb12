"""What went wrong with GPUs and nodes, what was done about it, and how clean each GPU was left behind."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class Remediation(models.Model):
    """One fault being repaired: from taking the part out of service until it is back, or a person replaced it."""

    class State(models.TextChoices):
        WAITING = "waiting", _("Held back by the breaker")
        DRAINING = "draining", _("Waits until nothing runs there")
        ACTING = "acting", _("Being repaired")
        VERIFYING = "verifying", _("At the gate")
        STUCK = "stuck", _("Needs somebody: nobody knows how the repair ended")
        CONDEMNED = "condemned", _("To be replaced")
        RETURNED = "returned", _("Back in service")
        REPLACED = "replaced", _("Replaced")
        CANCELLED = "cancelled", _("Part of a larger repair")

    public_id = PublicIdField(prefix="rem")
    node = models.ForeignKey("provisioning.Node", models.CASCADE, related_name="remediations")
    gpu = models.ForeignKey("provisioning.Gpu", models.CASCADE, null=True, related_name="remediations")
    action = models.CharField(max_length=12)
    severity = models.PositiveSmallIntegerField()
    rule = models.CharField(max_length=60)
    table_version = models.CharField(max_length=40)
    reason = models.CharField(max_length=200)
    state = models.CharField(max_length=10, choices=State.choices)
    state_since = models.DateTimeField()
    message = models.TextField(blank=True)
    ladder = models.JSONField(default=list, help_text="the operation of each attempt, in order")
    attempts = models.PositiveSmallIntegerField(default=0, help_text="reserved ones, with those of earlier repairs")
    attempts_max = models.PositiveSmallIntegerField(default=0)
    drain_until = models.DateTimeField(null=True, help_text="null: what runs there may finish, however long it takes")
    clears_at = models.DateTimeField(null=True, help_text="when a fault that does not come again is over")
    is_for_person = models.BooleanField(default=False, help_text="nothing leads to the gate but a manager")
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["gpu"], condition=Q(closed_at=None, gpu__isnull=False), name="gpu_repaired_once_at_a_time"
            ),
            models.UniqueConstraint(
                fields=["node"], condition=Q(closed_at=None, gpu=None), name="node_repaired_once_at_a_time"
            ),
            models.CheckConstraint(
                condition=Q(attempts__lte=models.F("attempts_max")), name="remediation_never_exceeds_its_attempts"
            ),
        ]
        indexes = [models.Index(fields=["node", "-id"], name="remediation_newest_of_node")]

    def __str__(self) -> str:
        return f"{self.rule} of {self.gpu or self.node}"


class HealthEvent(models.Model):
    """What a node told of its health, and the rule that decided what it means; undecided while `decided_at` is null."""

    public_id = PublicIdField(prefix="hev")
    node = models.ForeignKey("provisioning.Node", models.CASCADE, related_name="health_events")
    gpu = models.ForeignKey("provisioning.Gpu", models.CASCADE, null=True, related_name="health_events")
    at = models.DateTimeField()
    received_at = models.DateTimeField(default=timezone.now)
    source = models.CharField(max_length=10)
    code = models.CharField(max_length=40)
    detail = models.CharField(max_length=500, blank=True)
    decided_at = models.DateTimeField(null=True)
    action = models.CharField(max_length=12, blank=True)
    severity = models.PositiveSmallIntegerField(null=True)
    scope = models.CharField(max_length=4, blank=True)
    rule = models.CharField(max_length=60, blank=True)
    table_version = models.CharField(max_length=40, blank=True)
    remediation = models.ForeignKey(Remediation, models.SET_NULL, null=True, related_name="events")

    class Meta:
        indexes = [
            models.Index(fields=["id"], name="health_event_undecided", condition=Q(decided_at=None)),
            models.Index(fields=["node", "-at"], name="health_event_newest_of_node"),
        ]

    def __str__(self) -> str:
        return f"{self.code} of {self.gpu or self.node}"


class Operation(models.Model):
    """One thing that a node is asked to do once. Its result is permanent, also `unknown`, until more is observed."""

    class Kind(models.TextChoices):
        WIPE = "wipe", _("Wipe")
        RESET_GPU = "reset_gpu", _("Reset the GPU")
        REBOOT_NODE = "reboot_node", _("Restart the node")
        VERIFY = "verify", _("Check")

    class Outcome(models.TextChoices):
        PENDING = "pending", _("Under way")
        SUCCEEDED = "succeeded", _("Succeeded")
        FAILED = "failed", _("Failed")
        UNKNOWN = "unknown", _("Unknown")
        CANCELLED = "cancelled", _("Cancelled")

    public_id = PublicIdField(prefix="opr")
    remediation = models.ForeignKey(Remediation, models.CASCADE, null=True, related_name="operations")
    node = models.ForeignKey("provisioning.Node", models.CASCADE, related_name="operations")
    gpu = models.ForeignKey("provisioning.Gpu", models.CASCADE, null=True, related_name="operations")
    kind = models.CharField(max_length=11, choices=Kind.choices)
    attempt = models.PositiveSmallIntegerField(default=1)
    outcome = models.CharField(max_length=9, choices=Outcome.choices, default=Outcome.PENDING)
    message = models.CharField(max_length=500, blank=True)
    boot_id = models.CharField(max_length=64, blank=True, help_text="of the node when this was reserved")
    reserved_at = models.DateTimeField()
    deadline_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["remediation", "kind", "gpu", "attempt"],
                condition=Q(remediation__isnull=False),
                nulls_distinct=False,
                name="operation_once_per_attempt",
            ),
            models.UniqueConstraint(
                fields=["gpu"], condition=Q(kind="wipe", outcome="pending"), name="gpu_wiped_once_at_a_time"
            ),
        ]
        indexes = [models.Index(fields=["node"], name="operation_pending_on_node", condition=Q(outcome="pending"))]

    def __str__(self) -> str:
        return f"{self.kind} of {self.gpu or self.node}, attempt {self.attempt}"


class WipeRecord(models.Model):
    """How a GPU was left behind by a tenant. Without a good one it is never placed again."""

    class Result(models.TextChoices):
        OK = "ok", _("Clean")
        FAILED = "failed", _("Failed")

    public_id = PublicIdField(prefix="wip")
    gpu = models.ForeignKey("provisioning.Gpu", models.CASCADE, related_name="wipes")
    assignment = models.ForeignKey("provisioning.Assignment", models.SET_NULL, null=True, related_name="wipes")
    operation = models.ForeignKey(Operation, models.SET_NULL, null=True, related_name="wipes")
    fence = models.PositiveIntegerField(default=0)
    at = models.DateTimeField()
    method = models.CharField(max_length=80)
    result = models.CharField(max_length=6, choices=Result.choices)
    covered_bytes = models.BigIntegerField(null=True)
    duration_ms = models.PositiveIntegerField(default=0)
    message = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [models.Index(fields=["gpu", "-id"], name="wipe_newest_of_gpu")]

    def __str__(self) -> str:
        return f"{self.gpu}: {self.method}, {self.result}"


class Breaker(models.Model):
    """Stops us from repairing too much at once. One for each offer, and one for the fleet; open: nothing is done."""

    public_id = PublicIdField(prefix="brk")
    offer = models.ForeignKey("marketplace.Offer", models.CASCADE, null=True, related_name="breakers")
    opened_at = models.DateTimeField(null=True)
    reason = models.CharField(max_length=200, blank=True)
    closed_at = models.DateTimeField(null=True, help_text="marks before this do not count any more")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["offer"], nulls_distinct=False, name="breaker_once_per_offer_and_fleet"),
        ]

    def __str__(self) -> str:
        return f"breaker of {self.offer or 'the fleet'}"


class BreakerMark(models.Model):
    """A node that a breaker counts: one that was acted on, or (for the fleet's) one that fell silent."""

    breaker = models.ForeignKey(Breaker, models.CASCADE, related_name="marks")
    node = models.ForeignKey("provisioning.Node", models.CASCADE, related_name="+")
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["breaker", "at"], name="breaker_mark_recent")]

    def __str__(self) -> str:
        return f"{self.node} at {self.at}"
