"""Jobs: the list, the form (fields or a file), one job with all its tasks and results, one task with its attempts."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import access, access_jobs, idempotency, offers
from marketplace.contracts import door, wording
from marketplace.contracts import terms as written
from marketplace.jobs import cancelling, progress, spec, submitting
from marketplace.jobs.schema import DISK_DEFAULT
from marketplace.jobs.spec import BadSpec, Spec
from marketplace.models import Job, Organization, Project, TaskState
from marketplace.portal import errors, grids
from marketplace.portal.doors import REFUSALS, Visit, page, whole_number

PAGE = 50
EVENTS_MOST = 50
ROUTE = "portal/jobs"
# The words of the form's fields; those of one kind are read alike.
TEXTS = ("name", "offer", "image", "market", "max_price", "time_limit", "disk", "deadline", "max_cost", "contract")
NUMBERS = ("array", "gpus", "parallel", "retries", "priority")
LINES = ("outputs",)
FIELDS = (*TEXTS, *NUMBERS, *LINES, "command", "env", "project")
ORDINARY = {
    "array": "1",
    "gpus": "1",
    "retries": "1",
    "time_limit": "1h",
    "disk": DISK_DEFAULT,
    "market": Job.Market.ON_DEMAND,
}
EXAMPLE = """\
name: sweep
offer: {offer}
command: python3 train.py --lr $LR --seed $SEED
matrix:
  LR: ["0.1", "0.01"]
  SEED: [1, 2, 3]
