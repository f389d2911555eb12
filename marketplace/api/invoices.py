"""Invoices: to list, to read, to download, and to work out again; and the details that they carry."""

from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.invoicing import proof
from marketplace import access
from marketplace.api import invoice_answers, invoice_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.invoices import details, export, pdf

CHUNK = 1000


class AnyAccepted(BaseContentNegotiation):
    """A file is not one of our renderers; problems in its place are JSON."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> tuple[BaseRenderer, str]:
        return JSONRenderer(), "application/json"


class InvoiceList(APIView):
    @extend_schema(
        operation_id="list_invoices",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(invoice_shapes.InvoiceAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List invoices and credit notes, newest first, and what is still to be paid of each."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="invoice.view")
        rows = access.invoices(organization)
        return paged(rows, query, lambda found: invoice_answers.invoices(organization, found))


class InvoiceDetail(APIView):
    @extend_schema(
        operation_id="show_invoice", responses={200: invoice_shapes.InvoiceAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, invoice_id: str) -> Response:
        """Show an invoice: who, when, totals and tax. Its lines have an address of their own."""
        queried(request)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        return Response(invoice_answers.invoices(row.organization, [row])[0])


class InvoiceLines(APIView):
    @extend_schema(
        operation_id="list_invoice_lines",
        parameters=[PageQuery],
        responses={200: shapes.page_of(invoice_shapes.InvoiceLineAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, invoice_id: str) -> Response:
        """List an invoice's lines: what was used, at which price, exactly and rounded."""
        query = queried(request, PageQuery)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        return paged(access.invoice_lines(row), query, lambda found: [invoice_answers.line(line) for line in found])


class InvoiceLinesCsv(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_invoice_lines",
        responses={(200, "text/csv"): OpenApiTypes.STR, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, invoice_id: str) -> HttpResponseBase:
        """Download all lines of an invoice as CSV."""
        queried(request)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        lines = access.invoice_lines(row).order_by("pk").iterator(chunk_size=CHUNK)
        answer = StreamingHttpResponse(export.csv_of(row, lines), content_type="text/csv; charset=utf-8")
        answer["Content-Disposition"] = f'attachment; filename="{row.number}.csv"'
        return answer


class InvoicePdf(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_invoice",
        responses={(200, "application/pdf"): OpenApiTypes.BINARY, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, invoice_id: str) -> HttpResponse:
        """Download an invoice as PDF, in the language of its billing details."""
        queried(request)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        answer = HttpResponse(pdf.drawn(row, access.invoice_lines(row).order_by("pk")), content_type="application/pdf")
        answer["Content-Disposition"] = f'attachment; filename="{row.number}.pdf"'
        return answer


class InvoiceProof(APIView):
    @extend_schema(
        operation_id="prove_invoice",
        parameters=[PageQuery],
        responses={200: invoice_shapes.ProofAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, invoice_id: str) -> Response:
        """Work an invoice out anew from its spans and prices: the arithmetic of each line, and whether it agrees."""
        query = queried(request, PageQuery)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        page = paged(
            access.invoice_lines(row),
            query,
            lambda found: [invoice_answers.proof(line) for line in proof.of_lines(row, found)],
        )
        page.data = {
            "invoice": {"id": row.public_id, "number": row.number},
            "rule": invoice_answers.RULE,
            "totals": invoice_answers.totals(proof.of_totals(row)),
            **page.data,
        }
        return page


class BillingDetailsOf(APIView):
    @extend_schema(
        operation_id="show_billing_details",
        responses={200: invoice_shapes.BillingDetailsAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, organization_id: str) -> Response:
        """Show who an organization is on its invoices."""
        queried(request)
        organization = access.organization_for(actor_of(request), organization_id, verb="billing_details.view")
        return Response(invoice_answers.details(access.billing_details(organization)))

    @extend_schema(
        operation_id="save_billing_details",
        request=invoice_shapes.SaveBillingDetails,
        responses={200: invoice_shapes.BillingDetailsAnswer, shapes.REFUSED: shapes.Problem},
    )
    def put(self, request: Request, organization_id: str) -> Response:
        """Say who an organization is on its invoices from now on; those that were issued stay as they are."""
        queried(request)
        actor = actor_of(request)
        organization = access.organization_for(actor, organization_id, verb="billing_details.change")
        given = checked(invoice_shapes.SaveBillingDetails, request.data)
        return Response(invoice_answers.details(details.change(actor=actor, organization=organization, **given)))
