"""Shares of revenue: the periods that an organization reports for, and its statements."""

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, access_till
from marketplace.api import revenue_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder
from marketplace.models import RevenuePeriod, RevenueStatement
from marketplace.money import decimal_string
from marketplace.revenue_share import closing, statements

Answer = dict[str, Any]


class RevenuePeriodList(APIView):
    @extend_schema(
        operation_id="list_revenue_periods",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(revenue_shapes.PeriodAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the periods of an organization's shares of revenue, the newest first."""
        actor, query = actor_of(request), queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="revenue.view")
        return paged(access_till.revenue_periods(organization), query, lambda rows: [_period(row) for row in rows])


class RevenuePeriodDetail(APIView):
    @extend_schema(
        operation_id="show_revenue_period",
        responses={200: revenue_shapes.PeriodDetail, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, period_id: str) -> Response:
        """Show a period with its terms, its statements, and what it would cost if it ended now."""
        queried(request)
        period = access_till.revenue_period_for(actor_of(request), period_id, verb="revenue.view")
        found = closing.reckoned(period, at=timezone.now())
        said = period.statements.order_by("-number")[: revenue_shapes.STATEMENTS_MAX]
        return Response(
            _period(period)
            | {
                "terms": written.of(period.version.terms)["revenue"],
                "so_far": decimal_string(found.due.total_micros) if period.state == period.State.OPEN else None,
                "arithmetic": [{"name": name, "amount": decimal_string(micros)} for name, micros in found.steps],
                "metered": [_metered(line) for line in found.metered[: revenue_shapes.METERED_MAX]],
                "metered_spans": len(found.metered),
                "statements": [_statement(row) for row in said],
            }
        )


class RevenueStatementList(APIView):
    @extend_schema(
        operation_id="state_revenue",
        parameters=[KEY_REQUIRED],
        request=revenue_shapes.NewStatement,
        responses={201: revenue_shapes.RevenueStatementAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """State what was earned in a period: an amount, lines that add up to it, or a CSV file. A new one corrects."""
        queried(request)
        actor, asked = actor_of(request), checked(revenue_shapes.NewStatement, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.get("organization"), verb="revenue.change")
        revenue_micros, lines, source = _said(asked)

        def effect() -> tuple[int, Answer]:
            period = statements.period_of(organization, asked["contract"], asked["period"])
            made = statements.submit(
                actor=actor, period=period, revenue_micros=revenue_micros, lines=lines, source=source,
                at=timezone.now(),
            )  # fmt: skip
            return 201, _statement(made)

        return answered_once(request, organization=organization, order=asked, effect=effect)


def _said(asked: Answer) -> tuple[int, list[statements.Line], RevenueStatement.Source]:
    """What was stated, in whichever of the three ways."""
    if ("csv" in asked) == ("revenue" in asked):
        raise BadOrder("revenue", _("Send either an amount or a CSV file."))
    if "csv" in asked:
        lines = statements.lines_of(asked["csv"])
        return sum(micros for _label, micros in lines), lines, RevenueStatement.Source.CSV
    rows = [
        (row["label"], statements.amount_of(row["amount"], f"lines.{number}.amount"))
        for number, row in enumerate(asked.get("lines", []))
    ]
    lines = statements.checked(rows, "lines")
    return statements.amount_of(asked["revenue"], "revenue"), lines, RevenueStatement.Source.API


def _period(row: RevenuePeriod) -> Answer:
    return {
        "id": row.public_id,
        "contract": {"id": row.version.public_id, "title": row.version.contract.title},
        "period": row.label,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "due_at": row.due_at,
        "final_at": row.final_at,
        "state": row.state,
        "basis": row.basis or None,
        "revenue": None if row.revenue_micros is None else decimal_string(row.revenue_micros),
        "metered_cost": None if row.metered_micros is None else decimal_string(row.metered_micros),
        "charged": decimal_string(row.charged_micros),
        "currency": row.currency,
        "closed_at": row.closed_at,
    }


def _metered(line: Answer) -> Answer:
    amounts = {"price": line["micros_per_gpu_hour"], "amount": line["micros"]}
    named = {name: line[name] for name in ("usage", "resource", "name", "project", "gpus", "since", "until")}
    return named | {name: decimal_string(micros) for name, micros in amounts.items()}


def _statement(row: RevenueStatement) -> Answer:
    return {
        "id": row.public_id,
        "period": row.period.label,
        "number": row.number,
        "revenue": decimal_string(row.revenue_micros),
        "currency": row.period.currency,
        "lines": [{"label": label, "amount": decimal_string(micros)} for label, micros in row.lines],
        "sha256": row.sha256,
        "source": row.source,
        "by": row.by_name,
        "token": row.token or None,
        "at": row.at,
    }
