"""Commitments of organizations: proposed by one capacity manager, offered or agreed by another."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from billing import commitment_requests, commitments
from billing.models import Commitment, CommitmentRequest
from marketplace import audit, wares
from marketplace.access import Actor
from marketplace.commitments import said, written
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Organization


def commitment_for(commitment_id: str) -> Commitment:
    """Return any commitment, or raise NotFound."""
    found = Commitment.objects.select_related("organization", "proposed_by").filter(public_id=commitment_id).first()
    if found is None:
        raise NotFound
    return found


def request_for(request_id: str) -> CommitmentRequest:
    """Return any request of a customer, or raise NotFound."""
    found = commitment_requests.listed().filter(public_id=request_id).first()
    if found is None:
        raise NotFound
    return found


def open_requests() -> QuerySet[CommitmentRequest]:
    """Return what customers ask for and nobody has answered yet."""
    return commitment_requests.listed().filter(state=CommitmentRequest.State.OPEN)


@transaction.atomic
def propose(
    *,
    actor: Actor,
    organization: Organization,
    kind: str,
    skus: Sequence[str],
    spend_micros: int | None,
    hours: int | None,
    discount_bps: int,
    starts_at: datetime,
    months: int,
    note: str,
    key: UUID,
    at: datetime,
    request: CommitmentRequest | None = None,
) -> Commitment:
    """Propose a commitment, in answer to a customer's request if there is one; somebody else decides."""
    is_known = Commitment.objects.filter(key=key).exists()
    try:
        with said():
            made = commitments.propose(
                organization=organization,
                currency=organization.currency,
                kind=kind,
                skus=skus,
                amount=(spend_micros if kind == Commitment.Kind.SPEND else hours) or 0,
                discount_bps=discount_bps,
                starts_at=starts_at,
                months=months,
                note=note,
                by=actor.user.pk,
                key=key,
                at=at,
                names={ware.sku: ware.name for ware in wares.all_of_them()},
            )
            if request is not None and not is_known:
                commitment_requests.answer(request=request, commitment=made, at=at)
    except BadOrder as error:
        raise BadOrder("spend_micros" if error.field == "amount" else error.field, str(error)) from error
    if not is_known:
        _record(actor, made, "commitment.propose")
    return made


@transaction.atomic
def offer(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Offer a proposed commitment to its customer; not by whoever proposed it."""
    with said():
        commitments.offer(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment, "commitment.offer")


@transaction.atomic
def agree(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Let a commitment hold that its customer has signed, from its first month on; not by whoever proposed it."""
    with said():
        commitments.agree(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment, "commitment.agree")


@transaction.atomic
def decline(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Give up a proposal."""
    with said():
        commitments.decline(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment, "commitment.decline")


@transaction.atomic
def decline_request(*, actor: Actor, request: CommitmentRequest, reason: str, at: datetime) -> None:
    """Say no to what a customer asks for, and why."""
    with said():
        commitment_requests.decline(request=request, answer=reason, at=at)
    audit.record(
        actor=actor, organization=request.organization, verb="commitment.decline_request",
        subject_id=request.public_id, after={"answer": reason},
    )  # fmt: skip


def _record(actor: Actor, row: Commitment, verb: str) -> None:
    audit.record(actor=actor, organization=row.organization, verb=verb, subject_id=row.public_id, after=written(row))
