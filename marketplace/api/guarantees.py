"""Guaranteed performance of an instance: under which contract it is, and how each hour compared with the floor."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import GuaranteeHour
from marketplace import access, access_till
from marketplace.api import guarantee_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_REQUIRED, actor_of, answered_once
from marketplace.guarantees import guarding
from marketplace.models import Guarantee
from marketplace.money import decimal_string

Answer = dict[str, Any]


class InstanceGuarantee(APIView):
    @extend_schema(
        operation_id="show_guarantee",
        responses={200: guarantee_shapes.GuaranteesAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """Show under which guarantee an instance is, and which it may be put under."""
        queried(request)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        found = guarding.of(instance)
        offered = [{"id": row.public_id, "title": row.contract.title} for row in guarding.offered(instance)[:50]]
        return Response({"guarantee": _guarantee(found) if found else None, "offered": offered})

    @extend_schema(
        operation_id="begin_guarantee",
        parameters=[KEY_REQUIRED],
        request=guarantee_shapes.BeginGuarantee,
        responses={201: guarantee_shapes.GuaranteeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, instance_id: str) -> Response:
        """Put an instance under a guarantee that its organization agreed to, from the next whole hour (UTC) on."""
        queried(request)
        actor, asked = actor_of(request), checked(guarantee_shapes.BeginGuarantee, request.data)
        instance = access.instance_for(actor, instance_id, verb="instance.change")

        def effect() -> tuple[int, Answer]:
            made = guarding.begin(actor=actor, instance=instance, version_id=asked["contract"], at=timezone.now())
            return 201, _guarantee(made)

        return answered_once(request, organization=instance.project.organization, order=asked, effect=effect)

    @extend_schema(
        operation_id="end_guarantee",
        request=None,
        responses={200: guarantee_shapes.GuaranteeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def delete(self, request: Request, instance_id: str) -> Response:
        """End an instance's guarantee with the hour that runs."""
        queried(request)
        actor = actor_of(request)
        instance = access.instance_for(actor, instance_id, verb="instance.change")
        return Response(_guarantee(guarding.end(actor=actor, instance=instance, at=timezone.now())))


class InstanceGuaranteeHours(APIView):
    @extend_schema(
        operation_id="list_guarantee_hours",
        parameters=[PageQuery],
        responses={200: shapes.page_of(guarantee_shapes.GuaranteedHourAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """List the hours of an instance that were judged, the newest first, each with its evidence and credit."""
        query = queried(request, PageQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        return paged(access_till.guarantee_hours(instance), query, lambda rows: [_hour(row) for row in rows])


def _guarantee(row: Guarantee) -> Answer:
    version = row.version
    return {
        "id": row.public_id,
        "contract": {"id": version.public_id, "title": version.contract.title},
        "terms": version.terms["guarantee"],
        "since": row.since,
        "ended_at": row.ended_at,
        "judged_until": row.judged_until,
    }


def _hour(row: GuaranteeHour) -> Answer:
    return {
        "id": row.public_id,
        "hour": row.hour,
        "contract": row.version,
        "measured_milli": row.measured_milli,
        "achieved_bps": row.achieved_bps,
        "paid": decimal_string(row.paid_micros),
        "credit_bps": row.credit_bps,
        "credit": decimal_string(row.credit_micros),
        "credited": decimal_string(row.credited_micros),
        "currency": row.currency,
        "terms": row.curve,
        "evidence": row.evidence,
    }
