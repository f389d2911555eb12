"""Work that runs to an end: a job, its tasks, each attempt at one of them, and what waits for what."""

from datetime import datetime

import structlog
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.errors import IllegalMove, StaleInstance

log = structlog.get_logger("marketplace.jobs")


class JobState(models.TextChoices):
    """Where a job stands; what may follow is in `JOB_MOVES`."""

    WAITING = "waiting", _("Waits for other jobs")
    ACTIVE = "active", _("Active")
    ENDING = "ending", _("Ending")
    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


class TaskState(models.TextChoices):
    """Where a task stands; what may follow is in `TASK_MOVES`."""

    PENDING = "pending", _("Waiting")
    RUNNING = "running", _("Running")
    VERIFYING = "verifying", _("Being verified")
    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


class AttemptState(models.TextChoices):
    """How an attempt went; what may follow is in `ATTEMPT_MOVES`."""

    RUNNING = "running", _("Running")
    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")
    FAULTED = "faulted", _("Lost to a fault of ours")
    REFUSED = "refused", _("Its result was not accepted")
    CANCELLED = "cancelled", _("Cancelled")


JOB_MOVES: dict[JobState, set[JobState]] = {
    JobState.WAITING: {JobState.ACTIVE, JobState.ENDING, JobState.FAILED, JobState.CANCELLED},
    JobState.ACTIVE: {JobState.ENDING, JobState.SUCCEEDED, JobState.FAILED},
    JobState.ENDING: {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED},
    JobState.SUCCEEDED: set(),
    JobState.FAILED: set(),
    JobState.CANCELLED: set(),
}
OPEN_JOBS = {JobState.WAITING, JobState.ACTIVE, JobState.ENDING}

TASK_MOVES: dict[TaskState, set[TaskState]] = {
    TaskState.PENDING: {TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELLED},
    TaskState.RUNNING: {
        TaskState.VERIFYING, TaskState.SUCCEEDED, TaskState.PENDING, TaskState.FAILED, TaskState.CANCELLED,
    },
    TaskState.VERIFYING: {TaskState.SUCCEEDED, TaskState.PENDING, TaskState.FAILED, TaskState.CANCELLED},
    TaskState.SUCCEEDED: set(),
    TaskState.FAILED: set(),
    TaskState.CANCELLED: set(),
}  # fmt: skip
OPEN_TASKS = {TaskState.PENDING, TaskState.RUNNING, TaskState.VERIFYING}

ATTEMPT_MOVES: dict[AttemptState, set[AttemptState]] = {
    AttemptState.RUNNING: {
        AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.FAULTED, AttemptState.CANCELLED,
    },
    AttemptState.SUCCEEDED: {AttemptState.REFUSED},
    AttemptState.REFUSED: set(),
    AttemptState.FAILED: set(),
    AttemptState.FAULTED: set(),
    AttemptState.CANCELLED: set(),
}  # fmt: skip


class EndReason(models.TextChoices):
    """Why an attempt, a task or a job ended as it did: a closed list, so that programs may rely on it."""

    NONE = "", ""
    EXIT_CODE = "exit_code", _("Its command failed")
    OUTPUTS = "outputs", _("Outputs that it declared are missing")
    TIME_LIMIT = "time_limit", _("It took longer than its time limit")
    STOPPED = "stopped", _("Its instance was ended by a user")
    FAULT = "fault", _("A fault of ours")
    INTERRUPTED = "interrupted", _("Its GPUs were taken back")
    FUNDS = "funds", _("There was not enough credit")
    NOT_VERIFIED = "not_verified", _("Its result was not accepted")
    TASKS = "tasks", _("Not every task succeeded")
    DEPENDENCY = "dependency", _("A job that it needs did not succeed")
    DEADLINE = "deadline", _("Its deadline passed")
    COST = "cost", _("The most that it may cost was reached")
    CANCELLED = "cancelled", _("It was cancelled")


