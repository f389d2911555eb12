"""Receipts: to list, to download one or the whole chain, and the public keys by which anybody verifies them."""

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, access_receipts
from marketplace.api import receipt_shapes, shapes
from marketplace.api.invoices import AnyAccepted
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.models import Receipt
from marketplace.money import decimal_string
from marketplace.receipts import chain, keys

Answer = dict[str, object]


class ReceiptList(APIView):
    @extend_schema(
        operation_id="list_receipts",
        parameters=[shapes.OrganizationQuery, receipt_shapes.ReceiptQuery, PageQuery],
        responses={200: shapes.page_of(receipt_shapes.ReceiptAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List receipts, newest first: what each is about. The signed document is at /receipts/{id}."""
        query = queried(request, shapes.OrganizationQuery, receipt_shapes.ReceiptQuery, PageQuery)
        actor = actor_of(request)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="receipt.view")
        rows = access_receipts.receipts(actor, organization)
        if query.get("claim"):
            rows = rows.filter(subject_id=query["claim"])
        return paged(rows, query, lambda found: [answer(row) for row in found])


class ReceiptDetail(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_receipt", responses={200: OpenApiTypes.OBJECT, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, receipt_id: str) -> HttpResponse:
        """Download a receipt: canonical JSON (RFC 8785), signed (Ed25519). Keep the bytes as they are."""
        queried(request)
        row = access_receipts.receipt_for(actor_of(request), receipt_id, verb="receipt.view")
        found = HttpResponse(chain.document(row), content_type="application/json")
        found["Content-Disposition"] = f'attachment; filename="{row.public_id}.json"'
        return found


class ReceiptChain(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_receipt_chain",
        parameters=[shapes.OrganizationQuery, receipt_shapes.ChainQuery],
        responses={(200, "application/jsonl"): OpenApiTypes.STR, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> HttpResponse:
        """Download receipts in the order of their chain, one on each line; none where there are no more."""
        query = queried(request, shapes.OrganizationQuery, receipt_shapes.ChainQuery)
        actor = actor_of(request)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="receipt.view")
        rows = access_receipts.receipts(actor, organization).filter(sequence__gt=query["after"]).order_by("sequence")
        return HttpResponse(chain.lines(rows[: query["limit"]]), content_type="application/jsonl")


class ReceiptHead(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_receipt_head",
        parameters=[shapes.OrganizationQuery],
        responses={200: OpenApiTypes.OBJECT, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> HttpResponse:
        """Download the platform's signed word on how long the chain is now: by it a chain cut short is found."""
        query = queried(request, shapes.OrganizationQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="receipt.view")
        return HttpResponse(chain.head(organization, at=timezone.now()), content_type="application/json")


class KeyList(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="list_signing_keys",
        responses={200: receipt_shapes.KeysAnswer, shapes.REFUSED: shapes.Problem},
        auth=[],
    )
    def get(self, request: Request) -> Response:
        """List the public keys by which anybody verifies receipts, those that count no more among them."""
        queried(request)
        return Response(keys.document(at=timezone.now()))


def answer(row: Receipt) -> Answer:
    """Return what a receipt is about."""
    return {
        "id": row.public_id,
        "organization": row.organization.public_id,
        "project": row.project.public_id if row.project else None,
        "sequence": row.sequence,
        "digest": row.digest,
        "previous": row.previous or None,
        "claim": row.subject_id,
        "event": row.event,
        "amount": decimal_string(row.amount_micros),
        "currency": row.currency,
        "issued_at": row.issued_at,
    }
