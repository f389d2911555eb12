"""What only capacity managers of the operator may do: correct use that has ended, and tell use measured elsewhere."""

from typing import Any
from uuid import UUID, uuid5

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import corrections as till
from billing.models import UsageCorrection, UsageSpan
from marketplace import access_till
from marketplace.api import shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_HEADER, KEY_REQUIRED, actor_of, answered_once
from marketplace.console import corrections
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Organization
from marketplace.money import decimal_string

# A key of ours for each key of a caller.
KEYS = UUID("0d6a7c8e-31b6-4c86-8f0b-5f7a1d3fd6b2")
AT_ONCE_MAX = 1000


class ProposeCorrection(serializers.Serializer[Any]):
    """When an interval of use really ended."""

    span = serializers.CharField(help_text="id of the interval, `spn_...`; it has ended")
    ended_at = serializers.DateTimeField()
    reason = serializers.CharField(max_length=200)


class CorrectionAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    span = serializers.CharField()
    organization = serializers.CharField()
    was_ended_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField()
    reason = serializers.CharField()
    state = serializers.ChoiceField(choices=UsageCorrection.State.values)
    amount = serializers.CharField(allow_null=True, help_text="what was charged for it; below zero: given back")
    currency = serializers.CharField()
    proposed_by = serializers.CharField()
    decided_by = serializers.CharField(allow_null=True)


class ToldUse(serializers.Serializer[Any]):
    """Use from a moment to another, in whole milliseconds."""

    organization = serializers.CharField()
    resource = serializers.CharField(max_length=64)
    name = serializers.CharField(max_length=200)
    labels = serializers.DictField(child=serializers.CharField(max_length=100), default=dict)
    meter = serializers.ChoiceField(choices=UsageSpan.Meter.values)
    quantity = serializers.IntegerField(min_value=1, max_value=2_147_483_647)
    price = serializers.CharField(help_text="id of a price version, `prc_...`")
    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField()


class RecordUse(serializers.Serializer[Any]):
    """All of it is taken up or none; what was told before counts once."""

    usage = serializers.ListField(child=ToldUse(), allow_empty=False, max_length=AT_ONCE_MAX)


class RecordedAnswer(serializers.Serializer[Any]):
    told = serializers.IntegerField()
    new = serializers.IntegerField(help_text="how many were not known before; the next sweep charges them")


class UsageRecords(APIView):
    @extend_schema(
        operation_id="record_usage", request=RecordUse, responses={200: RecordedAnswer, shapes.REFUSED: shapes.Problem}
    )
    def post(self, request: Request) -> Response:
        """Take up use that was measured elsewhere and is over. Telling the same again changes nothing."""
        queried(request)
        actor = actor_of(request)
        access_till.operator(actor, verb="operator.change")
        told = checked(RecordUse, request.data)["usage"]
        new = corrections.record(actor=actor, told=told, at=timezone.now())
        return Response({"told": len(told), "new": new})


class UsageCorrections(APIView):
    @extend_schema(
        operation_id="list_usage_corrections",
        parameters=[PageQuery],
        responses={200: shapes.page_of(CorrectionAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List corrections of use, newest first."""
        query = queried(request, PageQuery)
        access_till.operator(actor_of(request), verb="operator.change")
        return paged(till.listed(), query, lambda found: [_answer(row) for row in found])

    @extend_schema(
        operation_id="propose_usage_correction",
        parameters=[KEY_REQUIRED],
        request=ProposeCorrection,
        responses={201: CorrectionAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Propose that an interval of use ended at another moment. Another capacity manager approves it."""
        queried(request)
        actor, at = actor_of(request), timezone.now()
        access_till.operator(actor, verb="operator.change")
        asked = checked(ProposeCorrection, request.data)
        try:
            span = corrections.span_for(asked["span"])
        except NotFound as error:
            raise BadOrder("span", "There is no such interval of use.") from error

        def effect() -> tuple[int, Any]:
            key = uuid5(KEYS, request.headers.get(KEY_HEADER, ""))
            made = corrections.propose(
                actor=actor, span=span, ended_at=asked["ended_at"], reason=asked["reason"], key=key, at=at
            )
            return 201, _answer(made)

        return answered_once(request, organization=span.organization, order=asked, effect=effect)


class CorrectionApprove(APIView):
    @extend_schema(
        operation_id="approve_usage_correction",
        request=None,
        responses={200: CorrectionAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, correction_id: str) -> Response:
        """Let an interval have ended then: the difference moves now. Not by whoever proposed it."""
        return _decided(request, correction_id, corrections.approve)


class CorrectionDecline(APIView):
    @extend_schema(
        operation_id="decline_usage_correction",
        request=None,
        responses={200: CorrectionAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, correction_id: str) -> Response:
        """Leave an interval as it is."""
        return _decided(request, correction_id, corrections.decline)


def _decided(request: Request, correction_id: str, verb: Any) -> Response:
    queried(request)
    actor = actor_of(request)
    access_till.operator(actor, verb="operator.change")
    row = corrections.correction_for(correction_id)
    verb(actor=actor, correction=row, at=timezone.now())
    return Response(_answer(row))


def _answer(row: UsageCorrection) -> dict[str, Any]:
    organization: Organization = row.span.organization
    return {
        "id": row.public_id,
        "span": row.span.public_id,
        "organization": organization.public_id,
        "was_ended_at": row.was_ended_at,
        "ended_at": row.ended_at,
        "reason": row.reason,
        "state": row.state,
        "amount": None if row.amount_micros is None else decimal_string(row.amount_micros),
        "currency": row.span.price_version.currency,
        "proposed_by": row.proposed_by.email,
        "decided_by": row.decided_by.email if row.decided_by else None,
    }