class Job(models.Model):
    """Tasks that each run the same command to its end, with parameters of their own.

    How many tasks are in each state is kept beside them, and the database holds
    that they add up.
    """

    State = JobState

    class Market(models.TextChoices):
        ON_DEMAND = "on_demand", _("On demand")
        SPOT = "spot", _("Spot")
        RESERVED = "reserved", _("Reserved")
        CHEAPEST = "cheapest", _("Cheapest before the deadline")

    class Why(models.TextChoices):
        """What keeps its next task from starting."""

        NONE = "", ""
        PARALLEL = "parallel", _("As many run at once as it allows")
        CAPACITY = "capacity", _("No GPUs are free")
        SHARE = "share", _("Other jobs wait for the same GPUs, and it has its share")
        PRICE = "price", _("It waits for a lower price")
        FUNDS = "funds", _("There is not enough credit")
        QUOTA = "quota", _("A quota is used up")
        BUDGET = "budget", _("It would pass a budget")
        COST = "cost", _("What runs may use up all that it may cost")
        BACK_OFF = "back_off", _("What failed is tried again in a moment")
        REFUSED = "refused", _("The order is refused as it is")

    public_id = PublicIdField(prefix="job")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="jobs")
    user = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+", help_text="who submitted it")
    token = models.ForeignKey("marketplace.ApiToken", models.PROTECT, null=True, related_name="+")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="jobs")
    name = models.CharField(max_length=63)
    spec = models.JSONField(help_text="as it was checked, with all defaults; tasks have their own parameters")
    spec_sha256 = models.CharField(max_length=64, help_text="of the spec's canonical text (RFC 8785)")
    contract = models.CharField(max_length=32, blank=True, help_text="the version whose terms it is paid by")
    market = models.CharField(max_length=10, choices=Market.choices, default=Market.ON_DEMAND)
    gpus = models.PositiveSmallIntegerField(help_text="of each replica of a task")
    replicas = models.PositiveIntegerField(default=1)
    parallel = models.PositiveIntegerField(null=True, help_text="the most tasks at once")
    retries = models.PositiveSmallIntegerField(
        default=0, help_text="after failures of its own; faults of ours are free"
    )
    time_limit_s = models.PositiveIntegerField(null=True, help_text="of one attempt, from when it has its GPUs")
    priority = models.SmallIntegerField(default=0, help_text="the highest first, within its project")
    deadline = models.DateTimeField(null=True)
    max_price_micros = models.BigIntegerField(null=True, help_text="the most that a GPU-hour may cost")
    most_micros = models.BigIntegerField(null=True, help_text="the most that it can cost; null: nobody has set a limit")
    attempt_micros = models.BigIntegerField(
        default=0, help_text="what an attempt costs the platform by the list at most, where a contract pays for results"
    )
    verify_micros = models.BigIntegerField(
        default=0, help_text="what verifying one result costs the platform by the list at most, where that takes a node"
    )
    spent_micros = models.BigIntegerField(default=0, help_text="by attempts that have ended")

    size = models.PositiveIntegerField(help_text="how many tasks it has")
    pending = models.PositiveIntegerField()
    running = models.PositiveIntegerField(default=0)
    verifying = models.PositiveIntegerField(default=0)
    succeeded = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)

    state = models.CharField(max_length=9, choices=JobState.choices, default=JobState.ACTIVE)
    state_since = models.DateTimeField(default=timezone.now)
    reason = models.CharField(max_length=12, choices=EndReason.choices, default=EndReason.NONE, blank=True)
    message = models.TextField(blank=True)
    why = models.CharField(max_length=8, choices=Why.choices, default=Why.NONE, blank=True)
    hindrance = models.TextField(blank=True, help_text="the same in words, as whoever refused it said it")
    held_until = models.DateTimeField(
        null=True, help_text="until when something of its customer's own held tasks back; null: nothing did"
    )
    left_since = models.DateTimeField(
        null=True, help_text="since when whoever submitted it may not rent any more; null: they may"
    )
    look_at = models.DateTimeField(null=True, help_text="when a sweep looks at it next; null: once something ends")
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, help_text="when its first attempt began")
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    size=F("pending") + F("running") + F("verifying") + F("succeeded") + F("failed") + F("cancelled")
                ),
                name="job_counts_each_task_once",
            ),
            models.CheckConstraint(condition=Q(size__gte=1, gpus__gte=1, replicas__gte=1), name="job_has_tasks"),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "active", "ending"], ended_at=None)
                | (Q(state__in=["succeeded", "failed", "cancelled"]) & Q(ended_at__isnull=False)),
                name="job_has_its_end_when_it_is_over",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "active", "ending"]) | Q(pending=0, running=0, verifying=0),
                name="job_is_over_when_its_tasks_are",
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="job_newest_first"),
            models.Index(fields=["look_at"], name="job_to_look_at", condition=Q(look_at__isnull=False)),
            models.Index(
                fields=["offer", "project", "-priority", "id"],
                name="job_queue",
                condition=Q(state="active", pending__gt=0),
            ),
            models.Index(fields=["contract"], name="job_of_contract", condition=~Q(contract="")),
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.name}"

    @property
    def all_gpus(self) -> int:
        """How many GPUs one task takes."""
        return self.gpus * self.replicas

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_JOBS

    @transaction.atomic
    def move_to(self, state: JobState, *, at: datetime, reason: str = "", message: str = "", **changes: object) -> None:
        """Change state if the map allows it, and write down that it happened.

        Raises IllegalMove when the map forbids it and StaleInstance when somebody else moved first.
        """
        old = JobState(self.state)
        if state not in JOB_MOVES[old]:
            raise IllegalMove(f"{self.public_id}: {old} cannot become {state}")
        changes = {**changes, "state": state, "state_since": at, "reason": reason, "message": message}
        if state not in OPEN_JOBS:
            changes |= {"ended_at": at, "look_at": None, "why": "", "hindrance": ""}
        if not Job.objects.filter(pk=self.pk, state=old).update(**changes):
            raise StaleInstance(f"{self.public_id} is no longer {old}")
        for name, value in changes.items():
            setattr(self, name, value)
        JobEvent.objects.create(job=self, at=at, old_state=old, new_state=state, reason=reason, message=message)
        log.info("moved", job=self.public_id, old=old, new=state, reason=reason)


