"""An instance, its life on three axes, and the rows that carry it out."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from django.db import models, transaction
from django.db.models import Q
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.prepared import ask, insertion, values_of
from billing.public_ids import PublicIdField
from provisioning.errors import IllegalMove, StaleInstance

if TYPE_CHECKING:
    from provisioning.models.volumes import VolumeAttachment

log = structlog.get_logger("provisioning.instances")

# Sent within the transaction of each move, as `instance`. Whoever listens sends a message at most: what is to be done
# is found by looking.
moved = Signal()


class Phase(models.TextChoices):
    """Where an instance stands. What each phase costs is a table of its own, `CHARGED_PHASES`."""

    QUEUED = "queued", _("Queued")
    PLACING = "placing", _("Placing")
    PROVISIONING = "provisioning", _("Preparing")
    VERIFYING = "verifying", _("Verifying")
    RUNNING = "running", _("Running")
    STOPPING = "stopping", _("Stopping")
    STOPPED = "stopped", _("Stopped")
    NOTIFIED = "notified", _("Interruption announced")
    DRAINING = "draining", _("Draining")
    INTERRUPTED = "interrupted", _("Interrupted")
    TERMINATING = "terminating", _("Terminating")
    TERMINATED = "terminated", _("Terminated")
    FAILED = "failed", _("Failed")


STARTING = {Phase.QUEUED, Phase.PLACING, Phase.PROVISIONING, Phase.VERIFYING}
# It was told that its GPUs are taken back; its interruption has a state of the same name.
TOLD_PHASES = {Phase.NOTIFIED, Phase.DRAINING}
CHARGED_PHASES = {Phase.RUNNING, Phase.NOTIFIED, Phase.DRAINING}
# In these the customer has no GPUs and nothing is on the way.
AT_REST = {Phase.STOPPED, Phase.INTERRUPTED, Phase.TERMINATED, Phase.FAILED}

MOVES: dict[Phase, set[Phase]] = {
    Phase.QUEUED: {Phase.PLACING, Phase.STOPPING, Phase.TERMINATING, Phase.FAILED},
    Phase.PLACING: {Phase.PROVISIONING, Phase.STOPPING, Phase.INTERRUPTED, Phase.TERMINATING, Phase.FAILED},
    Phase.PROVISIONING: {Phase.VERIFYING, Phase.STOPPING, Phase.INTERRUPTED, Phase.TERMINATING, Phase.FAILED},
    Phase.VERIFYING: {Phase.RUNNING, Phase.STOPPING, Phase.INTERRUPTED, Phase.TERMINATING, Phase.FAILED},
    Phase.RUNNING: {Phase.STOPPING, Phase.NOTIFIED, Phase.TERMINATING, Phase.FAILED},
    Phase.STOPPING: {Phase.STOPPED, Phase.TERMINATING, Phase.FAILED},
    Phase.STOPPED: {Phase.QUEUED, Phase.TERMINATING},
    Phase.NOTIFIED: {Phase.RUNNING, Phase.DRAINING, Phase.STOPPING, Phase.TERMINATING, Phase.FAILED},
    Phase.DRAINING: {Phase.INTERRUPTED, Phase.TERMINATING, Phase.FAILED},
    Phase.INTERRUPTED: {Phase.QUEUED, Phase.TERMINATING},
    Phase.TERMINATING: {Phase.TERMINATED},
    Phase.FAILED: {Phase.QUEUED, Phase.TERMINATING},
    Phase.TERMINATED: set(),
}


class Reason(models.TextChoices):
    """Why an instance is where it is: a closed list, so that programs may rely on it."""

    NONE = "", ""
    EXITED = "exited", _("Its command ended")
    USER = "user", _("Asked by a user")
    OPERATOR = "operator", _("Asked by the operator")
    RESERVATION_END = "reservation_end", _("The reservation that it runs in ends")
    NO_FUNDS = "no_funds", _("The organization could not pay any more")
    BUDGET = "budget", _("A budget is used up")
    IDLE = "idle", _("It was idle")
    NO_CAPACITY = "no_capacity", _("No GPUs became free in time")
    GPU_FAULT = "gpu_fault", _("A GPU broke")
    NODE_FAILED = "node_failed", _("The node could not prepare it")
    NODE_LOST = "node_lost", _("The node was lost")
    TIMED_OUT = "timed_out", _("A step took too long")
    INTERNAL = "internal", _("An error of ours")
    OUTBID = "outbid", _("Outbid")
    CAPACITY = "capacity", _("The capacity is needed")
    MAINTENANCE = "maintenance", _("Maintenance")
    OWNER_RECALL = "owner_recall", _("Recalled by the holder of the reservation")
    SIMULATED = "simulated", _("Simulated")


# What the customer could not help; an instance that asked for it is started again elsewhere.
INFRASTRUCTURE = {Reason.GPU_FAULT, Reason.NODE_FAILED, Reason.NODE_LOST, Reason.TIMED_OUT, Reason.INTERNAL}


class Instance(models.Model):
    """What a customer rents: `replicas` x `gpus_per_replica` GPUs running a command, all or nothing."""

    class Desired(models.TextChoices):
        RUNNING = "running", _("Running")
        STOPPED = "stopped", _("Stopped")
        TERMINATED = "terminated", _("Terminated")

    class Health(models.TextChoices):
        UNKNOWN = "unknown", _("Unknown")
        HEALTHY = "healthy", _("Healthy")
        DEGRADED = "degraded", _("Degraded")
        UNREACHABLE = "unreachable", _("Unreachable")

    class Market(models.TextChoices):
        ON_DEMAND = "on_demand", _("On demand")
        SPOT = "spot", _("Spot")
        RESERVED = "reserved", _("Reserved")

    class Lease(models.TextChoices):
        """How long it goes on where its node cannot reach us; `settings.ASSIGNMENT_LEASE_S` says the seconds."""

        STRICT = "strict", _("Strict")
        STICKY = "sticky", _("Sticky")

    class Attach(models.TextChoices):
        """Whether it runs inside a reservation of its project: where there is room, never, or nowhere else."""

        AUTO = "auto", _("Where one has room")
        FORBID = "forbid", _("Never")
        STRICT = "strict", _("Nowhere else")

    class OnFailure(models.TextChoices):
        STOP = "stop", _("Stop")
        RESTART = "restart", _("Start again elsewhere")

    # What `instances.create` claimed for this very object, so that its answer need not ask again; no column.
    claimed: Sequence["Assignment"] = ()
    # The same for what it attached; None where nobody knows without asking.
    attached: Sequence["VolumeAttachment"] | None = None

    public_id = PublicIdField(prefix="ins")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="instances", db_index=False)
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="instances")
    price_version = models.ForeignKey("billing.PriceVersion", models.PROTECT, related_name="+")
    name = models.CharField(max_length=63)
    market = models.CharField(max_length=10, choices=Market.choices, default=Market.ON_DEMAND)
    attach = models.CharField(max_length=6, choices=Attach.choices, default=Attach.AUTO)
    reservation = models.ForeignKey(
        "marketplace.Reservation",
        models.PROTECT,
        null=True,
        related_name="instances",
        help_text="inside which its current run is, paid ahead",
    )
    replicas = models.PositiveIntegerField()
    gpus_per_replica = models.PositiveSmallIntegerField()
    image = models.CharField(max_length=512, blank=True, help_text="OCI reference; empty: a process on the node")
    command = models.JSONField()
    env = models.JSONField(default=dict)
    ports = models.JSONField(default=list, help_text="what the container publishes")
    lease = models.CharField(max_length=6, choices=Lease.choices, default=Lease.STICKY)
    on_failure = models.CharField(max_length=7, choices=OnFailure.choices, default=OnFailure.STOP)
    placement = models.JSONField(default=dict, help_text="strategy, level, required, max_skew, where asked for")
    # What `work.Work` says of it. Manifests are known by their SHA-256, as the control plane itself worked it out.
    inputs = models.CharField(max_length=64, blank=True, help_text="the manifest of what it begins with")
    outputs = models.JSONField(default=list, help_text="relative paths or globs of what it leaves behind")
    checkpoint = models.CharField(max_length=255, blank=True, help_text="a relative folder that is kept while it runs")
    checkpoint_sha256 = models.CharField(max_length=64, blank=True, help_text="the manifest of the last one kept")
    outputs_sha256 = models.CharField(max_length=64, blank=True, help_text="the manifest of what it left behind")
    has_network = models.BooleanField(default=True)
    avoid_nodes = models.JSONField(default=list, help_text="public ids of nodes on which it never runs")
    counters = models.JSONField(null=True, help_text="port, path and names of what it counts itself, most_per_s")
    paid_by = models.CharField(max_length=64, blank=True, help_text="what pays for its hours, where its owner does not")
    time_limit_s = models.PositiveIntegerField(null=True, help_text="from when it has its GPUs: charged no longer")
    disk_bytes = models.BigIntegerField(null=True, help_text="what it may keep in its work folder")
    is_off_limits = models.BooleanField(
        default=False, db_default=False, help_text="nobody of its project enters, starts or ends it"
    )

    desired = models.CharField(max_length=10, choices=Desired.choices, default=Desired.RUNNING)
    phase = models.CharField(max_length=12, choices=Phase.choices, default=Phase.QUEUED)
    phase_since = models.DateTimeField(default=timezone.now)
    health = models.CharField(max_length=12, choices=Health.choices, default=Health.UNKNOWN)
    reason = models.CharField(max_length=20, choices=Reason.choices, default=Reason.NONE, blank=True)
    message = models.TextField(blank=True)
    notice = models.JSONField(null=True, help_text="what the message says, as a code and its numbers, where it has one")
    retryable = models.BooleanField(default=False)
    exit_code = models.IntegerField(null=True)
    restarts = models.PositiveIntegerField(default=0, help_text="how often we started it again after a fault of ours")
    restart_at = models.DateTimeField(null=True, help_text="when we try to start it again by ourselves")
    failed_on = models.ForeignKey(
        "provisioning.Node", models.SET_NULL, null=True, related_name="+", help_text="the node that failed its last run"
    )
    admitted_at = models.DateTimeField(null=True, help_text="spot: when its bid won the GPUs that it waits for")
    # Each start is a run of its own; its number is the fence that nodes compare.
    run = models.PositiveIntegerField(default=1)
    quota_held = models.PositiveIntegerField(default=0)
    ordered_with = models.ForeignKey(
        "marketplace.ApiToken",
        models.SET_NULL,
        null=True,
        related_name="+",
        help_text="the token that started this run",
    )
    generation = models.PositiveIntegerField(default=1)
    observed_generation = models.PositiveIntegerField(default=0)

    created_at = models.DateTimeField(default=timezone.now)
    ready_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(replicas__gte=1, gpus_per_replica__gte=1), name="instance_has_gpus"),
            models.UniqueConstraint(
                fields=["project", "name"], condition=~Q(phase="terminated"), name="instance_name_once_per_project"
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="instance_newest_first"),
            models.Index(fields=["phase", "id"], name="instance_alive", condition=~Q(phase="terminated")),
            models.Index(fields=["restart_at"], name="instance_to_restart", condition=Q(restart_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def gpus(self) -> int:
        return self.replicas * self.gpus_per_replica

    @property
    def is_starting(self) -> bool:
        return Phase(self.phase) in STARTING

    @property
    def is_charged(self) -> bool:
        return Phase(self.phase) in CHARGED_PHASES

    def charged_until(self, at: datetime) -> datetime:
        """Return when the meter of this run closes if it ends at `at`: with its time limit, however late we look."""
        if self.time_limit_s is None or self.ready_at is None:
            return at
        return min(at, self.ready_at + timedelta(seconds=self.time_limit_s))

    def _may_restart(self, reason: str, changes: Mapping[str, object]) -> bool:
        """Return whether a failure is to be followed by a start elsewhere: asked for, and the fault was ours."""
        if self.on_failure != Instance.OnFailure.RESTART or not changes.get("retryable", self.retryable):
            return False
        if reason == Reason.NODE_FAILED and self.ready_at is None and self.restarts == 0:
            return False  # What no node could ever prepare: an image that does not exist would fail everywhere.
        # A restart of ours that found no room in its time is tried again, too; a customer's own start is not.
        return reason in INFRASTRUCTURE or (reason == Reason.NO_CAPACITY and self.restarts > 0)

    def queue(self, *, due_at: datetime | None) -> None:
        """Write this new instance, which queues, with its first event and its workflow. One statement."""
        assert self.phase == Phase.QUEUED
        ((self.pk,),) = ask(QUEUE, {**values_of(self), "due_at": due_at})
        self._state.adding = False

    @transaction.atomic
    def move_to(
        self,
        phase: Phase,
        *,
        at: datetime,
        reason: str = "",
        message: str = "",
        notice: Mapping[str, object] | None = None,
        **changes: object,
    ) -> None:
        """Change phase if the map allows it, and write down that it happened.

        Raises IllegalMove when the map forbids it and StaleInstance when
        somebody else moved first. `changes` are columns set by the same update.
        """
        old = Phase(self.phase)
        if phase not in MOVES[old]:
            raise IllegalMove(f"{self.public_id}: {old} cannot become {phase}")
        # What its reservation no longer pays for would cost by the hour, so only its customer starts it again.
        is_interrupted = phase == Phase.INTERRUPTED and reason != Reason.RESERVATION_END
        is_to_restart = is_interrupted or (phase == Phase.FAILED and self._may_restart(reason, changes))
        restart_at = at if is_to_restart else None
        changes = {**changes, "phase": phase, "phase_since": at, "reason": reason, "message": message}
        changes |= {"restart_at": restart_at, "notice": notice}
        if not Instance.objects.filter(pk=self.pk, phase=old, run=self.run).update(**changes):
            raise StaleInstance(f"{self.public_id} is no longer {old}")
        if old in TOLD_PHASES and phase not in TOLD_PHASES | {Phase.RUNNING, Phase.INTERRUPTED}:
            # It ended otherwise meanwhile. What that is worth is worked out by `interruptions.settle_due`.
            self.interruptions.filter(state__in=TOLD_PHASES).update(state="ended", ended_at=at)
        spent = max(timedelta(0), at - self.phase_since)
        milliseconds = spent // timedelta(milliseconds=1)
        for name, value in changes.items():
            setattr(self, name, value)
        event = InstanceEvent(
            instance=self,
            at=at,
            run=self.run,
            old_phase=old,
            new_phase=phase,
            reason=reason,
            message=message,
            notice=notice,
            milliseconds=milliseconds,
        )
        ask(insertion(InstanceEvent), values_of(event))
        log.info(
            "moved",
            instance=self.public_id,
            project=self.project_id,
            old=old,
            new=phase,
            reason=reason,
            milliseconds=milliseconds,
        )
        moved.send(sender=Instance, instance=self)


class InstanceEvent(models.Model):
    """One move of an instance, `milliseconds` after it came to the old phase; or a note on the machine under it."""

    class Kind(models.TextChoices):
        PHASE = "phase"
        HEALTH = "health"

    kind = models.CharField(max_length=6, choices=Kind.choices, default=Kind.PHASE)
    instance = models.ForeignKey(Instance, models.CASCADE, related_name="events")
    at = models.DateTimeField()
    run = models.PositiveIntegerField()
    old_phase = models.CharField(max_length=12, choices=Phase.choices, blank=True)
    new_phase = models.CharField(max_length=12, choices=Phase.choices)
    reason = models.CharField(max_length=20, choices=Reason.choices, blank=True)
    message = models.TextField(blank=True)
    notice = models.JSONField(null=True, help_text="what the message says, as a code and its numbers, where it has one")
    milliseconds = models.BigIntegerField(default=0)

    class Meta:
        indexes = [
            models.Index(fields=["old_phase", "-id"], name="event_recent_by_phase"),
            models.Index(fields=["at"], condition=Q(new_phase="failed"), name="event_failed_at"),
        ]

    def __str__(self) -> str:
        return f"{self.instance}: {self.old_phase} -> {self.new_phase}"


class Workflow(models.Model):
    """The leased row that walks one instance through life; `step` names a function of `steps.STEPS`."""

    instance = models.OneToOneField(Instance, models.CASCADE, primary_key=True)
    step = models.CharField(max_length=30)
    step_since = models.DateTimeField()
    due_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)

    class Meta:
        indexes = [models.Index(fields=["due_at"], name="workflow_due", condition=Q(due_at__isnull=False))]

    def __str__(self) -> str:
        return f"{self.instance} at {self.step}"


QUEUE = f"""
WITH queued AS ({insertion(Instance)} RETURNING id), event AS (
    INSERT INTO provisioning_instanceevent (kind, instance_id, at, run, old_phase, new_phase, reason, message,
        milliseconds)
    SELECT 'phase', id, %(created_at)s, %(run)s::int, '', 'queued', '', '', 0 FROM queued
), workflow AS (
    INSERT INTO provisioning_workflow (instance_id, step, step_since, due_at, failures, last_error)
    SELECT id, 'place', %(created_at)s, %(due_at)s::timestamptz, 0, '' FROM queued
)
SELECT id FROM queued
"""  # noqa: S608  nothing in it comes from outside


class Assignment(models.Model):
    """One replica of one run of an instance on one node: what we want there and what the node says."""

    class Desired(models.TextChoices):
        PREPARED = "prepared"
        RUNNING = "running"
        GONE = "gone"

    class Observed(models.TextChoices):
        PENDING = "pending"
        PREPARING = "preparing"
        PREPARED = "prepared"
        RUNNING = "running"
        EXITED = "exited"
        FAILED = "failed"
        WIPING = "wiping"
        GONE = "gone"

    # What a node is at after the command has ended; until then one that runs a command names no step.
    SENDING = ("checkpoint", "outputs")

    public_id = PublicIdField(prefix="asg")
    instance = models.ForeignKey(Instance, models.PROTECT, related_name="assignments", db_index=False)
    node = models.ForeignKey("provisioning.Node", models.PROTECT, related_name="assignments")
    replica = models.PositiveIntegerField()
    fence = models.PositiveIntegerField()
    gpu_uuids = models.JSONField()
    desired = models.CharField(max_length=8, choices=Desired.choices, default=Desired.PREPARED)
    observed = models.CharField(max_length=9, choices=Observed.choices, default=Observed.PENDING)
    exit_code = models.IntegerField(null=True)
    exited_at = models.DateTimeField(null=True)
    message = models.TextField(blank=True)
    log_bytes = models.BigIntegerField(default=0)
    progress = models.JSONField(null=True, help_text="of a long step: step, done_bytes, total_bytes, bytes_per_s")
    sending_since = models.DateTimeField(null=True, help_text="since when its node sends what it left behind")
    ports = models.JSONField(default=dict, help_text="by the container's port, where the node publishes it")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance", "fence", "replica"], name="assignment_once_per_replica_and_run"
            ),
        ]
        indexes = [
            # What a node is told: all that is not gone yet.
            models.Index(fields=["node"], name="assignment_live_on_node", condition=~Q(observed="gone")),
        ]

    def __str__(self) -> str:
        return f"{self.instance} [{self.replica}]"


class LogChunk(models.Model):
    """A piece of a replica's output, as the node shipped it; offsets count bytes from the start of the run."""

    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="log_chunks")
    offset = models.BigIntegerField()
    data = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["assignment", "offset"], name="log_chunk_once_per_offset")]

    def __str__(self) -> str:
        return f"{self.assignment} from {self.offset}"
