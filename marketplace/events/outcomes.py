"""Events of paying by outcome: jobs, contracts, claims and their receipts. Both sides of a contract hear of it."""

from collections.abc import Collection, Iterable
from datetime import datetime

from marketplace.events.reading import Source, changes, moment
from marketplace.models import (
    OPEN_TASKS,
    Acceptance,
    AgreementEnd,
    ClaimDispute,
    ClaimEvent,
    ClaimState,
    ContractVersion,
    Event,
    JobEvent,
    JobState,
    Receipt,
)
from marketplace.money import decimal_string

PROGRESS = "job.progress"
# How events spell the states of disputes that are named otherwise there.
DISPUTED = {ClaimDispute.State.OPEN.value: "opened"}
COUNTS = ("size", "pending", "running", "verifying", "succeeded", "failed", "cancelled")


def _jobs(rows: Collection[int]) -> Iterable[Event]:
    """Moves of jobs each; of tasks that ended only the sum, once for all that are read together. One query."""
    found = JobEvent.objects.filter(pk__in=rows).select_related("job__project", "job__offer").order_by("pk")
    last: dict[int, JobEvent] = {}
    for row in found:
        if row.task_id is None:
            yield _job(row, f"job.{row.new_state}")
        elif row.new_state not in OPEN_TASKS:
            last[row.job_id] = row
    for row in last.values():
        yield _job(row, PROGRESS)


def _job(row: JobEvent, name: str) -> Event:
    job = row.job
    data = {
        "name": job.name, "offer": job.offer.slug, "market": job.market, "contract": job.contract or None,
        "state": job.state, "reason": job.reason or None, "message": job.message,
        "tasks": {count: getattr(job, count) for count in COUNTS},
    }  # fmt: skip
    return Event(
        organization_id=job.project.organization_id, project=job.project, at=row.at, row=row.pk, type=name,
        subject_id=job.public_id, data=data,
    )  # fmt: skip


def _versions(rows: Collection[int]) -> Iterable[Event]:
    """To its seller, and to the one buyer that it was negotiated with. Two queries."""
    changed = changes(rows)
    for version in ContractVersion.objects.filter(pk__in=changed).select_related("contract"):
        contract = version.contract
        for change in changed[version.pk]:
            for organization_id in filter(None, {contract.seller_id, contract.buyer_id}):
                yield Event(
                    organization_id=organization_id, at=change.at, row=change.pk, type=f"contract.{change.state}",
                    subject_id=contract.public_id, data=_terms_of(version),
                )  # fmt: skip


def _acceptances(rows: Collection[int]) -> Iterable[Event]:
    """To both sides. One query."""
    related = ("version__contract", "organization")
    for row in Acceptance.objects.filter(pk__in=rows).select_related(*related):
        yield from _agreed(row, "contract.accepted", row=row.pk, at=row.at)


def _ends(rows: Collection[int]) -> Iterable[Event]:
    """To both sides. One query."""
    related = ("acceptance__version__contract", "acceptance__organization")
    for row in AgreementEnd.objects.filter(pk__in=rows).select_related(*related):
        yield from _agreed(row.acceptance, "contract.left", row=row.pk, at=row.at)


def _agreed(accepted: Acceptance, name: str, *, row: int, at: datetime) -> Iterable[Event]:
    contract = accepted.version.contract
    data = _terms_of(accepted.version) | {"side": accepted.side, "by": accepted.organization.public_id}
    for organization_id in filter(None, {accepted.organization_id, contract.seller_id, contract.buyer_id}):
        yield Event(
            organization_id=organization_id, at=at, row=row, type=name, subject_id=contract.public_id, data=data
        )  # fmt: skip


def _terms_of(version: ContractVersion) -> dict[str, object]:
    return {
        "title": version.contract.title, "kind": version.contract.kind, "version": version.public_id,
        "number": version.number, "sha256": version.sha256,
    }  # fmt: skip


