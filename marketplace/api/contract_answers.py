"""Contracts, claims and disputes as the API shows them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marketplace.api.answers import Answer, amount
from marketplace.contracts import door, measuring, settling, verifying
from marketplace.contracts import terms as written
from marketplace.models import (
    Acceptance,
    Claim,
    ClaimDispute,
    ClaimEvent,
    ContractVersion,
    Organization,
    Project,
    Verdict,
)


def versions_of(rows: Sequence[ContractVersion], organization: Organization) -> list[Answer]:
    """Return versions, each with the acceptance of one organization. One query."""
    accepted = door.acceptances_of(rows, organization)
    return [version(row, accepted.get(row.pk)) for row in rows]


def version(row: ContractVersion, accepted: Acceptance | None) -> Answer:
    contract, terms = row.contract, written.of(row.terms)
    return {
        "id": row.public_id,
        "contract": contract.public_id,
        "number": row.number,
        "title": contract.title,
        "kind": contract.kind,
        "seller": _named(contract.seller),
        "buyer": _named(contract.buyer) if contract.buyer else None,
        "state": row.state,
        "terms": row.terms,
        "text": row.text,
        "sha256": row.sha256,
        "most_per_subject": amount(terms.most_micros, terms.currency),
        "proposed_by": row.proposed_by,
        "created_at": row.created_at,
        "offered_at": row.offered_at,
        "withdrawn_at": row.withdrawn_at,
        "accepted": acceptance(accepted) if accepted else None,
    }


def acceptance(row: Acceptance) -> Answer:
    return {
        "id": row.public_id,
        "organization": _named(row.organization),
        "side": row.side,
        "sha256": row.sha256,
        "check_image": row.check_image,
        "check_command": row.check_command,
        "accepted_by": row.accepted_by_name,
        "at": row.at,
        "ended_at": row.ended_at,
    }


def claims_of(rows: Iterable[Claim]) -> list[Answer]:
    return [claim(row) for row in rows]


def claim(row: Claim) -> Answer:
    currency = row.organization.currency
    return {
        "id": row.public_id,
        "version": row.version.public_id,
        "title": row.contract.title,
        "seller": _named(row.contract.seller),
        "organization": _named(row.organization),
        "project": _named(row.project),
        "job": row.task.job.public_id if row.task else None,
        "task": row.task.index if row.task else None,
        "subject": settling.subject_of(row),
        "units": row.units,
        "price_bps": row.price_bps,
        "amount": amount(row.amount_micros, currency),
        "most": amount(row.most_micros, currency),
        "paid": amount(row.paid_micros, currency),
        "given_back": amount(row.reversed_micros, currency),
        "state": row.state,
        "state_since": row.state_since,
        "message": row.message,
        "run": row.run,
        "evidence": row.evidence,
        "evidence_sha256": row.evidence_sha256,
        "claimed_at": row.claimed_at,
        "due_at": row.due_at,
        "settled_at": row.settled_at,
        "clawback_until": row.clawback_until,
        "closed_at": row.closed_at,
    }


def claim_with_proof(row: Claim) -> Answer:
    to_sign: Mapping[str, Any] | None = None
    terms = written.of(row.version.terms)
    if terms.verifier == "third_party" and not measuring.is_to_count(row, terms):
        to_sign = verifying.verdict_text(row, result="", run=row.run)
    return claim(row) | {
        "verdicts": [verdict(one) for one in door.verdicts(row)],
        "disputes": [dispute(one) for one in door.disputes_of(row)],
        "to_sign": to_sign,
    }


def verdict(row: Verdict) -> Answer:
    return {
        "id": row.public_id,
        "run": row.run,
        "verifier": row.verifier,
        "verifier_version": row.verifier_version,
        "result": row.result,
        "detail": row.detail,
        "inputs": row.inputs,
        "by": row.by_name,
        "signature": row.signature,
        "at": row.at,
    }


def dispute(row: ClaimDispute) -> Answer:
    return {
        "id": row.public_id,
        "claim": row.claim.public_id,
        "state": row.state,
        "opened_by": row.opened_by,
        "reason": row.reason,
        "text": row.text,
        "opened_at": row.opened_at,
        "decide_by": row.decide_by,
        "due_bps": row.due_bps,
        "decided_by": row.decided_by_name,
        "decided_at": row.decided_at,
        "note": row.note,
        "notes": [
            {"side": one.side, "by": one.by_name, "text": one.text, "at": one.at} for one in row.notes.all()
        ],
    }  # fmt: skip


def event(row: ClaimEvent) -> Answer:
    return {
        "at": row.at, "old_state": row.old_state, "new_state": row.new_state, "message": row.message,
        "by": row.by_name,
    }  # fmt: skip


def _named(row: Organization | Project) -> Answer:
    return {"id": row.public_id, "name": row.name}
