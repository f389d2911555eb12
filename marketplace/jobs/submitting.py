"""Submitting jobs: all that were sent together, or none, with nothing kept and nothing set aside."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from graphlib import CycleError, TopologicalSorter

from django.db import transaction
from django.db.models import F, Sum
from django.utils.translation import gettext

from billing.outcomes import escrows
from billing.prepared import ask
from marketplace import audit, rentals
from marketplace.access import Actor
from marketplace.contracts import bounds, claims, evidence, hosting, sellers
from marketplace.contracts import terms as written
from marketplace.contracts.claims import Bound
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.jobs import bounding, nudges, orders
from marketplace.jobs.schema import SHA256
from marketplace.jobs.spec import BadSpec, Spec
from marketplace.models import OPEN_JOBS, Job, JobDependency, JobEvent, JobState, Offer, Project
from marketplace.money import shown
from marketplace.offers import offer_for
from provisioning import artifacts, told
from provisioning.agent.folders import matcher
from provisioning.errors import BadFolder, NoCapacity, PolicyExcludes

OPEN_TASKS_MAX = 100_000  # of one organization

TASKS = """
INSERT INTO marketplace_task (job_id, index, parameters, state, state_since, reason, message, attempts, failures,
    faults)
SELECT job_id, index, parameters, 'pending', %(at)s, '', '', 0, 0, 0
FROM jsonb_to_recordset(%(rows)s::jsonb) AS task(job_id bigint, index int, parameters jsonb)
"""


@dataclass(frozen=True)
class _Wanted:
    """One job that is about to be made: what was asked, of which offer, and what that costs at most."""

    spec: Spec
    offer: Offer
    job: Job
    bound: Bound | None


@dataclass(frozen=True)
class _Known:
    """What was looked up for one job and is the same for others that were sent with it."""

    offers: dict[str, Offer] = field(default_factory=dict)
    verify_micros: dict[tuple[int, int, int], int] = field(default_factory=dict)


def submit(
    *, actor: Actor, project: Project, specs: Sequence[Spec], folders: Mapping[str, str], at: datetime
) -> list[Job]:
    """Make these jobs and let them begin, in the order in which they were given.

    `folders` tells the manifest of each folder that was uploaded for their
    inputs. Raises BadSpec with the place of each fault, ProjectSuspended, or
    Conflict where the organization has too many open tasks.
    """
    rentals.check_open(project)
    specs = [_with_inputs(spec, project, folders) for spec in specs]
    if inputs := {spec.inputs for spec in specs if spec.inputs}:
        # They may lie unused for a month all but a day, and a job that waits is looked at once a day (`keeping`).
        artifacts.touch(project_id=project.pk, folders=inputs, at=at)
    known = _Known()
    wanted = [_wanted(spec, actor, project, known, at) for spec in specs]
    needs = _needs(project, wanted)
    _check_order(wanted, needs)
    with transaction.atomic(savepoint=False):
        _check_room(project, sum(one.job.size for one in wanted))
        _check_sellers(wanted, at)
        return _write(actor, wanted, needs, at)


def rehearse(*, actor: Actor, project: Project, specs: Sequence[Spec], at: datetime) -> list[Job]:
    """Do everything that `submit` does but for looking at the folders, then undo it."""
    with transaction.atomic():
        pretended = dict.fromkeys(folders_of(specs), "")
        made = submit(actor=actor, project=project, specs=specs, folders=pretended, at=at)
        transaction.set_rollback(True)
    return made


def folders_of(specs: Sequence[Spec]) -> list[str]:
    """Return the folders that are to be uploaded before these jobs can be submitted, each once."""
    named = [spec.inputs for spec in specs if spec.inputs and not re.fullmatch(SHA256, spec.inputs)]
    return list(dict.fromkeys(named))


def _with_inputs(spec: Spec, project: Project, folders: Mapping[str, str]) -> Spec:
    """Let a job's inputs be named by their manifest, which has to be here whole."""
    if not spec.inputs:
        return spec
    manifest = folders.get(spec.inputs, spec.inputs)
    if manifest and not re.fullmatch(SHA256, manifest):
        detail = gettext("The folder %(folder)s was not uploaded: gpumarket job submit does that.")
        raise BadSpec([spec.fault("inputs", detail % {"folder": spec.inputs})])
    if manifest:
        try:
            entries = artifacts.check_folder(project_id=project.pk, sha256=manifest)
        except BadFolder as error:
            raise BadSpec([spec.fault("inputs", str(error))]) from error
        if sum(entry.size for entry in entries) > spec.disk_bytes:
            raise BadSpec([spec.fault("disk", gettext("Its inputs alone are more than that; give it a larger disk."))])
    return replace(spec, inputs=manifest, document={**spec.document, "inputs": manifest})