outputs: [results/]
time_limit: 1h
retries: 1
"""


@page()
def listed(visit: Visit) -> HttpResponse:
    """Show the organization's jobs, newest first, with how far each is."""
    organization = visit.organization(verb="job.view")
    found = access_jobs.jobs(visit.actor).filter(project__organization=organization)
    before = visit.query("before")
    if before:
        found = found.filter(pk__lt=access_jobs.jobs(visit.actor).filter(public_id=before).values("pk"))
    rows = list(found.order_by("-pk")[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    far = progress.of(rows, at=visit.at)
    context = {
        "rows": [(row, far[row.pk]) for row in rows],
        "older": rows[-1].public_id if more else "",
        "organization": organization,
        "may_change": access.may(visit.actor, organization, "job.change"),
    }
    return visit.live_page("jobs/list.html", "rows", context)


@page()
def shown(visit: Visit, job_id: str) -> HttpResponse:
    """Show one job: its tasks as a grid and as a list, how far it is, and what it costs. A fixed number of queries."""
    job = access_jobs.job_for(visit.actor, job_id, verb="job.view")
    states = list(access_jobs.tasks(job).order_by("index").values_list("state", flat=True))
    chosen = visit.query("state")
    tasks = access_jobs.tasks(job).order_by("index")
    if chosen in TaskState.values:
        tasks = tasks.filter(state=chosen)
    first = max(0, whole_number(visit.query("from") or "0"))
    rows = list(tasks.filter(index__gte=first)[: PAGE + 1])
    last, claimed = access_jobs.last_attempts(rows), access_jobs.claimed(job, rows)
    far = progress.of([job], at=visit.at)[job.pk]
    context = {
        "job": job,
        "far": far,
        "left_ms": None if far.left_s is None else far.left_s * 1000,
        "currency": job.project.organization.currency,
        "grid": grids.of(states),
        "counts": [(state, label, getattr(job, state)) for state, label in TaskState.choices if getattr(job, state)],
        "chosen": chosen,
        "rows": [(row, last.get(row.pk), claimed.get(row.pk)) for row in rows[:PAGE]],
        "version": door.versions(visit.actor).filter(public_id=job.contract).first() if job.contract else None,
        "more_from": rows[PAGE].index if len(rows) > PAGE else None,
        "needs": [row.needs for row in job.needs.select_related("needs").order_by("pk")],
        "events": list(access_jobs.job_events(job).order_by("-pk")[:EVENTS_MOST]),
        "refusal": cancelling.why_not_cancelled(job),
        "may_change": access.may(visit.actor, job.project.organization, "job.change"),
    }
    return visit.live_page("jobs/show.html", "live", context)


@page()
def task(visit: Visit, job_id: str, index: int) -> HttpResponse:
    """Show one task: its parameters, each attempt with its instance, and its result where a contract pays for it."""
    job = access_jobs.job_for(visit.actor, job_id, verb="job.view")
    found = access_jobs.task_of(job, index)
    context = {
        "job": job,
        "task": found,
        "currency": job.project.organization.currency,
        "tries": list(access_jobs.attempts(found).order_by("-number")),
        "claimed": access_jobs.claimed(job, [found]).get(found.pk),
    }
    return visit.live_page("jobs/task.html", "live", context)


@page("GET", "HEAD", "POST")
def cancel(visit: Visit, job_id: str) -> HttpResponse:
    """Ask before cancelling a job, and say what that means; then do it."""
    job = access_jobs.job_for(visit.actor, job_id, verb="job.change")
    if visit.request.method == "POST":
        cancelling.cancel(actor=visit.actor, job=job, at=visit.at)
        messages.success(visit.request, _("The job is cancelled. What has succeeded stays."))
        return redirect("job", job.public_id)
    return visit.page("jobs/cancel.html", {"job": job, "refusal": cancelling.why_not_cancelled(job)})


@dataclass
class Draft:
    """What is typed into the form, by fields or as a file, and what is wrong with it."""

    typed: dict[str, str]
    file: str
    is_file: bool
    key: str
    errors: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    rehearsed: list[Job] | None = None


@page("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Show the form; check what is typed and say what it costs at most, or submit it once for its key."""
    if visit.request.method != "POST":
        typed = {name: visit.query(name) or ORDINARY.get(name, "") for name in FIELDS}
        draft = Draft(typed, "", visit.query("as") == "file", secrets.token_urlsafe(24))
        return _form(visit, draft)
    draft = _read(visit)
    project = access.project_for(visit.actor, draft.typed["project"] or None, verb="job.change")
    try:
        if visit.text("check"):
            draft.rehearsed = submitting.rehearse(
                actor=visit.actor, project=project, specs=_specs(visit, draft), at=visit.at
            )
            return _form(visit, draft)
        made = _submit(visit, draft, project)
    except BadSpec as refusal:
        _say_faults(draft, refusal)
        return _form(visit, draft, status=422)
    except REFUSALS as error:
        if isinstance(error, idempotency.KeyOfAnotherOrder | idempotency.KeyMissing):
            draft.key = secrets.token_urlsafe(24)
        told = errors.refusal_of(error, reference=visit.actor.request_id)
        return _form(visit, draft, told=told, status=told.status)
    count = len(made)
    text = ngettext("The job was submitted.", "%(count)s jobs were submitted.", count) % {"count": count}
    messages.success(visit.request, text)
    return redirect("job", made[0]) if count == 1 else redirect("jobs")


def _submit(visit: Visit, draft: Draft, project: Project) -> list[str]:
    def effect() -> tuple[int, Any]:
        specs = _specs(visit, draft)
        made = submitting.submit(actor=visit.actor, project=project, specs=specs, folders={}, at=visit.at)
        return 201, {"jobs": [job.public_id for job in made]}

    order = {"file": draft.file} if draft.is_file else draft.typed
    answer = idempotency.once(
        organization=project.organization, route=ROUTE, key=draft.key, order={**order, "project": project.public_id},
        effect=effect,
    )  # fmt: skip
    return list(answer.body["jobs"])


def _read(visit: Visit) -> Draft:
    typed = {name: visit.text(name) for name in FIELDS} | {name: visit.raw(name) for name in ("command", "env")}
    return Draft(typed, visit.raw("file").replace("\r\n", "\n"), visit.text("as") == "file", visit.text("key"))


def _specs(visit: Visit, draft: Draft) -> list[Spec]:
    if draft.is_file:
        return spec.from_file(draft.file, at=visit.at)
    return spec.from_values([_values(draft.typed)], at=visit.at)


def _values(typed: Mapping[str, str]) -> dict[str, Any]:
    """Return what the fields say as a job file would; what is empty is left out."""
    values: dict[str, Any] = {name: typed[name] for name in TEXTS if typed[name]}
    values |= {name: _number(typed[name]) for name in NUMBERS if typed[name]}
    values |= {name: typed[name].split() for name in LINES if typed[name]}
    if typed["command"].strip():
        values["command"] = typed["command"].replace("\r\n", "\n").strip()
    if typed["env"].strip():
        pairs = [line.partition("=") for line in typed["env"].split("\n") if line.strip()]
        values["env"] = {name.strip(): value.rstrip("\r") for name, _equals, value in pairs}
    return values


def _number(text: str) -> int | str:
    """Return a whole number, or the text as it is, which the schema then refuses by its place."""
    digits = text.removeprefix("-")
    return int(text) if digits.isdecimal() and digits.isascii() and len(digits) < 10 else text


def _say_faults(draft: Draft, refusal: BadSpec) -> None:
    for fault in refusal.faults:
        name = str(fault.path[2]) if len(fault.path) > 2 else ""
        if draft.is_file or name not in FIELDS:
            draft.faults.append(str(fault))
        else:
            draft.errors.setdefault(name, fault.detail)


def _form(visit: Visit, draft: Draft, *, status: int = 200, told: Any = None) -> HttpResponse:
    organization = visit.organization(verb="job.change")
    listings = offers.listings(offers.listed(), currency=organization.currency, at=visit.at)
    first = draft.typed["offer"] or (listings[0].offer.slug if listings else "OFFER")
    context = {
        "draft": draft,
        "typed": draft.typed,
        "errors": draft.errors,
        "told": told,
        "file": draft.file or EXAMPLE.format(offer=first),
        "listings": listings,
        "markets": Job.Market.choices,
        "contracts": _contracts(visit, organization),
        "projects": visit.projects(organization),
        "currency": organization.currency,
    }
    return visit.page("jobs/new.html", context, status=status)


def _contracts(visit: Visit, organization: Organization) -> list[tuple[str, str]]:
    """Return what jobs can be paid by, as id and words: the versions agreed to that pay for the results of tasks."""
    found = []
    for version in door.accepted(visit.actor, organization):
        terms = written.of(version.terms)
        if terms.pays_tasks:
            found.append((version.public_id, f"{version.contract.title} v{version.number} – {wording.price(terms)}"))
    return found
