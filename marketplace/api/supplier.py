"""What suppliers earn: statements with the arithmetic of each line, their files, and payouts."""

from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import Payout, StatementLine, SupplierStatement
from billing.suppliers import statements
from marketplace import access_till
from marketplace.api import shapes, supplier_shapes
from marketplace.api.invoices import AnyAccepted
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.money import decimal_string
from marketplace.suppliers import files


class StatementList(APIView):
    @extend_schema(
        operation_id="list_statements",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(supplier_shapes.StatementAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List a supplier's monthly statements, newest first."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            supplier = access_till.supplier_for(actor_of(request), query.get("organization"), verb="supplier.view")
        return paged(access_till.statements(supplier), query, lambda found: [_statement(row) for row in found])


class StatementDetail(APIView):
    @extend_schema(
        operation_id="show_statement", responses={200: supplier_shapes.StatementAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, statement_id: str) -> Response:
        """Show a statement: what was earned, adjusted and paid out. Its lines have an address of their own."""
        queried(request)
        return Response(_statement(access_till.statement_for(actor_of(request), statement_id, verb="supplier.view")))


class StatementLines(APIView):
    @extend_schema(
        operation_id="list_statement_lines",
        parameters=[PageQuery],
        responses={200: shapes.page_of(supplier_shapes.StatementLineAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, statement_id: str) -> Response:
        """List a statement's lines, each with the spans and the rate card that it follows from."""
        query = queried(request, PageQuery)
        row = access_till.statement_for(actor_of(request), statement_id, verb="supplier.view")
        return paged(access_till.statement_lines(row), query, lambda found: [_line(line) for line in found])


class StatementLinesCsv(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_statement_lines",
        responses={(200, "text/csv"): OpenApiTypes.STR, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, statement_id: str) -> HttpResponse:
        """Download all lines of a statement as CSV."""
        queried(request)
        row = access_till.statement_for(actor_of(request), statement_id, verb="supplier.view")
        rows = files.csv_of(row, access_till.statement_lines(row).order_by("pk"))
        return _file("".join(rows), "text/csv; charset=utf-8", f"{row.number}.csv")


class StatementPdf(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_statement",
        responses={(200, "application/pdf"): OpenApiTypes.BINARY, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, statement_id: str) -> HttpResponse:
        """Download a statement as PDF, in the language of the supplier's billing details."""
        queried(request)
        row = access_till.statement_for(actor_of(request), statement_id, verb="supplier.view")
        drawn = files.pdf_of(row, access_till.statement_lines(row).order_by("pk"))
        return _file(drawn, "application/pdf", f"{row.number}.pdf")


class PayoutList(APIView):
    @extend_schema(
        operation_id="list_payouts",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(supplier_shapes.PayoutAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List what was paid out to a supplier, newest first."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            supplier = access_till.supplier_for(actor_of(request), query.get("organization"), verb="supplier.view")
        return paged(access_till.payouts(supplier), query, lambda found: [_payout(row) for row in found])


def _file(content: str | bytes, content_type: str, name: str) -> HttpResponse:
    answer = HttpResponse(content, content_type=content_type)
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


def _statement(row: SupplierStatement) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "number": row.number,
        "period": {"start": row.period_start, "end": row.period_end},
        "issued_at": row.issued_at,
        "currency": row.currency,
        "platform": row.platform,
        "supplier": row.party,
        "gpu_milliseconds": row.unit_milliseconds,
        "opening": decimal_string(row.opening_micros),
        "charged": decimal_string(row.charge_micros),
        "payout": decimal_string(row.payout_micros),
        "held_back": decimal_string(row.reserve_micros),
        "fee": decimal_string(row.fee_micros),
        "adjustments": decimal_string(row.adjustment_micros),
        "paid_out": decimal_string(row.paid_micros),
        "closing": decimal_string(row.closing_micros),
        "closing_held_back": decimal_string(row.held_micros),
    }


def _line(row: StatementLine) -> dict[str, Any]:
    return {
        "key": row.key,
        "offer": row.offer,
        "node": row.node,
        "month": f"{row.month:%Y-%m}" if row.month else "",
        "text": row.text,
        "gpu_milliseconds": row.unit_milliseconds,
        "charged": decimal_string(row.charge_micros),
        "payout": decimal_string(row.payout_micros),
        "held_back": decimal_string(row.reserve_micros),
        "fee": decimal_string(row.fee_micros),
        "adjustment": decimal_string(row.adjustment_micros),
        "items": [_item(item) for item in statements.proof(row)],
    }


def _item(item: dict[str, Any]) -> dict[str, Any]:
    fixed = item["fixed_micros"]
    return {
        **{name: item[name] for name in ("of", "starts_at", "through", "card", "share_bps", "reserve_bps")},
        "fixed_per_gpu_hour": None if fixed is None else decimal_string(fixed),
        "gpu_milliseconds": item["unit_milliseconds"],
        "charged": decimal_string(item["charge_micros"]),
        "payout": decimal_string(item["payout_micros"]),
        "held_back": decimal_string(item["reserve_micros"]),
    }


def _payout(row: Payout) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "statement": row.statement.number,
        "day": row.slot,
        "amount": decimal_string(row.amount_micros),
        "currency": row.currency,
        "state": row.state,
        "failure": row.failure,
    }
