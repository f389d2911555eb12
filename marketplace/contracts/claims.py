"""Claims: what a contract lets an order cost, the one claim of each result, and what its customer says of it.

A claim is opened when work succeeded, moves by verdicts, answers and the
written rules of its terms, and is closed when its money was posted or given
back. The sweep in `sweeping` acts for whoever is silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from marketplace.contracts import offering, timeline
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.errors import BadOrder, IllegalState
from marketplace.models import (
    OPEN_TASKS,
    Acceptance,
    Attempt,
    Claim,
    ClaimEvent,
    ClaimState,
    ContractVersion,
    Job,
    Organization,
    Task,
)

State = ClaimState
TEXT_LENGTH_MAX = 2000


@dataclass(frozen=True)
class Bound:
    """What an order under a contract can cost at most: all of it, which is set aside, and each of its tasks."""

    version: ContractVersion
    acceptance: Acceptance
    per_task_micros: int
    most_micros: int

    @property
    def terms(self) -> Terms:
        return written.of(self.version.terms)


def check(*, version_id: str, organization: Organization, tasks: int) -> Bound:
    """Return the most that so many tasks can cost under a version that this organization agreed to.

    Raises BadOrder naming `contract` where there is no such version for it, it
    was not accepted, is withdrawn, or does not pay for tasks.
    """
    found = ContractVersion.objects.select_related("contract__seller").filter(public_id=version_id).first()
    acceptance = None if found is None else offering.acceptance_of(found, organization)
    if found is None or (acceptance is None and found.contract.buyer_id not in (None, organization.pk)):
        raise BadOrder("contract", _("There is no such version of a contract."))
    if acceptance is None:
        raise BadOrder(
            "contract", _("Accept this version first: gpumarket contracts accept %(id)s.") % {"id": version_id}
        )
    offering.check_not_left(acceptance)
    if found.state != ContractVersion.State.OFFERED:
        raise BadOrder("contract", _("This version is no longer offered; see the contract's newest one."))
    terms = written.of(found.terms)
    if terms.kind not in written.CLAIMED_KINDS:
        raise BadOrder("contract", _("This contract does not pay for tasks."))
    if terms["measured"] is not None and not terms.is_counted:
        raise BadOrder("contract", _("Its units are claimed by its seller, outside of jobs."))
    per_task = terms.most_micros
    if per_task * tasks > written.RESULT_MICROS_MAX:
        raise BadOrder("contract", _("So many tasks at this price are more than can be booked; submit fewer at once."))
    cap = terms["cap"]
    most = per_task * tasks if cap is None else min(per_task * tasks, int(cap["micros"]))
    return Bound(version=found, acceptance=acceptance, per_task_micros=per_task, most_micros=most)


@transaction.atomic
def open(*, task: Task, at: datetime) -> Claim:  # noqa: A001  the word of the contract: a claim is opened
    """Open the claim of a task whose latest attempt succeeded, or open it again after a retry.

    A task has one claim, whatever is repeated: calling it again for the same attempt changes nothing.
    """
    job, attempt = task.job, _succeeded(task)
    version = ContractVersion.objects.select_related("contract").get(public_id=job.contract)
    claim = Claim.objects.select_for_update(no_key=True, of=("self",)).filter(task=task).first()
    if claim is not None:
        return _again(claim, task, attempt, at=at)
    return write(_of(task, attempt, version, at=at))


def open_all(*, job: Job, tasks: Sequence[Task], at: datetime) -> list[Claim]:
    """Open the claims of tasks of a locked job whose latest attempts succeeded, and that have none yet.

    Whoever opens claims of a job holds its row, so nobody is second. Queries: four, however many tasks.
    """
    if not tasks:
        return []
    version = ContractVersion.objects.select_related("contract").get(public_id=job.contract)
    tries = Attempt.objects.filter(task__in=tasks, state=Attempt.State.SUCCEEDED).select_related("instance")
    found = {attempt.task_id: attempt for attempt in tries}
    if len(found) < len(tasks):
        raise IllegalState(_("No attempt at this task succeeded, so there is nothing to claim."))
    made = [_of(task, found[task.pk], version, at=at) for task in tasks]
    Claim.objects.bulk_create(made)
    ClaimEvent.objects.bulk_create(ClaimEvent(claim=claim, at=at, new_state=claim.state) for claim in made)
    return made


def may_retry(claim: Claim) -> bool:
    """Return whether its terms let the seller try once more what did not pass."""
    return claim.state == State.FAILED and claim.is_open and claim.run <= written.of(claim.version.terms)["retries"]


def is_tried_on(claim: Claim) -> bool:
    """Return whether the job of a claim may still try its task again."""
    return claim.task is not None and claim.task.state in OPEN_TASKS


def are_closed(*, job: Job) -> bool:
    """Return whether the money of all claims of a job is resolved."""
    return not Claim.objects.filter(escrow_id=job.public_id, closed_at=None).exists()


def late_bps(terms: Terms, *, since: datetime, until: datetime) -> int:
    """Return what the deadline leaves of the price of work that was ordered at one moment and done at another."""
    if terms["deadline"] is None:
        return written.BP
    return terms.price_bps(int((until - since).total_seconds()) - int(terms["deadline"]["within_s"]))


def counted_from(task: Task, attempt: Attempt) -> datetime:
    """Return from when the deadline of a result counts: from its order, or until when its customer held it back itself.

    Where it waits for a price or inside a reservation that is until it had its GPUs.
    """
    if task.job.market != Job.Market.ON_DEMAND and attempt.began_at is not None:
        return attempt.began_at
    return attempt.held_until or task.job.created_at


def evidence(task: Task, attempt: Attempt, terms: Terms) -> dict[str, Any]:
    """Return what a claim rests on, by digests, as both sides can read it."""
    instance = attempt.instance
    since = {"since": counted_from(task, attempt).isoformat()} if terms["deadline"] else {}
    return since | {
        "job": task.job.public_id,
        "job_spec": task.job.spec_sha256,
        "task": task.index,
        "attempt": attempt.number,
        "instance": instance.public_id,
        "exit_code": attempt.exit_code,
        "inputs": instance.inputs,
        "outputs": attempt.outputs_sha256,
        "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
    }


def said(text: str) -> str:
    """Return a reason as it is kept, or raise BadOrder."""
    text = text.strip()
    if not text or len(text) > TEXT_LENGTH_MAX or "\x00" in text:
        raise BadOrder("reason", _("Say why, in 1 to %(most)s characters.") % {"most": TEXT_LENGTH_MAX})
    return text


def acceptance_of(claim: Claim) -> Acceptance:
    """Return with what the customer of a claim agreed to its version."""
    found = offering.acceptance_of(claim.version, claim.organization)
    assert found is not None, "work begins under accepted versions only"
    return found


def locked(claim: Claim) -> Claim:
    """Return a claim as it is now with its terms, so that nobody else moves it; call it within a transaction."""
    (found,) = locked_all([claim.pk])
    return found


def locked_all(keys: Sequence[int]) -> list[Claim]:
    """Return claims as they are now with their terms, in one order for all who lock several, so that nobody moves them.

    Call it within a transaction.
    """
    found = Claim.objects.select_for_update(no_key=True, of=("self",)).filter(pk__in=keys).order_by("pk")
    return list(
        found.select_related("version__contract__seller", "contract__seller", "organization", "project", "task__job")
    )


def _succeeded(task: Task) -> Attempt:
    attempt = task.tries.filter(state=Attempt.State.SUCCEEDED).select_related("instance").first()
    if attempt is None:
        raise IllegalState(_("No attempt at this task succeeded, so there is nothing to claim."))
    return attempt


def _of(task: Task, attempt: Attempt, version: ContractVersion, *, at: datetime) -> Claim:
    """The claim of a task's result, unwritten."""
    job, terms = task.job, written.of(version.terms)
    proof = evidence(task, attempt, terms)
    return Claim(
        version=version, contract=version.contract, organization=job.project.organization, project=job.project,
        task=task, escrow_id=job.public_id, scope=job.public_id, subject_key=str(task.index),
        most_micros=terms.most_micros, state_since=at, evidence=proof,
        evidence_sha256=written.digest(written.canonical(proof)), claimed_at=at, due_at=at,
        **_price(terms, since=counted_from(task, attempt), until=attempt.ended_at or at),
    )  # fmt: skip