class Task(models.Model):
    """One piece of a job, which succeeds once: by the attempt whose number is `attempts`. Its name is job/index."""

    State = TaskState

    job = models.ForeignKey(Job, models.PROTECT, related_name="tasks")
    index = models.PositiveIntegerField()
    parameters = models.JSONField(default=dict, help_text="texts by name: variables of its environment")
    state = models.CharField(max_length=9, choices=TaskState.choices, default=TaskState.PENDING)
    state_since = models.DateTimeField(default=timezone.now)
    reason = models.CharField(max_length=12, choices=EndReason.choices, default=EndReason.NONE, blank=True)
    message = models.TextField(blank=True)
    attempts = models.PositiveIntegerField(default=0, help_text="how often it was tried")
    failures = models.PositiveIntegerField(default=0, help_text="of those, how many count against its retries")
    faults = models.PositiveIntegerField(default=0, help_text="of those, how many a fault of ours ended")
    not_before = models.DateTimeField(null=True, help_text="when it may be tried again")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "index"], name="task_once_per_index"),
            models.CheckConstraint(
                condition=Q(attempts__gte=F("failures") + F("faults")), name="task_was_tried_as_often_as_it_failed"
            ),
        ]
        indexes = [
            models.Index(fields=["job", "index"], name="task_to_try", condition=Q(state="pending")),
            models.Index(fields=["job", "state", "index"], name="task_by_state"),
        ]

    def __str__(self) -> str:
        return f"{self.job.public_id}/{self.index}"


class Attempt(models.Model):
    """One instance that tries one task; numbers begin at 1."""

    State = AttemptState

    task = models.ForeignKey(Task, models.PROTECT, related_name="tries")
    job = models.ForeignKey(Job, models.PROTECT, related_name="attempts")
    number = models.PositiveIntegerField()
    instance = models.OneToOneField("provisioning.Instance", models.PROTECT, related_name="attempt")
    state = models.CharField(max_length=9, choices=AttemptState.choices, default=AttemptState.RUNNING)
    reason = models.CharField(max_length=12, choices=EndReason.choices, default=EndReason.NONE, blank=True)
    message = models.TextField(blank=True)
    exit_code = models.IntegerField(null=True)
    outputs_sha256 = models.CharField(max_length=64, blank=True, help_text="the manifest of what it left behind")
    checkpoint_sha256 = models.CharField(max_length=64, blank=True, help_text="from which another attempt goes on")
    cost_micros = models.BigIntegerField(default=0, help_text="of its hours, at their own price")
    created_at = models.DateTimeField()
    held_until = models.DateTimeField(
        null=True, help_text="until when something of its customer's own held its task back; null: nothing did"
    )
    began_at = models.DateTimeField(null=True, help_text="when it had its GPUs")
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "number"], name="attempt_once_per_number"),
            models.UniqueConstraint(fields=["task"], condition=Q(state="running"), name="attempt_one_at_a_time"),
            models.UniqueConstraint(
                fields=["task"], condition=Q(state="succeeded"), name="attempt_succeeds_again_only_if_refused"
            ),
            models.CheckConstraint(
                condition=Q(state="running", ended_at=None) | (~Q(state="running") & Q(ended_at__isnull=False)),
                name="attempt_has_its_end_when_it_is_over",
            ),
        ]
        indexes = [
            models.Index(fields=["job", "id"], name="attempt_under_way", condition=Q(state="running")),
            models.Index(fields=["job"], name="attempt_lost_by_us", condition=Q(state="faulted")),
        ]

    def __str__(self) -> str:
        return f"{self.task} #{self.number}"


class JobDependency(models.Model):
    """That a job begins only once another one succeeded."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="needs")
    needs = models.ForeignKey(Job, models.PROTECT, related_name="needed_by")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "needs"], name="job_needs_another_once"),
            models.CheckConstraint(condition=~Q(job=F("needs")), name="job_does_not_need_itself"),
        ]

    def __str__(self) -> str:
        return f"{self.job} needs {self.needs}"


class JobEvent(models.Model):
    """One move of a job, or of one of its tasks."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="events")
    task = models.ForeignKey(Task, models.CASCADE, null=True, related_name="events")
    at = models.DateTimeField()
    old_state = models.CharField(max_length=9, blank=True)
    new_state = models.CharField(max_length=9)
    reason = models.CharField(max_length=12, choices=EndReason.choices, default=EndReason.NONE, blank=True)
    message = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.task or self.job}: {self.old_state} -> {self.new_state}"
