"""Cards, top-ups, payments and automatic top-ups. No card number ever comes here."""

from typing import Any

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.errors import NoCard
from billing.models import Card, Payment
from billing.payments import automatic
from marketplace import access, access_till, payments
from marketplace.api import payment_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_HEADER, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.models import Organization
from marketplace.money import decimal_string

NEW_CARD = "new"


class CardList(APIView):
    @extend_schema(
        operation_id="list_cards",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(payment_shapes.CardAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the saved cards. They are added in the portal, on the card processor's own page."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        organization = _organization(request, query.get("organization"), verb="payment.view")
        return paged(access_till.cards(organization).order_by(), query, lambda found: [_card(row) for row in found])


class CardDetail(APIView):
    @extend_schema(operation_id="remove_card", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, card_id: str) -> Response:
        """Never charge a card again."""
        queried(request)
        card = access_till.card_for(actor_of(request), card_id, verb="payment.change")
        payments.forget_card(actor=actor_of(request), card=card, at=timezone.now())
        return Response(status=204)


class PaymentList(APIView):
    @extend_schema(
        operation_id="list_payments",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(payment_shapes.PaymentAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List payments by card, newest first."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        organization = _organization(request, query.get("organization"), verb="payment.view")
        return paged(access_till.payments(organization), query, lambda found: [_payment(row) for row in found])

    @extend_schema(
        operation_id="top_up",
        parameters=[KEY_REQUIRED],
        request=payment_shapes.TopUp,
        responses={202: payment_shapes.PaymentAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Top up by card: ordered now, sent within seconds, charged once. Look at its `state` until it is final."""
        queried(request)
        actor, asked = actor_of(request), checked(payment_shapes.TopUp, request.data)
        organization = _organization(request, asked.get("organization"), verb="payment.change")
        payments.refuse_other_currency(organization, asked["currency"])
        with naming("card"):
            card = _chosen(request, organization, asked["card"])

        def effect() -> tuple[int, Any]:
            made = payments.top_up(
                actor=actor,
                organization=organization,
                amount_micros=asked["amount"],
                card=card,
                key=request.headers[KEY_HEADER],
                at=timezone.now(),
            )
            return 202, _payment(made)

        return answered_once(request, organization=organization, order=dict(asked), effect=effect)


class PaymentDetail(APIView):
    @extend_schema(
        operation_id="show_payment", responses={200: payment_shapes.PaymentAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, payment_id: str) -> Response:
        """Show a payment and what became of it."""
        queried(request)
        return Response(_payment(access_till.payment_for(actor_of(request), payment_id, verb="payment.view")))


class AutomaticTopUpOf(APIView):
    @extend_schema(
        operation_id="show_automatic_top_up",
        responses={200: payment_shapes.AutomaticTopUpAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, organization_id: str) -> Response:
        """Show whether a card is charged by itself, and with how much at most."""
        queried(request)
        return Response(_automatic(_organization(request, organization_id, verb="payment.view")))

    @extend_schema(
        operation_id="set_automatic_top_up",
        request=payment_shapes.SetAutomaticTopUp,
        responses={200: payment_shapes.AutomaticTopUpAnswer, shapes.REFUSED: shapes.Problem},
    )
    def put(self, request: Request, organization_id: str) -> Response:
        """Charge the default card whenever less than `threshold` is free."""
        queried(request)
        organization = _organization(request, organization_id, verb="payment.change")
        asked = checked(payment_shapes.SetAutomaticTopUp, request.data)
        payments.set_automatic(
            actor=actor_of(request),
            organization=organization,
            threshold_micros=asked["threshold"],
            amount_micros=asked["amount"],
            monthly_ceiling_micros=asked["monthly_ceiling"],
            at=timezone.now(),
        )
        return Response(_automatic(organization))

    @extend_schema(operation_id="end_automatic_top_up", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, organization_id: str) -> Response:
        """Charge nothing by itself any more."""
        queried(request)
        organization = _organization(request, organization_id, verb="payment.change")
        payments.switch_off_automatic(actor=actor_of(request), organization=organization, at=timezone.now())
        return Response(status=204)


def _organization(request: Request, organization_id: str | None, *, verb: str) -> Organization:
    with naming("organization"):
        return access.organization_for(actor_of(request), organization_id, verb=verb)


def _chosen(request: Request, organization: Organization, card_id: str) -> Card | None:
    """Return the card that is named, the default one where none is, or none for one that will be typed."""
    if card_id == NEW_CARD:
        return None
    card = access_till.cards(organization).filter(is_default=True).first()
    if card_id:
        card = access_till.card_for(actor_of(request), card_id, verb="payment.change")
    if card is None or card.organization_id != organization.pk:
        raise NoCard("There is no saved card. Name the card “new” to type one at the payment's action_url.")
    return card


def _card(row: Card) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "brand": row.brand,
        "last4": row.last4,
        "exp_month": row.exp_month,
        "exp_year": row.exp_year,
        "default": row.is_default,
    }


def _payment(row: Payment) -> dict[str, Any]:
    needs_a_person = row.state in {Payment.State.CREATED, Payment.State.NEEDS_ACTION}
    return {
        "id": row.public_id,
        "organization": {"id": row.organization.public_id, "name": row.organization.name},
        "purpose": row.purpose,
        "reference": row.reference,
        "amount": decimal_string(row.amount_micros),
        "currency": row.currency,
        "card": _card(row.card) if row.card else None,
        "state": row.state,
        "failure": {"code": row.failure_code, "text": row.failure_text} if row.failure_code else None,
        "action_url": f"{settings.PUBLIC_URL}/payments/{row.public_id}" if needs_a_person else None,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }


def _automatic(organization: Organization) -> dict[str, Any]:
    rule = automatic.rule_of(organization)
    return {
        "on": rule is not None and rule.is_on,
        "threshold": decimal_string(rule.threshold_micros) if rule else None,
        "amount": decimal_string(rule.amount_micros) if rule else None,
        "monthly_ceiling": decimal_string(rule.monthly_ceiling_micros) if rule else None,
        "spent_this_month": decimal_string(automatic.spent_micros(organization=organization, at=timezone.now())),
        "paused_because": rule.paused_because if rule else "",
        "currency": organization.currency,
    }