def _wanted(spec: Spec, actor: Actor, project: Project, known: _Known, at: datetime) -> _Wanted:
    with _placed(spec):
        offer = known.offers.get(spec.offer) or _offer(spec.offer)
        known.offers[spec.offer] = offer
        order = orders.of_spec(spec, project=project, offer=offer)
        longest = max(spec.tasks, key=lambda task: sum(map(len, task.values())), default={})
        rentals.check(replace(order, env={**(order.env or {}), **longest}))
        _check_place(spec, project, order, at)
        _check_fields(spec)
        rate = orders.rate_micros(spec, project=project, offer=offer, at=at)
        bound = _bound(spec, project, offer, rate)
        most = _most_micros(spec, rate) if bound is None else bound.most_micros
        job = _job(spec, actor, project, offer, rate=rate, at=at)
        job.most_micros = most
        if bound is not None:
            job.attempt_micros = _attempt_micros(spec, rate)
            job.verify_micros = _verify_micros(bound, job, known, at)
        return _Wanted(spec, offer, job, bound)


def _check_place(spec: Spec, project: Project, order: rentals.Order, at: datetime) -> None:
    """Refuse what would not fit into an empty fleet. What a policy excludes waits for the policy, and says so."""
    try:
        rentals.check_possible(project=project, order=order, at=at)
    except PolicyExcludes:
        return
    except NoCapacity as refusal:
        raise BadOrder("replicas" if order.replicas > 1 else "gpus", str(refusal)) from refusal


def _bound(spec: Spec, project: Project, offer: Offer, rate: int) -> Bound | None:
    """Return what the terms of its contract let a job cost, where it is paid by its results."""
    if not spec.contract:
        return None
    bound = claims.check(version_id=spec.contract, organization=project.organization, tasks=len(spec.tasks))
    if spec.time_limit_s is None:
        raise BadOrder("time_limit", gettext("Work that is paid by its result needs a time limit."))
    most = bound.terms["retries"]
    if spec.retries > most:
        raise BadOrder(
            "retries", gettext("Its contract lets it be tried again %(most)s times at most.") % {"most": most}
        )
    _check_counted(spec, bound)
    if spec.market == Job.Market.RESERVED and not spec.reservation:
        raise BadOrder("reservation", gettext("Under a contract, name the reservation inside which it runs."))
    asked = bounds.Asked(
        offer, spec.gpus * spec.replicas, seconds=spec.time_limit_s, attempt_micros=_attempt_micros(spec, rate)
    )
    bounds.check(bound.version, asked, organization=project.organization)
    _check_most(spec, bound)
    _check_verifiable(spec, bound, offer)
    return bound


def _attempt_micros(spec: Spec, rate: int) -> int:
    """Return what an attempt costs by the list at most; of what is inside a reservation nothing more."""
    assert spec.time_limit_s is not None, "work that is paid by its result has one"
    return orders.attempt_micros(gpus=spec.gpus * spec.replicas, rate=rate, time_limit_s=spec.time_limit_s)


def _verify_micros(bound: Bound, job: Job, known: _Known, at: datetime) -> int:
    """Return what verifying one result may cost at most. Raises BadOrder where no host could do it."""
    offer, customer = job.offer, job.project.organization
    asked = (bound.version.pk, offer.pk, job.all_gpus)
    if asked not in known.verify_micros:
        if bound.terms.verifier in hosting.ON_NODES and not hosting.hosts(bound.version, offer, customer):
            text = gettext(
                "All hosts that could verify results of %(offer)s belong to you, or to somebody who earns by this "
                "contract."
            )
            raise BadOrder("contract", text % {"offer": offer.name})
        known.verify_micros[asked] = hosting.most_micros(bound.version, offer, customer, gpus=job.all_gpus, at=at)
    return known.verify_micros[asked]


