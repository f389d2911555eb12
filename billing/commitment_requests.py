"""Customers who ask for a commitment: one request at a time, answered with a proposal or declined."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from billing import accounts, commitments, repeats
from billing.errors import AlreadyDecided, AlreadyProposed
from billing.models import Commitment, CommitmentRequest
from billing.moves import move

State = CommitmentRequest.State
MOVES: Mapping[str, tuple[str, ...]] = {
    State.OPEN: (State.ANSWERED, State.DECLINED, State.WITHDRAWN),
    State.ANSWERED: (),
    State.DECLINED: (),
    State.WITHDRAWN: (),
}


@transaction.atomic
def ask(
    *,
    organization: accounts.Organization,
    kind: str,
    skus: Sequence[str],
    amount: int,
    starts_at: datetime,
    months: int,
    note: str,
    by: int,
    key: UUID,
    at: datetime,
) -> CommitmentRequest:
    """Ask for a commitment, once per key; nothing is promised yet. `by` is a person's id of the customer's.

    Raises BadCommitment for what nobody can promise, AlreadyProposed while another request is open.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    wanted = {"kind": kind, "skus": list(skus), "amount": amount, "starts_at": starts_at, "months": months}
    first = repeats.find(CommitmentRequest, key, organization_id=organization.pk, **wanted)
    if first is not None:
        return first
    commitments.check(kind, skus, amount, organization.currency, starts_at=starts_at, months=months, at=at)
    commitments.listed(skus, currency=organization.currency, at=at)
    if CommitmentRequest.objects.filter(organization=organization.pk, state=State.OPEN).exists():
        raise AlreadyProposed("another request of this organization is open")
    return CommitmentRequest.objects.create(
        **wanted, organization_id=organization.pk, currency=organization.currency, note=note, asked_by_id=by,
        asked_at=at, key=key,
    )  # fmt: skip


def answer(*, request: CommitmentRequest, commitment: Commitment, at: datetime) -> None:
    """Answer a request with a proposal, in the transaction that made that."""
    _move(request, State.ANSWERED, commitment=commitment, decided_at=at)


def decline(*, request: CommitmentRequest, answer: str, at: datetime) -> None:
    """Say no to a request, and why; the customer reads it."""
    _move(request, State.DECLINED, answer=answer, decided_at=at)


def withdraw(*, request: CommitmentRequest, at: datetime) -> None:
    """Take a request back."""
    _move(request, State.WITHDRAWN, decided_at=at)


def listed() -> QuerySet[CommitmentRequest]:
    """Return all requests, the newest first."""
    found = CommitmentRequest.objects.select_related("organization", "asked_by", "commitment")
    return found.order_by("-pk")


def _move(request: CommitmentRequest, state: str, **facts: object) -> None:
    if not move(request, state, MOVES, **facts):
        raise AlreadyDecided("somebody answered it already, or took it back")
    request.refresh_from_db()
