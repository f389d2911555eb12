"""Receipts of claims: what each says, gathered for many at once, and the sweep that writes them.

Names of people are left out: a receipt is never changed, and may be shown to anybody.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction

from marketplace.contracts import terms as written
from marketplace.models import Attempt, Claim, ClaimDispute, ClaimEvent, ReceiptDue, Verdict, VerifierRun
from marketplace.receipts import chain
from marketplace.receipts.chain import Entry
from provisioning import statements
from provisioning.agent.signing import digest, moment
from provisioning.models import Assignment, NodeStatement

RELATED = ("version__contract", "organization", "project", "task__job")
NOT_STATED = "its node stated nothing"


@dataclass
class Evidence:
    """All rows that receipts of these claims speak of, by claim or by instance."""

    moves: Mapping[int, Sequence[ClaimEvent]]
    verdicts: Mapping[int, Sequence[Verdict]]
    disputes: Mapping[int, Sequence[ClaimDispute]]
    runs: Mapping[int, Sequence[VerifierRun]]
    attempts: Mapping[int, Sequence[Attempt]]
    assignments: Mapping[int, Sequence[Assignment]]
    statements: Mapping[int, NodeStatement] = field(default_factory=dict)


@transaction.atomic
def issue_due(*, at: datetime, limit: int) -> int:
    """Write the receipts of up to `limit` claims that closed or were reversed, the oldest first; return how many.

    Two that do so at once take different claims. Their claims are locked until the notes of them are deleted: whoever
    moves one meanwhile notes it after that. Queries: ten, and seven for each organization.
    """
    due = ReceiptDue.objects.select_for_update(skip_locked=True).order_by("pk")[:limit]
    keys = list(due.values_list("pk", flat=True))
    if not keys:
        return 0
    rows = Claim.objects.select_for_update(no_key=True, of=("self",)).filter(pk__in=keys)
    claims = list(rows.select_related(*RELATED).order_by("pk"))
    found = gathered(claims)
    entries: dict[Any, list[Entry]] = defaultdict(list)
    for claim in claims:
        entries[claim.organization].append(_entry(claim, found))
    made = 0
    for organization, new in sorted(entries.items(), key=lambda pair: pair[0].pk):
        made += len(chain.append(organization=organization, entries=new, at=at))
    ReceiptDue.objects.filter(pk__in=keys).delete()
    return made


def gathered(claims: Sequence[Claim]) -> Evidence:
    """Return what is to be said of these claims. Queries: seven, however many claims."""
    tries = Attempt.objects.filter(task__in=[claim.task_id for claim in claims if claim.task_id])
    attempts = list(tries.select_related("instance").order_by("number"))
    runs = list(VerifierRun.objects.filter(claim__in=claims).select_related("instance").order_by("run", "number"))
    instances = [one.instance_id for one in attempts] + [one.instance_id for one in runs]
    rows = Assignment.objects.filter(instance__in=instances).select_related("node").order_by("fence", "replica")
    assignments = list(rows)
    return Evidence(
        moves=_grouped(ClaimEvent.objects.filter(claim__in=claims).order_by("pk"), "claim_id"),
        verdicts=_grouped(Verdict.objects.filter(claim__in=claims).order_by("pk"), "claim_id"),
        disputes=_grouped(ClaimDispute.objects.filter(claim__in=claims).order_by("pk"), "claim_id"),
        runs=_grouped(runs, "claim_id"),
        attempts=_grouped(attempts, "task_id"),
        assignments=_grouped(assignments, "instance_id"),
        statements=statements.of_assignments(row.pk for row in assignments),
    )


def content(claim: Claim, found: Evidence) -> dict[str, Any]:
    """Return what a receipt says of a claim; docs/receipts.md names each member."""
    version, job = claim.version, claim.task.job if claim.task else None
    return {
        "contract": {
            "id": version.contract.public_id,
            "kind": version.contract.kind,
            "version": version.public_id,
            "number": version.number,
            "sha256": version.sha256,
            "terms": version.terms,
        },
        "claim": {
            "id": claim.public_id,
            "scope": claim.scope,
            "subject": claim.subject_key,
            "run": claim.run,
            "claimed_at": moment(claim.claimed_at),
            "closed_at": _when(claim.closed_at),
            "evidence_sha256": claim.evidence_sha256,
            "evidence": claim.evidence if claim.task_id else None,
            "history": [_move(one) for one in found.moves.get(claim.pk, ()) if one.old_state != one.new_state],
        },
        "job": None if job is None else {
            "id": job.public_id, "spec_sha256": job.spec_sha256, "task": claim.task and claim.task.index,
        },
        "attempts": [_attempt(one, found) for one in found.attempts.get(claim.task_id or 0, ())],
        "verdicts": [_verdict(one) for one in found.verdicts.get(claim.pk, ())],
        "checks": [_run(one, found) for one in found.runs.get(claim.pk, ())],
        "disputes": [_dispute(one) for one in found.disputes.get(claim.pk, ())],
        "price": price(claim),
        "energy": None,
    }  # fmt: skip


def price(claim: Claim) -> dict[str, Any]:
    """Return the arithmetic of a claim's price. Micros are texts: JSON's own numbers are exact only up to 2^53."""
    terms = written.of(claim.version.terms)
    unit = terms["unit"]
    return {
        "currency": terms.currency,
        "unit": unit["name"],
        "units": claim.units,
        "per": unit["per"],
        "unit_price_micros": str(unit["price_micros"]),
        "late_bps": claim.price_bps,
        "due_bps": claim.due_bps,
        "bps": claim.paid_bps,
        "asked_micros": str(terms.amount_micros(units=claim.units, bps=claim.paid_bps)),
        "paid_micros": str(claim.paid_micros),
        "reversed_micros": str(claim.reversed_micros),
        "amount_micros": str(claim.kept_micros),
    }


def _entry(claim: Claim, found: Evidence) -> Entry:
    return Entry(
        project=claim.project,
        subject_id=claim.public_id,
        event=claim.state,
        amount_micros=claim.kept_micros,
        currency=str(claim.version.terms["currency"]),
        content=content(claim, found),
    )


def _attempt(attempt: Attempt, found: Evidence) -> dict[str, Any]:
    instance = attempt.instance
    files = {"inputs": instance.inputs or None, "outputs": attempt.outputs_sha256 or instance.outputs_sha256 or None}
    return {
        "number": attempt.number,
        "state": attempt.state,
        "reason": attempt.reason,
        "exit_code": attempt.exit_code,
        "began_at": _when(attempt.began_at),
        "ended_at": _when(attempt.ended_at),
        "instance": instance.public_id,
        "image": instance.image,
        **files,
        "replicas": [_replica(row, found, files) for row in found.assignments.get(instance.pk, ())],
    }


def _run(run: VerifierRun, found: Evidence) -> dict[str, Any]:
    files = {"inputs": run.instance.inputs or None, "outputs": run.instance.outputs_sha256 or None}
    return {
        "run": run.run,
        "number": run.number,
        "result": run.result,
        "started_at": moment(run.started_at),
        "ended_at": _when(run.ended_at),
        "instance": run.instance.public_id,
        "image": run.instance.image,
        **files,
        "replicas": [_replica(row, found, files) for row in found.assignments.get(run.instance_id, ())],
    }


def _replica(row: Assignment, found: Evidence, files: Mapping[str, str | None]) -> dict[str, Any]:
    stated = found.statements.get(row.pk)
    why_not = _why_not(row, stated, files)
    key = stated.key if stated is not None and not why_not else None
    return {
        "assignment": row.public_id,
        "fence": row.fence,
        "replica": row.replica,
        "node": row.node.public_id,
        "gpus": row.gpu_uuids,
        "exit_code": row.exit_code,
        "key": key and {"id": key.public_id, "public_key": key.public_key},
        "statement": stated.document if stated is not None and key is not None else None,
        "why_not": why_not or None,
    }


def _why_not(row: Assignment, stated: NodeStatement | None, files: Mapping[str, str | None]) -> str:
    """Return why a node's statement is not evidence, or nothing: what came in between may contradict it."""
    if stated is None:
        return NOT_STATED
    if stated.trouble:
        return stated.trouble
    if stated.key is not None and stated.key.revoked_at is not None:
        return "the key that signed it was revoked"
    body = stated.document["body"]
    differs = {
        "exit code than its node": body["exit_code"] != row.exit_code,
        "manifest of inputs than was given": body["inputs"] != files["inputs"],
        "manifest of outputs than the store has": row.replica == 0 and body["outputs"] not in {None, files["outputs"]},
    }
    return next((f"it states another {what}" for what, is_so in differs.items() if is_so), "")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "id": verdict.public_id,
        "run": verdict.run,
        "verifier": verdict.verifier,
        "version": verdict.verifier_version,
        "result": verdict.result,
        "inputs": verdict.inputs,
        "detail_sha256": digest(verdict.detail) if verdict.detail else None,
        "signature": verdict.signature or None,
        "at": moment(verdict.at),
    }


def _dispute(dispute: ClaimDispute) -> dict[str, Any]:
    return {
        "id": dispute.public_id,
        "by": dispute.opened_by,
        "reason": dispute.reason,
        "state": dispute.state,
        "due_bps": dispute.due_bps,
        "opened_at": moment(dispute.opened_at),
        "decided_at": _when(dispute.decided_at),
    }


def _move(event: ClaimEvent) -> dict[str, Any]:
    return {"at": moment(event.at), "from": event.old_state or None, "to": event.new_state}


def _when(at: datetime | None) -> str | None:
    return None if at is None else moment(at)


def _grouped(rows: Iterable[Any], name: str) -> dict[int, list[Any]]:
    groups: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, name)].append(row)
    return groups