def _check_sellers(wanted: Sequence[_Wanted], at: datetime) -> None:
    """Raise BadSpec where an attempt at a job would pass what its seller's work may cost the platform unpaid.

    The first attempt of each job that waits counts, with its result's verifier, so jobs that are submitted at once are
    not promised the same.
    """
    left: dict[tuple[int, str], int | None] = {}
    bound = [(one, one.bound.version) for one in wanted if one.bound is not None]
    for one, version in sorted(bound, key=lambda each: each[1].contract.seller_id):
        key = (version.contract.seller_id, written.of(version.terms).currency)
        if key not in left:
            room = bounding.of_seller(version, at=at)
            left[key] = None if room is None else room - bounding.promised(version)
        room = left[key]
        if room is None:
            continue
        asked = one.job.attempt_micros + one.job.verify_micros
        left[key] = room = room - asked
        if room < 0:
            with _placed(one.spec):
                raise BadOrder("contract", told.shown(sellers.refusal(version, asked)))


def _check_most(spec: Spec, bound: Bound) -> None:
    """Raise BadOrder where the results may cost more than the job says that it may."""
    if spec.max_cost_micros is None or spec.max_cost_micros >= bound.most_micros:
        return
    currency = bound.terms.currency
    text = gettext("Its results may cost %(most)s under this contract, and it may cost %(cost)s: submit fewer tasks.")
    most, cost = (shown(micros, currency, exact=True) for micros in (bound.most_micros, spec.max_cost_micros))
    raise BadOrder("max_cost", text % {"most": most, "cost": cost})


def _check_verifiable(spec: Spec, bound: Bound, offer: Offer) -> None:
    """Raise BadOrder where nobody could ever verify its results as its contract says."""
    if bound.terms.verifier == "rerun" and spec.volumes:
        text = gettext(
            "Results under this contract are run a second time on another host, which has no volumes of yours."
        )
        raise BadOrder("volumes", text)
    why = evidence.why_never(bound.terms, offer, has_counters=spec.counters is not None)
    if why:
        raise BadOrder("contract", why)


def _check_counted(spec: Spec, bound: Bound) -> None:
    """Raise BadOrder where its contract pays by a counter that nobody would read, or by an output that is not kept."""
    measured = bound.terms["measured"] or {"kind": "task"}
    if measured["kind"] == "counter" and (spec.counters is None or measured["name"] not in spec.counters.names):
        text = gettext("This contract pays by the counter %(name)s: name it under “counters”.")
        raise BadOrder("counters", text % {"name": measured["name"]})
    if measured["kind"] == "output" and not any(matcher(one).fullmatch(measured["path"]) for one in spec.outputs):
        text = gettext("This contract counts units in the output %(path)s: name it under “outputs”.")
        raise BadOrder("outputs", text % {"path": measured["path"]})


def _check_fields(spec: Spec) -> None:
    """Raise BadOrder for fields that need another one."""
    if spec.market == Job.Market.CHEAPEST and (spec.deadline is None or spec.time_limit_s is None):
        missing = "deadline" if spec.deadline is None else "time_limit"
        raise BadOrder(missing, gettext("To wait for a lower price it has to know its deadline and its time limit."))
    if spec.max_cost_micros is not None and spec.time_limit_s is None:
        raise BadOrder("max_cost", gettext("A limit of cost needs a time limit, or one attempt could pass it."))
    if spec.reservation and spec.market != Job.Market.RESERVED:
        raise BadOrder("reservation", gettext("Only a job with “market: reserved” names a reservation."))
    if spec.checkpoint and spec.replicas > 1:
        raise BadOrder("checkpoint", gettext("A task of several replicas keeps no checkpoint; use a volume."))


def _job(spec: Spec, actor: Actor, project: Project, offer: Offer, *, rate: int, at: datetime) -> Job:
    size = len(spec.tasks)
    return Job(
        project=project, user=actor.user, token=actor.token, offer=offer, name=spec.name, spec=dict(spec.document),
        spec_sha256=spec.sha256, contract=spec.contract, market=spec.market, gpus=spec.gpus, replicas=spec.replicas,
        parallel=spec.parallel, retries=spec.retries, time_limit_s=spec.time_limit_s, priority=spec.priority,
        deadline=spec.deadline, size=size, pending=size, created_at=at, state_since=at, look_at=at,
        max_price_micros=rate if spec.market == Job.Market.SPOT else spec.max_price_micros,
        state=JobState.WAITING if spec.needs else JobState.ACTIVE,
    )  # fmt: skip


def _most_micros(spec: Spec, rate: int) -> int | None:
    """Return the most that a job can cost; None where nobody has set a limit."""
    if spec.time_limit_s is None:
        return None
    each = orders.attempt_micros(gpus=spec.gpus * spec.replicas, rate=rate, time_limit_s=spec.time_limit_s)
    if spec.max_cost_micros is not None and spec.max_cost_micros < each:
        raise BadOrder("max_cost", gettext("One attempt may cost more than that: its time limit at its price."))
    worst = each * (1 + spec.retries) * len(spec.tasks)
    return worst if spec.max_cost_micros is None else min(spec.max_cost_micros, worst)


