"""Paying an invoice now, and saying that it is wrong."""

from typing import Any
from uuid import UUID, uuid5

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import InvoiceDispute, Payment
from marketplace import access, access_till, owing
from marketplace.api import shapes
from marketplace.api.invoice_shapes import InvoiceRef
from marketplace.api.pages import checked, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_HEADER, KEY_REQUIRED, actor_of, answered_once
from marketplace.errors import BadOrder
from marketplace.money import decimal_string, typed_micros

# A key of ours for each key of a caller.
KEYS = UUID("6f0c41c8-5a3e-4a0e-9a51-6d1f0f2a7c11")


class InvoicePaymentAnswer(serializers.Serializer[Any]):
    """A charge of the saved card. `state` tells what became of it; look again while it is open."""

    id = serializers.CharField()
    invoice = InvoiceRef()
    state = serializers.ChoiceField(choices=Payment.State.values)
    amount = serializers.CharField()
    currency = serializers.CharField()
    card = serializers.CharField()


class OpenDispute(serializers.Serializer[Any]):
    """What is wrong: a line or the whole invoice, an amount before tax or all of it."""

    line = serializers.CharField(required=False, allow_null=True, default=None, help_text="id of a line of the invoice")
    amount = serializers.CharField(required=False, allow_null=True, default=None)
    reason = serializers.CharField(max_length=500)


class DisputeAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    invoice = InvoiceRef()
    line = serializers.CharField(allow_null=True)
    net = serializers.CharField()
    gross = serializers.CharField(help_text="with its tax: what nobody asks for while it is open")
    currency = serializers.CharField()
    reason = serializers.CharField()
    state = serializers.ChoiceField(choices=InvoiceDispute.State.values)
    answer = serializers.CharField()
    opened_at = serializers.DateTimeField()


class InvoicePay(APIView):
    @extend_schema(
        operation_id="pay_invoice",
        parameters=[KEY_REQUIRED],
        request=None,
        responses={202: InvoicePaymentAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, invoice_id: str) -> Response:
        """Charge the saved card for what is left of an invoice."""
        queried(request)
        actor, at = actor_of(request), timezone.now()
        row = access.invoice_for(actor, invoice_id, verb="payment.change")

        def effect() -> tuple[int, Any]:
            key = request.headers.get(KEY_HEADER, "")
            return 202, _payment(owing.pay(actor=actor, invoice=row, key=str(uuid5(KEYS, key)), at=at), row)

        order = {"invoice": row.public_id}
        return answered_once(request, organization=row.organization, order=order, effect=effect)


class InvoiceDisputes(APIView):
    @extend_schema(
        operation_id="list_invoice_disputes",
        responses={200: shapes.page_of(DisputeAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, invoice_id: str) -> Response:
        """List what was disputed of an invoice, newest first."""
        queried(request)
        row = access.invoice_for(actor_of(request), invoice_id, verb="invoice.view")
        return Response({"data": [_dispute(one) for one in access_till.invoice_disputes(row)], "next_cursor": None})

    @extend_schema(
        operation_id="dispute_invoice",
        parameters=[KEY_REQUIRED],
        request=OpenDispute,
        responses={201: DisputeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, invoice_id: str) -> Response:
        """Say that an invoice or a line is wrong. Nobody asks for the amount until the operator has decided."""
        queried(request)
        actor, at = actor_of(request), timezone.now()
        row = access.invoice_for(actor, invoice_id, verb="dispute.change")
        asked = checked(OpenDispute, request.data)
        line = access.invoice_lines(row).filter(key=asked["line"]).first() if asked["line"] else None
        if asked["line"] and line is None:
            raise BadOrder("line", "The invoice has no such line.")
        micros = typed_micros(asked["amount"]) if asked["amount"] else None
        if asked["amount"] and micros is None:
            raise BadOrder("amount", "Write an amount such as 12.50.")

        def effect() -> tuple[int, Any]:
            key = uuid5(KEYS, f"{row.public_id}:{request.headers.get(KEY_HEADER, '')}")
            made = owing.dispute(
                actor=actor, invoice=row, line=line, net_micros=micros, reason=asked["reason"], key=key, at=at
            )
            return 201, _dispute(made)

        order = {"invoice": row.public_id, **asked}
        return answered_once(request, organization=row.organization, order=order, effect=effect)


class DisputeWithdraw(APIView):
    @extend_schema(
        operation_id="withdraw_dispute",
        parameters=[KEY_ACCEPTED],
        request=None,
        responses={200: DisputeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, dispute_id: str) -> Response:
        """Take a dispute back: the amount is asked for again."""
        queried(request)
        actor = actor_of(request)
        made = access_till.dispute_for(actor, dispute_id, verb="dispute.change")

        def effect() -> tuple[int, Any]:
            owing.withdraw(actor=actor, made=made, at=timezone.now())
            return 200, _dispute(made)

        return answered_once(request, organization=made.invoice.organization, order={}, effect=effect, required=False)


def _payment(row: Payment, invoice: Any) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "invoice": {"id": invoice.public_id, "number": invoice.number},
        "state": row.state,
        "amount": decimal_string(row.amount_micros),
        "currency": row.currency,
        "card": str(row.card or ""),
    }


def _dispute(row: InvoiceDispute) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "invoice": {"id": row.invoice.public_id, "number": row.invoice.number},
        "line": row.line.key if row.line else None,
        "net": decimal_string(row.net_micros),
        "gross": decimal_string(row.gross_micros),
        "currency": row.invoice.currency,
        "reason": row.reason,
        "state": row.state,
        "answer": row.answer,
        "opened_at": row.opened_at,
    }
