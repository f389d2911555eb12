"""The shapes of requests and answers about jobs."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.api.contract_shapes import ClaimVerdictAnswer
from marketplace.api.shapes import ActionAnswer, NamedRef, Shape, Text
from marketplace.jobs.schema import SHA256
from marketplace.models import AttemptState, ClaimState, EndReason, Job, JobState, TaskState
from provisioning.models import Phase


class JobQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    state = serializers.ChoiceField(choices=JobState.choices, required=False)
    name = serializers.CharField(max_length=63, required=False)


class TaskQuery(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=TaskState.choices, required=False)


class AttemptQuery(serializers.Serializer[Any]):
    attempt = serializers.IntegerField(min_value=1, max_value=2**31 - 1, required=False, help_text="default: the last")


@extend_schema_field(OpenApiTypes.OBJECT)
class AnyJob(serializers.Field[Any, Any, Any, Any]):
    """A job as docs/job.schema.json says; its faults are told by the verb, each with its place."""

    def to_internal_value(self, data: Any) -> Any:
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class SubmitJobs(Shape):
    project = Text(max_length=32, required=False, help_text="default: the token's or the only one")
    file = Text(required=False, trim_whitespace=False, help_text="a job file, YAML or JSON; instead of jobs")
    jobs = serializers.ListField(
        child=AnyJob(), required=False, help_text="jobs as docs/job.schema.json describes them; instead of file"
    )
    folders = serializers.DictField(
        child=serializers.RegexField(SHA256),
        required=False,
        help_text="the manifest (SHA-256) of each folder that the jobs name as inputs",
    )


class TaskCounts(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    pending = serializers.IntegerField()
    running = serializers.IntegerField()
    verifying = serializers.IntegerField()
    succeeded = serializers.IntegerField()
    failed = serializers.IntegerField()
    cancelled = serializers.IntegerField()


class JobProgressAnswer(serializers.Serializer[Any]):
    percent = serializers.IntegerField(help_text="tasks that are over; 100 means all")
    per_hour = serializers.IntegerField(allow_null=True, help_text="tasks that ended, at the pace of the last minutes")
    seconds_left = serializers.IntegerField(allow_null=True, help_text="what the rest takes at that pace")


class JobCost(serializers.Serializer[Any]):
    currency = serializers.CharField()
    spent = serializers.CharField(
        help_text="by its attempts so far, at their own prices; under a contract by results that were paid"
    )
    most = serializers.CharField(allow_null=True, help_text="the most that it can cost; null: nobody has set a limit")


class JobWaits(serializers.Serializer[Any]):
    why = serializers.ChoiceField(choices=[(value, label) for value, label in Job.Why.choices if value])
    message = serializers.CharField()


class JobActions(serializers.Serializer[Any]):
    cancel = ActionAnswer()


class JobAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    name = serializers.CharField()
    project = NamedRef()
    offer = serializers.CharField()
    market = serializers.ChoiceField(choices=Job.Market.choices)
    gpus = serializers.IntegerField(help_text="of each replica")
    replicas = serializers.IntegerField(help_text="of each task")
    state = serializers.ChoiceField(choices=JobState.choices)
    state_since = serializers.DateTimeField()
    reason = serializers.ChoiceField(choices=EndReason.choices, allow_null=True)
    message = serializers.CharField()
    waits_for = JobWaits(allow_null=True, help_text="what keeps its next task from starting")
    tasks = TaskCounts()
    progress = JobProgressAnswer()
    cost = JobCost()
    retries = serializers.IntegerField()
    parallel = serializers.IntegerField(allow_null=True)
    priority = serializers.IntegerField()
    time_limit_s = serializers.IntegerField(allow_null=True)
    deadline = serializers.DateTimeField(allow_null=True)
    contract = serializers.CharField(allow_null=True)
    spec_sha256 = serializers.CharField()
    actions = JobActions()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)


class JobDetailAnswer(JobAnswer):
    spec = serializers.DictField()
    needs = NamedRef(many=True)


class JobsAnswer(serializers.Serializer[Any]):
    data = JobAnswer(many=True)  # type: ignore[assignment]


class RehearsedJob(serializers.Serializer[Any]):
    name = serializers.CharField()
    offer = serializers.CharField()
    market = serializers.ChoiceField(choices=Job.Market.choices)
    tasks = serializers.IntegerField()
    currency = serializers.CharField()
    most = serializers.CharField(allow_null=True)


class RehearsedJobs(serializers.Serializer[Any]):
    data = RehearsedJob(many=True)  # type: ignore[assignment]
    folders = serializers.ListField(child=serializers.CharField(), help_text="to be uploaded before they are submitted")


class TaskAttemptAnswer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    instance = serializers.CharField()
    phase = serializers.ChoiceField(choices=Phase.choices, help_text="of its instance")
    state = serializers.ChoiceField(choices=AttemptState.choices)
    reason = serializers.ChoiceField(choices=EndReason.choices, allow_null=True)
    message = serializers.CharField()
    exit_code = serializers.IntegerField(allow_null=True)
    cost = serializers.CharField(help_text="once it has ended")
    outputs = serializers.CharField(allow_null=True, help_text="the manifest of what it left behind")
    checkpoint = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    began_at = serializers.DateTimeField(allow_null=True, help_text="when it had its GPUs")
    ended_at = serializers.DateTimeField(allow_null=True)


class TaskClaimAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    state = serializers.ChoiceField(choices=ClaimState.choices)
    paid = serializers.CharField()
    given_back = serializers.CharField(help_text="of what was paid")
    verdicts = ClaimVerdictAnswer(many=True, help_text="the first one first")
    receipts = serializers.ListField(child=serializers.CharField(), help_text="ids; read them at /receipts/{id}")


class TaskAnswer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    state = serializers.ChoiceField(choices=TaskState.choices)
    state_since = serializers.DateTimeField()
    reason = serializers.ChoiceField(choices=EndReason.choices, allow_null=True)
    message = serializers.CharField()
    parameters = serializers.DictField(child=serializers.CharField())
    attempts = serializers.IntegerField()
    failures = serializers.IntegerField(help_text="that count against its retries")
    faults = serializers.IntegerField(help_text="of the platform, which count nothing")
    claim = TaskClaimAnswer(allow_null=True, help_text="of its result, under a contract")


class TaskListItem(TaskAnswer):
    attempt = TaskAttemptAnswer(allow_null=True, help_text="the last one")


class TaskDetailAnswer(TaskAnswer):
    tries = TaskAttemptAnswer(many=True, help_text="the last one first")


class OutputsAnswer(serializers.Serializer[Any]):
    task = serializers.IntegerField()
    attempt = serializers.IntegerField()
    manifest = serializers.CharField(help_text="read it and its files from /artifacts/{sha256}")