def _again(claim: Claim, task: Task, attempt: Attempt, *, at: datetime) -> Claim:
    """Claim the result of a retry; the same attempt is not claimed twice, and what is decided stays decided."""
    if claim.evidence.get("attempt") == attempt.number or not may_retry(claim):
        return claim
    terms = written.of(claim.version.terms)
    proof = evidence(task, attempt, terms)
    facts: dict[str, Any] = _price(terms, since=counted_from(task, attempt), until=attempt.ended_at or at)
    facts |= {"evidence": proof, "evidence_sha256": written.digest(written.canonical(proof))}
    message = timeline.TRIED_AGAIN(number=attempt.number)
    claim.move_to(State.CLAIMED, at=at, message=message, run=claim.run + 1, due_at=at, **facts)
    return claim


def _price(terms: Terms, *, since: datetime, until: datetime, units: int | None = None) -> dict[str, int]:
    """Return units and price of a result; until units are measured they count as the most that there can be."""
    bps = late_bps(terms, since=since, until=until)
    count = int(terms["unit"]["most"]) if units is None else units
    return {"units": count, "price_bps": bps, "amount_micros": terms.amount_micros(units=count, bps=bps)}


def write(claim: Claim) -> Claim:
    """Write a new claim and its first event; whoever is second for its subject gets the first one."""
    try:
        with transaction.atomic():
            claim.save(force_insert=True)
            ClaimEvent.objects.create(claim=claim, at=claim.claimed_at, new_state=claim.state)
    except IntegrityError as error:
        if "claim_once_per_subject" not in str(error) and "task_id" not in str(error):
            raise
        return Claim.objects.get(
            contract=claim.contract, organization=claim.organization, scope=claim.scope, subject_key=claim.subject_key
        )
    return claim
