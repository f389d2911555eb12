"""Resale: what is listed, listing hours, and buying them."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, held, offers, resale, trades
from marketplace.access import Actor
from marketplace.api import reservation_answers as answers
from marketplace.api import reservation_shapes as shapes
from marketplace.api.answers import Answer
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.shapes import REFUSED, DryRunQuery, Problem, page_of
from marketplace.api.views import KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.blocks import Window
from marketplace.models import Listing
from marketplace.money import micros_of


class OfferAsks(APIView):
    """The resale market of one offer."""

    @extend_schema(
        operation_id="list_asks",
        parameters=[shapes.AsksQuery],
        responses={200: shapes.AsksAnswer, REFUSED: Problem},
    )
    def get(self, request: Request, offer_id: str) -> Response:
        """List what holders of reservations sell, the cheapest first. Sellers are not named."""
        query, at = queried(request, shapes.AsksQuery), timezone.now()
        organization = access.organization_for(actor_of(request), None, verb="reservation.view")
        found = resale.open_asks(
            organization=organization, offer=offers.offer_for(offer_id), starts_at=query.get("starts_at", at),
            ends_at=query.get("ends_at"),
        )  # fmt: skip
        return Response({"data": [answers.ask(one) for one in found], "as_of": at})


class ListingList(APIView):
    """The listings of the token's organizations, and listing hours."""

    @extend_schema(
        operation_id="list_listings",
        parameters=[shapes.ListingQuery, PageQuery],
        responses={200: page_of(shapes.ListingAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List your own listings, newest first. What others sell is at /offers/{id}/asks."""
        actor, query = actor_of(request), queried(request, shapes.ListingQuery, PageQuery)
        rows = held.listings(actor)
        if "state" in query:
            rows = rows.filter(state=query["state"])
        return paged(rows, query, answers.listings)

    @extend_schema(
        operation_id="create_listing",
        parameters=[KEY_REQUIRED],
        request=shapes.CreateListing,
        responses={201: shapes.ListingAnswer, REFUSED: Problem},
    )
    def post(self, request: Request) -> Response:
        """Put unstarted hours of a reservation up for sale. They stay yours until they are sold."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.CreateListing, request.data), timezone.now()
        with naming("reservation"):
            kept = held.reservation_for(actor, asked["reservation"], verb="reservation.change")

        def effect() -> tuple[int, Any]:
            wanted = resale.Ask(
                starts_at=asked["starts_at"],
                ends_at=asked["ends_at"],
                gpus=asked["gpus"],
                ask_micros=micros_of(asked["ask"]),
                min_gpus=asked["min_gpus"],
                min_hours=asked["min_hours"],
            )
            return 201, _shown(actor, resale.put_up(actor=actor, reservation=kept, ask=wanted, at=at))

        return answered_once(request, organization=kept.project.organization, order=asked, effect=effect)


def _shown(actor: Actor, row: Listing) -> Answer:
    return answers.listings([held.listing_for(actor, row.public_id, verb="reservation.change")])[0]


class ListingDetail(APIView):
    """One listing."""

    @extend_schema(operation_id="show_listing", responses={200: shapes.ListingAnswer, REFUSED: Problem})
    def get(self, request: Request, listing_id: str) -> Response:
        """Show one of your listings: what is left, what was sold, what it paid."""
        queried(request)
        found = held.listing_for(actor_of(request), listing_id, verb="reservation.view")
        return Response(answers.listings([found])[0])

    @extend_schema(operation_id="withdraw_listing", responses={200: shapes.ListingAnswer, REFUSED: Problem})
    def delete(self, request: Request, listing_id: str) -> Response:
        """Take what was not sold off the market; its hours stay yours."""
        queried(request)
        actor = actor_of(request)
        found = held.listing_for(actor, listing_id, verb="reservation.change")
        resale.withdraw(actor=actor, listing=found, at=timezone.now())
        return Response(_shown(actor, found))


class TradeList(APIView):
    """What the token's organizations bought by order, and ordering."""

    @extend_schema(
        operation_id="list_trades",
        parameters=[PageQuery],
        responses={200: page_of(shapes.TradeAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List your orders that were filled, newest first."""
        query = queried(request, PageQuery)
        return paged(held.trades(actor_of(request)), query, lambda rows: [answers.trade(row) for row in rows])

    @extend_schema(
        operation_id="buy_hours",
        parameters=[DryRunQuery, KEY_REQUIRED],
        request=shapes.CreateTrade,
        responses={202: shapes.TradeAnswer, 200: shapes.FillAnswer, REFUSED: Problem},
    )
    def post(self, request: Request) -> Response:
        """Buy hours at no more than a limit: each from the cheapest ask or the offer itself, all at once or nothing."""
        query, at = queried(request, DryRunQuery), timezone.now()
        actor, asked = actor_of(request), checked(shapes.CreateTrade, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="reservation.change")
        limit = micros_of(asked["limit"])
        if query["dry_run"]:
            found = trades.look(project=project, window=_window(asked), limit_micros=limit, at=at)
            return Response(answers.fill(found))

        def effect() -> tuple[int, Any]:
            made = trades.buy(actor=actor, project=project, window=_window(asked), limit_micros=limit, at=at)
            return 202, answers.trade(held.trade_for(actor, made.public_id, verb="reservation.change"))

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect)


def _window(asked: dict[str, Any]) -> Window:
    with naming("offer"):
        offer = offers.offer_for(asked["offer"])
    return Window(offer, asked["gpus"], asked["starts_at"], asked["ends_at"])


class TradeDetail(APIView):
    """One filled order."""

    @extend_schema(operation_id="show_trade", responses={200: shapes.TradeAnswer, REFUSED: Problem})
    def get(self, request: Request, trade_id: str) -> Response:
        """Show from where and at which prices an order was filled."""
        queried(request)
        return Response(answers.trade(held.trade_for(actor_of(request), trade_id, verb="reservation.view")))