def _offer(name: str) -> Offer:
    try:
        return offer_for(name)
    except NotFound as error:
        raise BadOrder("offer", gettext("There is no such offer.")) from error


@contextmanager
def _placed(spec: Spec) -> Iterator[None]:
    """Give what is refused of an order its place in the file."""
    try:
        yield
    except BadOrder as refusal:
        raise BadSpec([spec.fault(refusal.field, str(refusal))]) from refusal


def _needs(project: Project, wanted: Sequence[_Wanted]) -> list[list[Job]]:
    """Return for each job which others it needs: of those sent with it by name, or earlier ones by id."""
    names: dict[str, list[Job]] = {}
    for one in wanted:
        names.setdefault(one.spec.name, []).append(one.job)
    ids = {name for one in wanted for name in one.spec.needs if name not in names}
    known = {job.public_id: job for job in Job.objects.filter(project=project, public_id__in=ids)} if ids else {}
    return [[_needed(one.spec, name, names, known) for name in one.spec.needs] for one in wanted]


def _needed(spec: Spec, name: str, names: Mapping[str, list[Job]], known: Mapping[str, Job]) -> Job:
    found = names.get(name, [])
    if len(found) > 1:
        raise BadSpec([spec.fault("needs", gettext("Several jobs are named %(name)s.") % {"name": name})])
    job = found[0] if found else known.get(name)
    if job is None:
        raise BadSpec([spec.fault("needs", gettext("There is no job %(name)s.") % {"name": name})])
    if job.state in {JobState.FAILED, JobState.CANCELLED}:
        raise BadSpec([spec.fault("needs", gettext("The job %(name)s did not succeed.") % {"name": name})])
    return job


def _check_order(wanted: Sequence[_Wanted], needs: Sequence[Sequence[Job]]) -> None:
    """Raise BadSpec where jobs wait for each other in a circle."""
    by_id = {one.job.public_id: one for one in wanted}
    graph = {
        one.job.public_id: [job.public_id for job in needed if job.public_id in by_id]
        for one, needed in zip(wanted, needs, strict=True)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # The error names each one's predecessor behind it: read from its end, each needs the next.
        circle = [by_id[job_id].spec for job_id in reversed(error.args[1])]
        names = " → ".join(spec.name for spec in circle)
        text = gettext("These jobs wait for each other: %(names)s.") % {"names": names}
        raise BadSpec([circle[0].fault("needs", text)]) from error


def _check_room(project: Project, tasks: int) -> None:
    mine = Job.objects.filter(project__organization=project.organization, state__in=OPEN_JOBS)
    left = mine.aggregate(left=Sum(F("pending") + F("running") + F("verifying"), default=0))["left"]
    if left + tasks > OPEN_TASKS_MAX:
        raise Conflict(
            gettext("An organization has at most %(most)s open tasks; %(left)s are open.")
            % {"most": OPEN_TASKS_MAX, "left": left}
        )


def _write(actor: Actor, wanted: Sequence[_Wanted], needs: Sequence[Sequence[Job]], at: datetime) -> list[Job]:
    jobs = Job.objects.bulk_create([one.job for one in wanted])
    rows = [
        {"job_id": one.job.pk, "index": index, "parameters": dict(parameters)}
        for one in wanted
        for index, parameters in enumerate(one.spec.tasks)
    ]
    ask(TASKS, {"rows": json.dumps(rows), "at": at})
    JobDependency.objects.bulk_create(
        JobDependency(job=one.job, needs=needed)
        for one, found in zip(wanted, needs, strict=True)
        for needed in found
    )  # fmt: skip
    for one in wanted:
        if one.bound is not None:
            escrows.escrow(
                organization=one.job.project.organization, resource_id=one.job.public_id,
                amount_micros=one.bound.most_micros, reason=f"job {one.job.name}", at=at,
                version=one.spec.contract,
            )  # fmt: skip
    JobEvent.objects.bulk_create(JobEvent(job=job, at=at, new_state=job.state) for job in jobs)
    for job in jobs:
        after = {"name": job.name, "offer": job.offer.slug, "tasks": job.size, "most_micros": job.most_micros}
        audit.record_of(job, "job.submit", actor=actor, after=after)
    nudges.work_on(job.pk for job in jobs)
    return jobs
