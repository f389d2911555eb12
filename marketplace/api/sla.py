"""Service levels: how available instances were, what was given back for it, and what that follows from."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import SlaVerdict
from billing.sla.availability import Verdict
from billing.sla.terms import VERSIONS, Terms
from marketplace import access, access_till
from marketplace.api import shapes, sla_shapes
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.money import decimal_string
from marketplace.sla import closing
from marketplace.sla.evidence import Case

FIGURES = ("up_ms", "down_ms", "degraded_ms", "availability_ppm", "credit_bps")


class ServiceLevelList(APIView):
    @extend_schema(
        operation_id="list_service_levels",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(sla_shapes.VerdictAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the verdicts of months that are over, newest first: availability and credit of each instance."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        actor = actor_of(request)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="usage.view")
        return paged(access_till.sla_verdicts(actor, organization), query, lambda found: [_row(row) for row in found])


class InstanceSla(APIView):
    @extend_schema(
        operation_id="show_service_level",
        responses={200: sla_shapes.InstanceSlaAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """Show an instance's availability, this month so far and in those that are over, each with its evidence."""
        queried(request)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        open_month = closing.so_far([instance], at=timezone.now()).get(instance.public_id)
        data = [_open(*open_month)] if open_month else []
        return Response({"data": data + [_proved(row) for row in access_till.months_of(instance)]})


def _row(row: SlaVerdict) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "instance": {"id": row.resource_id, "name": row.resource_name},
        "month": f"{row.month:%Y-%m}",
        "is_final": True,
        "terms_version": row.terms_version,
        **{name: getattr(row, name) for name in FIGURES},
        "paid": decimal_string(row.paid_micros),
        "credit": decimal_string(row.credit_micros),
        "currency": row.currency,
    }


def _proved(row: SlaVerdict) -> dict[str, Any]:
    terms = VERSIONS.get(row.terms_version)
    return _row(row) | {"terms": _terms(terms) if terms else None, "evidence": row.evidence}


def _open(verdict: Verdict, case: Case, terms: Terms) -> dict[str, Any]:
    instance = case.instance
    return {
        "id": "",
        "instance": {"id": instance.public_id, "name": instance.name},
        "month": f"{case.seen.begins:%Y-%m}",
        "is_final": False,
        "terms_version": terms.version,
        **{name: getattr(verdict, name) for name in FIGURES},
        "paid": decimal_string(case.seen.paid_micros),
        "credit": decimal_string(verdict.credit_micros),
        "currency": instance.project.organization.currency,
        "terms": _terms(terms),
        "evidence": case.seen.as_json(),
    }


def _terms(terms: Terms) -> dict[str, Any]:
    return {
        "version": terms.version,
        "degraded_weight_bps": terms.degraded_weight_bps,
        "degraded_s": int(terms.degraded_for.total_seconds()),
        "min_incident_s": int(terms.min_incident.total_seconds()),
        "failed_counts_for_s": int(terms.failed_counts_for.total_seconds()),
        "tiers": [{"below_ppm": tier.below_ppm, "credit_bps": tier.credit_bps} for tier in terms.tiers],
    }
