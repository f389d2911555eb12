"""Jobs: submit, look, follow, collect, cancel."""

from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, access_jobs
from marketplace.api import contract_answers, job_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.errors import BadOrder
from marketplace.jobs import cancelling, progress, schema, spec, submitting
from marketplace.jobs.spec import Spec
from marketplace.models import Attempt, Job, Task, TaskState
from marketplace.money import decimal_string
from provisioning import output

Answer = dict[str, Any]
JOB = {200: job_shapes.JobDetailAnswer, shapes.REFUSED: shapes.Problem}


class JobSchema(APIView):
    @extend_schema(operation_id="show_job_schema", responses={200: OpenApiTypes.OBJECT, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request) -> Response:
        """Show the JSON schema of job files, for editors and programs."""
        queried(request)
        access_jobs.jobs(actor_of(request))
        return Response(schema.FILE)


class JobList(APIView):
    @extend_schema(
        operation_id="list_jobs",
        parameters=[job_shapes.JobQuery, PageQuery],
        responses={200: shapes.page_of(job_shapes.JobAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List jobs, newest first."""
        actor, query = actor_of(request), queried(request, job_shapes.JobQuery, PageQuery)
        rows = access_jobs.jobs(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="job.view"))
        rows = rows.filter(**{name: query[name] for name in ("state", "name") if name in query})
        return paged(rows, query, _jobs)

    @extend_schema(
        operation_id="submit_jobs",
        parameters=[shapes.DryRunQuery, KEY_REQUIRED],
        request=job_shapes.SubmitJobs,
        responses={
            201: job_shapes.JobsAnswer, 200: job_shapes.RehearsedJobs, shapes.REFUSED: shapes.Problem,
        },
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """Submit jobs: all of them, or a refusal that says what is wrong and where, with nothing made."""
        actor, at = actor_of(request), timezone.now()
        query, asked = queried(request, shapes.DryRunQuery), checked(job_shapes.SubmitJobs, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="job.change")
        if query["dry_run"]:
            specs = _specs(asked, at)
            made = submitting.rehearse(actor=actor, project=project, specs=specs, at=at)
            return Response({"data": [_rehearsed(job) for job in made], "folders": submitting.folders_of(specs)})

        def effect() -> tuple[int, Any]:
            made = submitting.submit(
                actor=actor, project=project, specs=_specs(asked, at), folders=asked.get("folders", {}), at=at
            )
            return 201, {"data": _jobs(made)}

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect)


def _specs(asked: dict[str, Any], at: Any) -> list[Spec]:
    if ("file" in asked) == ("jobs" in asked):
        raise BadOrder("jobs", _("Send either a file or a list of jobs."))
    return spec.from_file(asked["file"], at=at) if "file" in asked else spec.from_values(asked["jobs"], at=at)


class JobDetail(APIView):
    @extend_schema(operation_id="show_job", responses=JOB)
    def get(self, request: Request, job_id: str) -> Response:
        """Show a job: what was asked, how far it is, what it cost and what may be done."""
        queried(request)
        return Response(_detail(access_jobs.job_for(actor_of(request), job_id, verb="job.view")))


class JobCancel(APIView):
    @extend_schema(operation_id="cancel_job", request=None, parameters=[KEY_ACCEPTED], responses=JOB)
    def post(self, request: Request, job_id: str) -> Response:
        """Cancel a job: what waits never starts, what runs is ended and charged until now, what succeeded stays."""
        queried(request)
        actor = actor_of(request)
        job = access_jobs.job_for(actor, job_id, verb="job.change")

        def effect() -> tuple[int, Any]:
            return 200, _detail(cancelling.cancel(actor=actor, job=job, at=timezone.now()))

        organization = job.project.organization
        return answered_once(request, organization=organization, order={}, effect=effect, required=False)


class JobTasks(APIView):
    @extend_schema(
        operation_id="list_job_tasks",
        parameters=[job_shapes.TaskQuery, PageQuery],
        responses={200: shapes.page_of(job_shapes.TaskListItem), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, job_id: str) -> Response:
        """List a job's tasks, the last first, each with its last attempt."""
        query = queried(request, job_shapes.TaskQuery, PageQuery)
        job = access_jobs.job_for(actor_of(request), job_id, verb="job.view")
        rows = access_jobs.tasks(job)
        if "state" in query:
            rows = rows.filter(state=query["state"])
        return paged(rows, query, lambda found: _tasks(job, found))


class JobTask(APIView):
    @extend_schema(
        operation_id="show_job_task", responses={200: job_shapes.TaskDetailAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, job_id: str, index: int) -> Response:
        """Show one task with all its attempts."""
        queried(request)
        task = _task_for(request, job_id, index)
        tries = access_jobs.attempts(task).order_by("-number")
        claimed = access_jobs.claimed(task.job, [task]).get(task.pk)
        return Response(_task(task) | {"claim": _claim(claimed), "tries": [_attempt(row) for row in tries]})


class JobTaskLogs(APIView):
    @extend_schema(
        operation_id="read_job_task_logs",
        parameters=[job_shapes.AttemptQuery, shapes.LogQuery],
        responses={200: shapes.LogAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, job_id: str, index: int) -> Response:
        """Read what an attempt at a task printed after the cursor."""
        query = queried(request, job_shapes.AttemptQuery, shapes.LogQuery)
        task = _task_for(request, job_id, index)
        attempt = access_jobs.attempt_of(task, query.get("attempt"))
        page = output.page(attempt.instance, cursor=query["cursor"], most_bytes=query["limit"])
        pieces = [{"replica": piece.replica, "offset": piece.offset, "text": piece.text} for piece in page.pieces]
        return Response({"data": pieces, "next_cursor": page.cursor, "complete": page.complete})


class JobOutputs(APIView):
    @extend_schema(
        operation_id="list_job_outputs",
        parameters=[PageQuery],
        responses={200: shapes.page_of(job_shapes.OutputsAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, job_id: str) -> Response:
        """List what the tasks that succeeded left behind, each as the manifest of a folder."""
        query = queried(request, PageQuery)
        job = access_jobs.job_for(actor_of(request), job_id, verb="job.view")
        rows = access_jobs.results(job).exclude(outputs_sha256="")
        return paged(rows, query, lambda found: [
            {"task": row.task.index, "attempt": row.number, "manifest": row.outputs_sha256} for row in found
        ])  # fmt: skip


def _task_for(request: Request, job_id: str, index: int) -> Task:
    return access_jobs.task_of(access_jobs.job_for(actor_of(request), job_id, verb="job.view"), index)


def _jobs(found: Sequence[Job]) -> list[Answer]:
    far = progress.of(found, at=timezone.now())
    return [_job(job, far[job.pk]) for job in found]


def _detail(job: Job) -> Answer:
    needs = [
        {"id": row.needs.public_id, "name": row.needs.name} for row in job.needs.select_related("needs").order_by("pk")
    ]
    return _job(job, progress.of([job], at=timezone.now())[job.pk]) | {"spec": job.spec, "needs": needs}


def _job(job: Job, far: progress.Progress) -> Answer:
    refusal = cancelling.why_not_cancelled(job)
    counts = {str(state): getattr(job, state) for state in TaskState.values}
    return {
        "id": job.public_id,
        "name": job.name,
        "project": {"id": job.project.public_id, "name": job.project.name},
        "offer": job.offer.slug,
        "market": job.market,
        "gpus": job.gpus,
        "replicas": job.replicas,
        "state": job.state,
        "state_since": job.state_since,
        "reason": job.reason or None,
        "message": job.message,
        "waits_for": {"why": job.why, "message": job.hindrance or job.get_why_display()} if job.why else None,
        "tasks": {"total": job.size, **counts},
        "progress": {"percent": far.percent, "per_hour": far.per_hour, "seconds_left": far.left_s},
        "cost": {
            "currency": job.project.organization.currency,
            "spent": decimal_string(far.spent_micros),
            "most": None if job.most_micros is None else decimal_string(job.most_micros),
        },
        "retries": job.retries,
        "parallel": job.parallel,
        "priority": job.priority,
        "time_limit_s": job.time_limit_s,
        "deadline": job.deadline,
        "contract": job.contract or None,
        "spec_sha256": job.spec_sha256,
        "actions": {"cancel": {"available": not refusal, "reason": refusal or None}},
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
    }


def _rehearsed(job: Job) -> Answer:
    return {
        "name": job.name,
        "offer": job.offer.slug,
        "market": job.market,
        "tasks": job.size,
        "currency": job.project.organization.currency,
        "most": None if job.most_micros is None else decimal_string(job.most_micros),
    }


def _tasks(job: Job, found: Sequence[Task]) -> list[Answer]:
    last, claimed = access_jobs.last_attempts(list(found)), access_jobs.claimed(job, found)
    return [
        _task(task)
        | {"attempt": _attempt(last[task.pk]) if task.pk in last else None, "claim": _claim(claimed.get(task.pk))}
        for task in found
    ]


def _claim(claimed: access_jobs.Claimed | None) -> Answer | None:
    if claimed is None:
        return None
    return {
        "id": claimed.claim.public_id,
        "state": claimed.claim.state,
        "paid": decimal_string(claimed.claim.paid_micros),
        "given_back": decimal_string(claimed.claim.reversed_micros),
        "verdicts": [contract_answers.verdict(row) for row in claimed.verdicts],
        "receipts": [row.public_id for row in claimed.receipts],
    }


def _task(task: Task) -> Answer:
    return {
        "index": task.index,
        "state": task.state,
        "state_since": task.state_since,
        "reason": task.reason or None,
        "message": task.message,
        "parameters": task.parameters,
        "attempts": task.attempts,
        "failures": task.failures,
        "faults": task.faults,
    }


def _attempt(row: Attempt) -> Answer:
    return {
        "number": row.number,
        "instance": row.instance.public_id,
        "phase": row.instance.phase,
        "state": row.state,
        "reason": row.reason or None,
        "message": row.message,
        "exit_code": row.exit_code,
        "cost": decimal_string(row.cost_micros),
        "outputs": row.outputs_sha256 or None,
        "checkpoint": row.checkpoint_sha256 or None,
        "created_at": row.created_at,
        "began_at": row.began_at,
        "ended_at": row.ended_at,
    }