def _claims(rows: Collection[int]) -> Iterable[Event]:
    """Moves alone, to both sides; only the customer's names a project. One query."""
    related = ("claim__version", "claim__contract", "claim__project", "claim__task__job")
    for row in ClaimEvent.objects.filter(pk__in=rows).select_related(*related):
        if row.old_state == row.new_state:
            continue
        claim = row.claim
        data = {
            "contract": claim.contract.public_id, "version": claim.version.public_id, "subject": claim.subject_key,
            "job": claim.task.job.public_id if claim.task else None, "task": claim.task.index if claim.task else None,
            "run": claim.run, "old_state": row.old_state or None, "state": row.new_state,
            "amount": decimal_string(claim.amount_micros), "paid": decimal_string(claim.paid_micros),
            "reversed": decimal_string(claim.reversed_micros), "currency": claim.version.terms["currency"],
            "due_at": moment(claim.due_at), "message": row.message,
        }  # fmt: skip
        for organization_id in {claim.organization_id, claim.contract.seller_id}:
            is_buyer = organization_id == claim.organization_id
            yield Event(
                organization_id=organization_id, project=claim.project if is_buyer else None, at=row.at, row=row.pk,
                type=f"claim.{row.new_state}", subject_id=claim.public_id,
                data=data | {"side": "buyer" if is_buyer else "seller"},
            )  # fmt: skip


def _disputes(rows: Collection[int]) -> Iterable[Event]:
    """To both sides; only the customer's names a project. Two queries."""
    changed = changes(rows)
    related = ("claim__contract", "claim__project", "claim__version")
    for dispute in ClaimDispute.objects.filter(pk__in=changed).select_related(*related):
        claim = dispute.claim
        data = {
            "claim": claim.public_id, "contract": claim.contract.public_id, "opened_by": dispute.opened_by,
            "reason": dispute.reason, "text": dispute.text, "decide_by": moment(dispute.decide_by),
        }  # fmt: skip
        for change in changed[dispute.pk]:
            is_open = change.state == ClaimDispute.State.OPEN
            decided: dict[str, object] = (
                {"due_bps": None, "note": ""} if is_open else {"due_bps": dispute.due_bps, "note": dispute.note}
            )
            for organization_id in {claim.organization_id, claim.contract.seller_id}:
                is_buyer = organization_id == claim.organization_id
                yield Event(
                    organization_id=organization_id, project=claim.project if is_buyer else None, at=change.at,
                    row=change.pk, type=f"claim_dispute.{DISPUTED.get(change.state, change.state)}",
                    subject_id=dispute.public_id, data=data | decided | {"side": "buyer" if is_buyer else "seller"},
                )  # fmt: skip


def _receipts(rows: Collection[int]) -> Iterable[Event]:
    """One query."""
    for row in Receipt.objects.filter(pk__in=rows).select_related("project"):
        data = {
            "sequence": row.sequence, "digest": row.digest, "claim": row.subject_id, "event": row.event,
            "amount": decimal_string(row.amount_micros), "currency": row.currency,
        }  # fmt: skip
        yield Event(
            organization_id=row.organization_id, project=row.project, at=row.issued_at, row=row.pk,
            type="receipt.issued", subject_id=row.public_id, data=data,
        )  # fmt: skip


SOURCES: dict[str, Source] = {
    "job": Source("job.view", (*(f"job.{state}" for state in JobState.values), PROGRESS), _jobs),
    "contract": Source("contract.view", ("contract.submitted", "contract.offered", "contract.withdrawn"), _versions),
    "acceptance": Source("contract.view", ("contract.accepted",), _acceptances),
    "agreement_end": Source("contract.view", ("contract.left",), _ends),
    "claim": Source("claim.view", tuple(f"claim.{state}" for state in ClaimState.values), _claims),
    "claim_dispute": Source(
        "claim.view",
        tuple(f"claim_dispute.{DISPUTED.get(state, state)}" for state in ClaimDispute.State.values),
        _disputes,
    ),
    "receipt": Source("receipt.view", ("receipt.issued",), _receipts),
}
