"""Claims and their disputes, for both sides and for third parties that sign."""

from collections.abc import Callable
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access
from marketplace.api import contract_answers as answers
from marketplace.api import contract_shapes as shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.shapes import REFUSED, Problem, page_of
from marketplace.api.views import KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.contracts import answering, disputing, door, filing, reversing, settling, verifying
from marketplace.models import Claim, Organization, Side

ANSWER = {200: shapes.ClaimWithProof, REFUSED: Problem}
DISPUTE = {200: shapes.ClaimDisputeAnswer, REFUSED: Problem}


class ClaimList(APIView):
    """All claims that the token may see, and filing one."""

    @extend_schema(
        operation_id="list_claims",
        parameters=[shapes.ClaimQuery, PageQuery],
        responses={200: page_of(shapes.ClaimAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List claims, newest first: of what you buy, or of what you sell."""
        actor, query = actor_of(request), queried(request, shapes.ClaimQuery, PageQuery)
        rows = door.claims(actor, side=query["side"])
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="claim.view"))
        for name, column in (("state", "state"), ("job", "task__job__public_id"), ("version", "version__public_id")):
            if name in query:
                rows = rows.filter(**{column: query[name]})
        return paged(rows, query, answers.claims_of)

    @extend_schema(
        operation_id="file_claim",
        parameters=[KEY_REQUIRED],
        request=shapes.FileClaim,
        responses={201: shapes.ClaimWithProof, REFUSED: Problem},
    )
    def post(self, request: Request) -> Response:
        """Claim a result outside of jobs under a version that you sell. The same subject is paid once."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.FileClaim, request.data), timezone.now()
        with naming("version"):
            version = door.own_version_for(actor, asked["version"], verb="claim_sale.change")
        with naming("project"):
            project = door.customers_project(version, asked["project"])

        def effect() -> tuple[int, Any]:
            made = filing.file(
                actor=actor, version=version, project=project, subject=asked["subject"], units=asked["units"],
                evidence=asked["evidence"], at=at,
            )  # fmt: skip
            return 201, _shown(made)

        return answered_once(request, organization=version.contract.seller, order=asked, effect=effect)


def _shown(claim: Claim) -> Any:
    return answers.claim_with_proof(door.any_claim(claim.public_id))


class ClaimDetail(APIView):
    """One claim."""

    @extend_schema(operation_id="show_claim", responses=ANSWER)
    def get(self, request: Request, claim_id: str) -> Response:
        """Show a claim: its price, its evidence by digests, what was said of it, and what happens next."""
        queried(request)
        claim, _ = door.claim_for(actor_of(request), claim_id, verbs=door.VIEW)
        return Response(_shown(claim))


class ClaimEvents(APIView):
    """What happened to one claim."""

    @extend_schema(
        operation_id="list_claim_events",
        parameters=[PageQuery],
        responses={200: page_of(shapes.ClaimEventAnswer), REFUSED: Problem},
    )
    def get(self, request: Request, claim_id: str) -> Response:
        """List what happened to it, newest first."""
        query = queried(request, PageQuery)
        claim, _ = door.claim_for(actor_of(request), claim_id, verbs=door.VIEW)
        return paged(door.events(claim), query, lambda rows: [answers.event(row) for row in rows])


def _done(
    request: Request, claim: Claim, organization: Organization, order: dict[str, Any], verb: Callable[[], Any]
) -> Response:
    """Say a verb about a claim once for its key, and show the claim as it is then."""

    def effect() -> tuple[int, Any]:
        verb()
        return 200, _shown(claim)

    return answered_once(request, organization=organization, order=order, effect=effect)


def _party(claim: Claim, side: Side) -> Organization:
    return claim.organization if side == Side.BUYER else claim.contract.seller


class ClaimAccept(APIView):
    @extend_schema(operation_id="accept_claim", parameters=[KEY_REQUIRED], request=None, responses=ANSWER)
    def post(self, request: Request, claim_id: str) -> Response:
        """Accept a result: it is paid at once, out of what was set aside."""
        queried(request)
        actor, at = actor_of(request), timezone.now()
        claim, _ = door.claim_for(actor, claim_id, verbs=door.AS_CUSTOMER)
        return _done(request, claim, claim.organization, {}, lambda: answering.accept(actor=actor, claim=claim, at=at))


class ClaimReject(APIView):
    @extend_schema(operation_id="reject_claim", parameters=[KEY_REQUIRED], request=shapes.Because, responses=ANSWER)
    def post(self, request: Request, claim_id: str) -> Response:
        """Refuse a result and say why; it is not paid, unless its seller contests that in time."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.Because, request.data), timezone.now()
        claim, _ = door.claim_for(actor, claim_id, verbs=door.AS_CUSTOMER)
        return _done(
            request, claim, claim.organization, asked,
            lambda: answering.reject(actor=actor, claim=claim, reason=asked["reason"], at=at),
        )  # fmt: skip


class ClaimDisputes(APIView):
    @extend_schema(
        operation_id="dispute_claim", parameters=[KEY_REQUIRED], request=shapes.OpenClaimDispute, responses=ANSWER
    )
    def post(self, request: Request, claim_id: str) -> Response:
        """Contest how a claim stands, as its customer or its seller. What is disputed stays set aside."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.OpenClaimDispute, request.data), timezone.now()
        claim, side = door.claim_for(actor, claim_id, verbs=door.ACT)
        return _done(
            request, claim, _party(claim, side), asked,
            lambda: disputing.open(
                actor=actor, claim=claim, side=side, reason=asked["reason"], text=asked["text"], at=at
            ),
        )  # fmt: skip


class ClaimReverse(APIView):
    @extend_schema(operation_id="reverse_claim", parameters=[KEY_REQUIRED], request=shapes.Because, responses=ANSWER)
    def post(self, request: Request, claim_id: str) -> Response:
        """Give back what was paid for a claim that you sold, within its claw-back window."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.Because, request.data), timezone.now()
        claim, _ = door.claim_for(actor, claim_id, verbs=door.AS_SELLER)
        return _done(
            request, claim, claim.contract.seller, asked,
            lambda: reversing.reverse(actor=actor, claim=claim, reason=asked["reason"], at=at),
        )  # fmt: skip


class ClaimVoid(APIView):
    @extend_schema(operation_id="void_claim", parameters=[KEY_REQUIRED], request=shapes.Because, responses=ANSWER)
    def post(self, request: Request, claim_id: str) -> Response:
        """Withdraw a claim that you made, before it is paid: what was set aside for it goes back."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.Because, request.data), timezone.now()
        claim, _ = door.claim_for(actor, claim_id, verbs=door.AS_SELLER)
        return _done(
            request, claim, claim.contract.seller, asked,
            lambda: settling.void(actor=actor, claim=claim, reason=asked["reason"], at=at),
        )  # fmt: skip


class ClaimVerdicts(APIView):
    @extend_schema(
        operation_id="give_verdict",
        request=shapes.SignedVerdict,
        responses={200: shapes.ClaimVerdictAnswer, REFUSED: Problem},
    )
    def post(self, request: Request, claim_id: str) -> Response:
        """Give the verdict of the third party that the terms name: its signature counts, not whose token brings it.

        Sign the claim's `to_sign` with the result filled in, as canonical JSON (RFC 8785). A replay changes nothing.
        """
        queried(request)
        claim = door.claim_for_party(actor_of(request), claim_id)
        asked = checked(shapes.SignedVerdict, request.data)
        given = verifying.take_signed(claim=claim, at=timezone.now(), **asked)
        return Response(answers.verdict(given))


class ClaimDisputeList(APIView):
    @extend_schema(
        operation_id="list_claim_disputes",
        parameters=[PageQuery],
        responses={200: page_of(shapes.ClaimDisputeAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List disputes of claims on both sides, newest first."""
        query = queried(request, PageQuery)
        rows = door.disputes(actor_of(request))
        return paged(rows, query, lambda found: [answers.dispute(row) for row in found])


class ClaimDisputeDetail(APIView):
    @extend_schema(operation_id="show_claim_dispute", responses=DISPUTE)
    def get(self, request: Request, dispute_id: str) -> Response:
        """Show a dispute with what both sides said."""
        queried(request)
        dispute, _ = door.dispute_for(actor_of(request), dispute_id, verbs=door.VIEW)
        return Response(answers.dispute(dispute))


class ClaimDisputeAnswers(APIView):
    @extend_schema(operation_id="answer_claim_dispute", request=shapes.SayInDispute, responses=DISPUTE)
    def post(self, request: Request, dispute_id: str) -> Response:
        """Say something in an open dispute; both sides and whoever decides read it."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.SayInDispute, request.data)
        dispute, side = door.dispute_for(actor, dispute_id, verbs=door.ACT)
        disputing.answer(actor=actor, dispute=dispute, side=side, text=asked["text"], at=timezone.now())
        return _dispute(dispute_id)


class ClaimDisputeWithdraw(APIView):
    @extend_schema(operation_id="withdraw_claim_dispute", request=None, responses=DISPUTE)
    def post(self, request: Request, dispute_id: str) -> Response:
        """Contest no more, which gives the other side its way."""
        queried(request)
        actor = actor_of(request)
        dispute, side = door.dispute_for(actor, dispute_id, verbs=door.ACT)
        disputing.withdraw(actor=actor, dispute=dispute, side=side, at=timezone.now())
        return _dispute(dispute_id)


def _dispute(dispute_id: str) -> Response:
    return Response(answers.dispute(door.any_dispute(dispute_id)))


class ClaimDisputeDecision(APIView):
    @extend_schema(operation_id="decide_claim_dispute", request=shapes.SignedDecision, responses=DISPUTE)
    def post(self, request: Request, dispute_id: str) -> Response:
        """Decide as the arbiter that the terms name: its signature counts, not whose token brings it."""
        queried(request)
        found = door.dispute_for_arbiter(actor_of(request), dispute_id)
        asked = checked(shapes.SignedDecision, request.data)
        disputing.decide_signed(dispute=found, at=timezone.now(), **asked)
        return _dispute(dispute_id)
