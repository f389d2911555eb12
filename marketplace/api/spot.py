"""Auctions and bids: what it costs now and cost before, bidding, raising, withdrawing, and being interrupted."""

from datetime import timedelta
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, offers, risk, spot, spot_market
from marketplace.access import Actor
from marketplace.api import shapes, spot_answers, spot_shapes
from marketplace.api.instances import order_of
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.errors import BadOrder
from marketplace.models import Bid, Offer
from provisioning import interruptions

DAY = timedelta(days=1)
BID = {200: spot_shapes.BidAnswer, shapes.REFUSED: shapes.Problem}


def _offer(request: Request, offer_id: str) -> Offer:
    """Return an offer; auctions are public to everybody signed in."""
    access.organization_for(actor_of(request), None, verb="organization.view")
    return offers.offer_for(offer_id)


class OfferSpot(APIView):
    """What an offer costs by auction now."""

    @extend_schema(operation_id="show_spot", responses={200: spot_shapes.SpotAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, offer_id: str) -> Response:
        """Show the price now, the reserve, the next auction, the demand, and how often the market interrupted."""
        queried(request)
        offer, at = _offer(request, offer_id), timezone.now()
        found = spot_market.spot_for(offer, at=at)
        return Response(spot_answers.now(offer, found, risk.of_offer(offer, at=at)))


class OfferSpotHistory(APIView):
    """What an offer cost by auction before."""

    @extend_schema(
        operation_id="list_spot_history",
        parameters=[spot_shapes.HistoryQuery],
        responses={200: spot_shapes.HistoryAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, offer_id: str) -> Response:
        """List what was charged, oldest first, in stretches of equal length with their least and most."""
        query = queried(request, spot_shapes.HistoryQuery)
        offer = _offer(request, offer_id)
        found = spot_market.spot_for(offer, at=timezone.now())
        until = query.get("until", found.as_of)
        try:
            since = query["since"] if "since" in query else until - DAY
        except OverflowError as error:
            raise BadOrder("until", "No calendar begins so early.") from error
        if since >= until:
            raise BadOrder("since", "It must be before the end.")
        rows = spot_market.history(offer, since=since, until=until, points=query["points"])
        return Response({"currency": found.terms.currency, "data": [spot_answers.bucket(row) for row in rows]})


class OfferAuctions(APIView):
    """The auctions of an offer."""

    @extend_schema(
        operation_id="list_auctions",
        parameters=[PageQuery],
        responses={200: shapes.page_of(spot_shapes.AuctionAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, offer_id: str) -> Response:
        """List auctions, newest first, each with its demand and the hash of its sealed book."""
        query = queried(request, PageQuery)
        rows = spot_market.auctions(_offer(request, offer_id))
        return paged(rows, query, lambda found: [spot_answers.auction(row) for row in found])


class OfferAuction(APIView):
    """One auction."""

    @extend_schema(
        operation_id="show_auction",
        responses={200: spot_shapes.AuctionDetailAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, offer_id: str, auction_id: str) -> Response:
        """Show what an auction gave, with the asker's own bids in it and nobody else's."""
        queried(request)
        held = spot_market.auction_for(_offer(request, offer_id), auction_id)
        mine = spot_market.own_bids(held, access.bids(actor_of(request)))
        own = [spot_answers.own_bid(found, held.currency) for found in mine]
        return Response(spot_answers.auction(held) | {"own_bids": own})


class BidList(APIView):
    """All bids that the token may see, and placing a new one."""

    @extend_schema(
        operation_id="list_bids",
        parameters=[spot_shapes.BidQuery, PageQuery],
        responses={200: shapes.page_of(spot_shapes.BidAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List bids, newest first, each with where it stands."""
        actor, query = actor_of(request), queried(request, spot_shapes.BidQuery, PageQuery)
        rows = access.bids(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="bid.view"))
        if "offer" in query:
            with naming("offer"):
                rows = rows.filter(offer=offers.offer_for(query["offer"]))
        if "instance" in query:
            rows = rows.filter(instance__public_id=query["instance"])
        if query["alive"]:
            rows = rows.exclude(instance__desired="terminated")
        return paged(rows, query, spot_answers.bids)

    @extend_schema(
        operation_id="place_bid",
        parameters=[shapes.DryRunQuery, KEY_REQUIRED],
        request=spot_shapes.PlaceBid,
        responses={202: spot_shapes.BidAnswer, 200: spot_shapes.BidRehearsal, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Bid for GPUs: an instance that waits for an auction to give it some. Holds one interval and one notice."""
        actor, at = actor_of(request), timezone.now()
        query, asked = queried(request, shapes.DryRunQuery), checked(spot_shapes.PlaceBid, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="bid.change")
        most = asked["max_price"]
        if query["dry_run"]:
            order = order_of(project, asked)
            quote = spot.rehearse(actor=actor, project=project, order=order, max_price_micros=most, at=at)
            return Response(spot_answers.rehearsal(order, most, quote))

        def effect() -> tuple[int, Any]:
            order = order_of(project, asked)
            placed = spot.bid(actor=actor, project=project, order=order, max_price_micros=most, at=at)
            return 202, _shown(actor, placed)

        order_key = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order_key, effect=effect)


def _shown(actor: Actor, bid: Bid) -> dict[str, Any]:
    """Return a bid as it is now, with all that its answer needs."""
    return spot_answers.bid(access.bid_for(actor, bid.public_id, verb="bid.change"))


class BidDetail(APIView):
    """One bid."""

    @extend_schema(operation_id="show_bid", responses=BID)
    def get(self, request: Request, bid_id: str) -> Response:
        """Show a bid: where it stands, what is held for it, and its interruption if there is one."""
        queried(request)
        return Response(spot_answers.bid(access.bid_for(actor_of(request), bid_id, verb="bid.view")))


class BidPrice(APIView):
    """The most that a bid pays."""

    @extend_schema(operation_id="change_bid", parameters=[KEY_REQUIRED], request=spot_shapes.ChangeBid, responses=BID)
    def post(self, request: Request, bid_id: str) -> Response:
        """Set the most that a bid pays; within a notice, enough of a raise calls the interruption off, once."""
        queried(request)
        actor, asked = actor_of(request), checked(spot_shapes.ChangeBid, request.data)
        bid = access.bid_for(actor, bid_id, verb="bid.change")

        def effect() -> tuple[int, Any]:
            spot.change(
                actor=actor,
                bid=bid,
                max_price_micros=asked["max_price"],
                expected_micros=asked.get("expected_price"),
                interruption_id=asked.get("interruption", ""),
                at=timezone.now(),
            )
            return 200, _shown(actor, bid)

        return answered_once(request, organization=bid.project.organization, order=asked, effect=effect)


class BidWithdraw(APIView):
    """Taking a bid back."""

    @extend_schema(
        operation_id="withdraw_bid",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: spot_shapes.BidAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, bid_id: str) -> Response:
        """Take a bid back that has no GPUs; its instance ends, and what was held is free again."""
        queried(request)
        actor = actor_of(request)
        bid = access.bid_for(actor, bid_id, verb="bid.change")

        def effect() -> tuple[int, Any]:
            spot.withdraw(actor=actor, bid=bid, at=timezone.now())
            return 202, _shown(actor, bid)

        organization = bid.project.organization
        return answered_once(request, organization=organization, order={}, effect=effect, required=False)


class InstanceInterruptions(APIView):
    """The interruptions of an instance."""

    @extend_schema(
        operation_id="list_interruptions",
        parameters=[PageQuery],
        responses={200: shapes.page_of(spot_shapes.InterruptionAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """List the interruptions of an instance, newest first, with what was given back for each."""
        query = queried(request, PageQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        rows = interruptions.of(instance)
        return paged(rows, query, lambda found: [spot_answers.interruption(row) for row in found])


class InstanceSimulateInterruption(APIView):
    """An interruption to try one's checkpoints on."""

    @extend_schema(
        operation_id="simulate_interruption",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: spot_shapes.InterruptionAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, instance_id: str) -> Response:
        """Interrupt an instance as an auction would: the offer's notice, SIGTERM, the end, and it bids again."""
        queried(request)
        actor = actor_of(request)
        instance = access.instance_for(actor, instance_id, verb="instance.change")

        def effect() -> tuple[int, Any]:
            told = spot.simulate_interruption(actor=actor, instance=instance, at=timezone.now())
            return 202, spot_answers.interruption(told)

        organization = instance.project.organization
        return answered_once(request, organization=organization, order={}, effect=effect, required=False)
