"""Contracts: the catalogue of outcome products, drafts, versions, and agreeing to one."""

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
from marketplace.contracts import door, offering
from marketplace.errors import NotFound
from marketplace.models import ContractVersion, Organization, Side

ANSWER = {200: shapes.ContractVersionAnswer, REFUSED: Problem}
MADE = {201: shapes.ContractVersionAnswer, REFUSED: Problem}


class ContractList(APIView):
    """What is sold by its outcome, and drafting a contract."""

    @extend_schema(
        operation_id="list_contracts",
        parameters=[shapes.ContractQuery, PageQuery],
        responses={200: page_of(shapes.ContractVersionAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List versions of contracts, newest first: the catalogue, what you agreed to, and what you sell."""
        actor, query = actor_of(request), queried(request, shapes.ContractQuery, PageQuery)
        own = access.organization_for(actor, None, verb="contract.view")
        rows = door.versions(actor)
        if query.get("scope") == "catalogue":
            rows = rows.filter(contract__buyer=None, state=ContractVersion.State.OFFERED)
        elif query.get("scope") == "accepted":
            rows = rows.filter(acceptances__organization=own, acceptances__side=Side.BUYER)
        elif query.get("scope") == "sold":
            rows = rows.filter(contract__seller=own)
        if "kind" in query:
            rows = rows.filter(contract__kind=query["kind"])
        return paged(rows, query, lambda found: answers.versions_of(found, own))

    @extend_schema(
        operation_id="draft_contract", parameters=[KEY_REQUIRED], request=shapes.DraftContract, responses=MADE
    )
    def post(self, request: Request) -> Response:
        """Draft a contract that you sell: for the catalogue, or for one customer. Nobody can accept it yet."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.DraftContract, request.data), timezone.now()
        with naming("organization"):
            seller = access.organization_for(actor, asked.get("organization"), verb="contract_sale.change")
        buyer = _buyer(asked["buyer"]) if "buyer" in asked else None

        def effect() -> tuple[int, Any]:
            made = offering.draft(
                actor=actor, seller=seller, title=asked["title"], terms=asked["terms"], buyer=buyer, at=at
            )
            return 201, answers.version(made, None)

        return answered_once(request, organization=seller, order=asked, effect=effect)


def _buyer(organization_id: str) -> Organization:
    """Return a customer by the id that they told the seller; a name tells nothing, so nobody is looked up by one."""
    found = offering.customer(organization_id)
    if found is None:
        raise NotFound("buyer")
    return found


class ContractDetail(APIView):
    """One version."""

    @extend_schema(operation_id="show_contract", responses=ANSWER)
    def get(self, request: Request, contract_id: str) -> Response:
        """Show a version: its terms, their text, and its SHA-256."""
        queried(request)
        actor = actor_of(request)
        own = access.organization_for(actor, None, verb="contract.view")
        return _shown(door.version_for(actor, contract_id, verb="contract.view"), own)


def _shown(version: ContractVersion, organization: Organization) -> Response:
    return Response(answers.versions_of([version], organization)[0])


class ContractVersions(APIView):
    """The versions of a contract."""

    @extend_schema(
        operation_id="draft_contract_version", parameters=[KEY_REQUIRED], request=shapes.DraftVersion, responses=MADE
    )
    def post(self, request: Request, contract_id: str) -> Response:
        """Write the next version: as the seller, or as the one customer that it is negotiated with."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.DraftVersion, request.data), timezone.now()
        contract, side, party = door.contract_for(actor, contract_id)

        def effect() -> tuple[int, Any]:
            made = offering.amend(actor=actor, contract=contract, terms=asked["terms"], side=side, at=at)
            return 201, answers.version(made, None)

        return answered_once(request, organization=party, order=asked, effect=effect)


class ContractOffer(APIView):
    @extend_schema(operation_id="offer_contract", request=None, responses=ANSWER)
    def post(self, request: Request, contract_id: str) -> Response:
        """Offer a draft: whoever it is for may agree to it from now on, and its terms stay as they are."""
        queried(request)
        actor = actor_of(request)
        version = door.own_version_for(actor, contract_id, verb="contract_sale.change")
        offering.offer(actor=actor, version=version, at=timezone.now())
        return _shown(version, version.contract.seller)


class ContractWithdraw(APIView):
    @extend_schema(operation_id="withdraw_contract", request=None, responses=ANSWER)
    def post(self, request: Request, contract_id: str) -> Response:
        """Sell no more under a version. What was begun under it goes on by its terms."""
        queried(request)
        actor = actor_of(request)
        version = door.own_version_for(actor, contract_id, verb="contract_sale.change")
        offering.withdraw(actor=actor, version=version, at=timezone.now())
        return _shown(version, version.contract.seller)


class ContractAccept(APIView):
    @extend_schema(operation_id="accept_contract", request=shapes.AcceptContract, responses=ANSWER)
    def post(self, request: Request, contract_id: str) -> Response:
        """Agree to a version, named by the SHA-256 of its text. Nothing is charged by that."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.AcceptContract, request.data)
        version = door.version_for(actor, contract_id, verb="contract_acceptance.create")
        with naming("organization"):
            own = access.organization_for(actor, asked.get("organization"), verb="contract_acceptance.create")
        offering.accept(
            actor=actor, version=version, organization=own, sha256=asked["sha256"], at=timezone.now(),
            check_image=asked["check_image"], check_command=asked["check_command"],
            third_parties=asked["third_parties"],
        )  # fmt: skip
        return _shown(version, own)


class ContractLeave(APIView):
    @extend_schema(operation_id="leave_contract", request=shapes.LeaveContract, responses=ANSWER)
    def post(self, request: Request, contract_id: str) -> Response:
        """End what you agreed to, for good: nothing new is ordered under it, and no period of it begins any more."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.LeaveContract, request.data)
        version = door.version_for(actor, contract_id, verb="contract_acceptance.create")
        with naming("organization"):
            own = access.organization_for(actor, asked.get("organization"), verb="contract_acceptance.create")
        offering.leave(actor=actor, version=version, organization=own, at=timezone.now())
        return _shown(version, own)
