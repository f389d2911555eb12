"""What an organization promised to use, is offered, and asks for."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import Commitment, CommitmentRequest
from marketplace import access, access_till
from marketplace import commitments as promises
from marketplace.api import price_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_HEADER, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.money import decimal_string, typed_micros

# A key of ours for each key of a caller.
KEYS = UUID("f1c5b2d6-9a84-4d0b-b0cf-3f9f4f0a6d57")


class CommitmentList(APIView):
    @extend_schema(
        operation_id="list_commitments",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(price_shapes.CommitmentAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the commitments that were agreed or offered, newest first, and how much of each is used."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="commitment.view")
        return paged(access_till.commitments(organization), query, lambda found: [_answer(row) for row in found])


class CommitmentAccept(APIView):
    @extend_schema(
        operation_id="accept_commitment",
        parameters=[KEY_ACCEPTED],
        request=None,
        responses={200: price_shapes.CommitmentAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, commitment_id: str) -> Response:
        """Accept what is offered: from its first month on it holds, and what it leaves unused is charged."""
        return _answered(request, commitment_id, promises.accept)


class CommitmentDecline(APIView):
    @extend_schema(
        operation_id="decline_commitment",
        parameters=[KEY_ACCEPTED],
        request=None,
        responses={200: price_shapes.CommitmentAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, commitment_id: str) -> Response:
        """Refuse what is offered."""
        return _answered(request, commitment_id, promises.refuse)


class CommitmentRequestList(APIView):
    @extend_schema(
        operation_id="list_commitment_requests",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(price_shapes.CommitmentRequestAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List what an organization asked to commit to, newest first."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="commitment.view")
        return paged(access_till.commitment_requests(organization), query, lambda found: [_asked(row) for row in found])

    @extend_schema(
        operation_id="ask_for_commitment",
        parameters=[KEY_REQUIRED],
        request=price_shapes.AskCommitment,
        responses={201: price_shapes.CommitmentRequestAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Ask for a commitment. Nothing is promised: the operator answers with an offer, or says why not."""
        queried(request)
        actor, at = actor_of(request), timezone.now()
        asked = checked(price_shapes.AskCommitment, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.pop("organization", None), verb="commitment.change")
        micros, hours = asked.pop("amount"), asked.pop("hours")
        amount = typed_micros(micros or "") if asked["kind"] == Commitment.Kind.SPEND else hours

        def effect() -> tuple[int, Any]:
            key = uuid5(KEYS, f"{organization.public_id}:{request.headers.get(KEY_HEADER, '')}")
            made = promises.ask(actor=actor, organization=organization, amount=amount or 0, key=key, at=at, **asked)
            return 201, _asked(made)

        order = {**asked, "amount": micros, "hours": hours}
        return answered_once(request, organization=organization, order=order, effect=effect)


class CommitmentRequestWithdraw(APIView):
    @extend_schema(
        operation_id="withdraw_commitment_request",
        parameters=[KEY_ACCEPTED],
        request=None,
        responses={200: price_shapes.CommitmentRequestAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, request_id: str) -> Response:
        """Take a request back."""
        queried(request)
        actor = actor_of(request)
        made = access_till.commitment_request_for(actor, request_id, verb="commitment.change")

        def effect() -> tuple[int, Any]:
            promises.withdraw(actor=actor, request=made, at=timezone.now())
            return 200, _asked(made)

        return answered_once(request, organization=made.organization, order={}, effect=effect, required=False)


def _answered(request: Request, commitment_id: str, verb: Callable[..., None]) -> Response:
    queried(request)
    actor = actor_of(request)
    row = access_till.commitment_for(actor, commitment_id, verb="commitment.change")

    def effect() -> tuple[int, Any]:
        verb(actor=actor, commitment=row, at=timezone.now())
        return 200, _answer(row)

    return answered_once(request, organization=row.organization, order={}, effect=effect, required=False)


def _asked(row: CommitmentRequest) -> dict[str, Any]:
    is_spend = row.kind == Commitment.Kind.SPEND
    copied = ("state", "kind", "skus", "currency", "starts_at", "months", "note", "answer", "asked_at")
    return {
        "id": row.public_id,
        "amount": decimal_string(row.amount) if is_spend else None,
        "hours": None if is_spend else row.amount,
        **{name: getattr(row, name) for name in copied},
    }


def _answer(row: Commitment) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "state": row.state,
        "kind": row.kind,
        "currency": row.currency,
        "committed": decimal_string(row.committed_micros),
        "committed_unit_hours": row.committed_unit_hours or None,
        "drawn": decimal_string(row.drawn_micros),
        "drawn_unit_milliseconds": row.drawn_unit_milliseconds,
        "left": decimal_string(row.left_micros),
        "left_over": decimal_string(row.breakage_micros),
        "discount_bps": row.discount_bps,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "prices": [
            {
                "name": price.name,
                "sku": price.sku,
                "unit": f"{price.unit}_hour",
                "amount": decimal_string(price.micros_per_unit_hour),
                "currency": row.currency,
                "list_amount": decimal_string(price.list_micros_per_unit_hour),
            }
            for price in row.prices.all()
        ],
    }
