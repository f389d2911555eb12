"""Costs: what use cost, cut by day, project, GPU model and market."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.months import month_of, next_month
from marketplace import access, breakdown, cost_files
from marketplace.api import cost_shapes, shapes
from marketplace.api.invoices import AnyAccepted
from marketplace.api.pages import queried
from marketplace.api.views import actor_of, naming
from marketplace.breakdown import DIMENSIONS, Cost
from marketplace.errors import BadOrder
from marketplace.models import Organization

Found = tuple[Organization, list[Cost], list[str], dict[str, str]]
DAY = timedelta(days=1)
# The first end before which a day lies.
FIRST_END = datetime.min.replace(tzinfo=UTC) + DAY
QUERY = [cost_shapes.CostQuery, shapes.OrganizationQuery]


class CostList(APIView):
    @extend_schema(
        operation_id="list_costs",
        parameters=QUERY,
        responses={200: cost_shapes.CostListAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """Add up what use cost, by day, project, GPU model and market, for a month or up to 366 days (UTC)."""
        organization, costs, by, names = _found(request)
        return Response(cost_files.document(organization, costs, by, names))


class CostsCsv(APIView):
    content_negotiation_class = AnyAccepted

    @extend_schema(
        operation_id="download_costs",
        parameters=QUERY,
        responses={(200, "text/csv"): OpenApiTypes.STR, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> HttpResponseBase:
        """Download the same sums as CSV."""
        rows = cost_files.csv_of(*_found(request))
        answer = StreamingHttpResponse(rows, content_type="text/csv; charset=utf-8")
        answer["Content-Disposition"] = 'attachment; filename="costs.csv"'
        return answer


def _found(request: Request) -> Found:
    """Return whose costs are asked for, the costs, what tells them apart, and the names of projects."""
    actor, at = actor_of(request), timezone.now()
    query = queried(request, cost_shapes.CostQuery, shapes.OrganizationQuery)
    with naming("organization"):
        organization = access.organization_for(actor, query.get("organization"), verb="usage.view")
    edges = _edges(query, at)
    costs = breakdown.of(organization, edges, at=at, project=access.own_project(actor))
    costs = breakdown.chosen(costs, **{name: query.get(name, "") for name in ("project", "model", "market")})
    projects = access.projects(actor).filter(organization=organization)
    return organization, costs, _by(query), dict(projects.values_list("public_id", "name"))


def _by(query: dict[str, Any]) -> list[str]:
    asked = query["by"].split(",")
    if unknown := sorted(set(asked).difference(DIMENSIONS)):
        raise serializers.ValidationError({"by": [f"{unknown[0]!r} is none of {', '.join(DIMENSIONS)}."]})
    return [name for name in DIMENSIONS if name in asked]


def _edges(query: dict[str, Any], at: datetime) -> list[datetime]:
    if "month" in query and ("since" in query or "until" in query):
        raise BadOrder("month", _("Say a month, or a beginning and an end."))
    if "since" in query or "until" in query:
        tomorrow = _midnight(at.date()) + DAY
        until = _midnight(query["until"]) if "until" in query else tomorrow
        since = _midnight(query["since"]) if "since" in query else month_of(max(until, FIRST_END) - DAY)
    else:
        since = datetime.strptime(query["month"], "%Y-%m").replace(tzinfo=UTC) if "month" in query else month_of(at)
        until = next_month(since)
    if not timedelta(0) < until - since <= timedelta(days=breakdown.DAYS_MAX):
        raise BadOrder(
            "since",
            _("The end lies after the beginning, and at most %(days)s days after it.") % {"days": breakdown.DAYS_MAX},
        )
    return breakdown.days(since, until)


def _midnight(day: Any) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
