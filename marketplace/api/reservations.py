"""Blocks ahead: windows, quotes, reservations."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, blocks, held, offers, quotes, reservations, windows
from marketplace.access import Actor
from marketplace.api import reservation_answers as answers
from marketplace.api import reservation_shapes as shapes
from marketplace.api.answers import Answer
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.shapes import REFUSED, Problem, page_of
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.blocks import Window
from marketplace.errors import BadOrder
from marketplace.models import Offer, Organization, Project, Quote, Reservation
from provisioning.calendar import hour_of

ANSWER = {200: shapes.ReservationAnswer, REFUSED: Problem}


class WindowList(APIView):
    """Free windows."""

    @extend_schema(
        operation_id="find_windows",
        parameters=[shapes.WindowQuery],
        responses={200: shapes.WindowsAnswer, REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """Find the cheapest window of each offer that has so many GPUs for so long, the cheapest first.

        Offers that policies exclude for every project that asks are left out.
        """
        query, at = queried(request, shapes.WindowQuery), timezone.now()
        organization, projects = _askers(actor_of(request), query.get("project"))
        wish = windows.Wish(
            gpus=query["gpus"], hours=query["hours"], latest_end=query["before"], earliest=query.get("after")
        )
        sold = windows.allowed(offers=_offers(query), projects=projects)
        found = windows.search(organization=organization, offers=sold, wish=wish, at=at)
        return Response({"data": [answers.window(one) for one in found], "as_of": at})


def _askers(actor: Actor, project_id: str | None) -> tuple[Organization, list[Project]]:
    """Return who would pay for hours, and in which projects they could be used: one that is named, else all."""
    if project_id is not None:
        with naming("project"):
            project = access.project_for(actor, project_id, verb="reservation.view")
        return project.organization, [project]
    organization = access.organization_for(actor, None, verb="reservation.view")
    return organization, list(access.projects(actor).filter(organization=organization))


def _offers(query: dict[str, Any]) -> list[Offer]:
    if "offer" in query:
        with naming("offer"):
            return [offers.offer_for(query["offer"])]
    return list(offers.listed(gpu_model=query.get("gpu_model", ""), country=query.get("country", "")))


class OfferCalendar(APIView):
    """What of an offer is free in the hours to come."""

    @extend_schema(
        operation_id="show_offer_calendar",
        parameters=[shapes.CalendarQuery],
        responses={200: shapes.CalendarAnswer, REFUSED: Problem},
    )
    def get(self, request: Request, offer_id: str) -> Response:
        """Show how many GPUs of an offer are free in each hour, and on which terms blocks of it are sold.

        None are free of an offer that policies exclude for every project that asks.
        """
        query, at = queried(request, shapes.CalendarQuery), timezone.now()
        _, projects = _askers(actor_of(request), query.get("project"))
        offer = offers.offer_for(offer_id)
        terms = blocks.terms_of(offer)
        starts_at = hour_of(query.get("starts_at", at))
        try:
            cells = windows.heat(offers=[offer], starts_at=starts_at, hours=query["hours"])[offer.pk]
        except OverflowError as error:
            raise BadOrder("starts_at", "No calendar goes so far.") from error
        is_excluded = not windows.allowed(offers=[offer], projects=projects)
        return Response(answers.calendar(offer, terms, cells, is_excluded=is_excluded, at=at))


class QuoteList(APIView):
    """Quotes."""

    @extend_schema(
        operation_id="create_quote",
        parameters=[KEY_ACCEPTED],
        request=shapes.CreateQuote,
        responses={201: shapes.QuoteAnswer, REFUSED: Problem},
    )
    def post(self, request: Request) -> Response:
        """Quote a block, an extension or a cancellation: its price and all terms, good for ten minutes and one use."""
        actor, asked, at = actor_of(request), checked(shapes.CreateQuote, request.data), timezone.now()
        queried(request)
        if asked["kind"] == Quote.Kind.PURCHASE:
            with naming("project"):
                project = access.project_for(actor, asked.get("project"), verb="reservation.change")
            organization = project.organization
        else:
            _forbid(asked, "offer", "gpus", "starts_at", "project")
            _need(asked, "reservation")
            with naming("reservation"):
                kept = held.reservation_for(actor, asked["reservation"], verb="reservation.change")
            organization, project = kept.project.organization, kept.project

        def effect() -> tuple[int, Any]:
            if asked["kind"] == Quote.Kind.PURCHASE:
                made = quotes.for_purchase(project=project, window=_window(asked), at=at)
            elif asked["kind"] == Quote.Kind.EXTENSION:
                _need(asked, "ends_at")
                made = quotes.for_extension(reservation=kept, ends_at=asked["ends_at"], at=at)
            else:
                _forbid(asked, "ends_at")
                made = quotes.for_cancellation(reservation=kept, at=at)
            return 201, answers.quote(made)

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=organization, order=order, effect=effect, required=False)


def _window(asked: dict[str, Any]) -> Window:
    _need(asked, "offer", "gpus", "starts_at", "ends_at")
    _forbid(asked, "reservation")
    with naming("offer"):
        offer = offers.offer_for(asked["offer"])
    return Window(offer, asked["gpus"], asked["starts_at"], asked["ends_at"])


def _need(asked: dict[str, Any], *fields: str) -> None:
    for field in fields:
        if field not in asked:
            raise BadOrder(field, "This kind of quote needs it.")


def _forbid(asked: dict[str, Any], *fields: str) -> None:
    for field in fields:
        if field in asked:
            raise BadOrder(field, "This kind of quote does not take it.")


class QuoteDetail(APIView):
    """One quote."""

    @extend_schema(operation_id="show_quote", responses={200: shapes.QuoteAnswer, REFUSED: Problem})
    def get(self, request: Request, quote_id: str) -> Response:
        """Show a quote as it was given."""
        queried(request)
        return Response(answers.quote(held.quote_for(actor_of(request), quote_id, verb="reservation.view")))


class ReservationList(APIView):
    """All reservations that the token may see, and buying one."""

    @extend_schema(
        operation_id="list_reservations",
        parameters=[shapes.ReservationQuery, PageQuery],
        responses={200: page_of(shapes.ReservationAnswer), REFUSED: Problem},
    )
    def get(self, request: Request) -> Response:
        """List reservations, newest first."""
        actor, query = actor_of(request), queried(request, shapes.ReservationQuery, PageQuery)
        rows = held.reservations(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="reservation.view"))
        if "state" in query:
            rows = rows.filter(state=query["state"])
        at = timezone.now()
        return paged(rows, query, lambda found: answers.reservations_of(found, at=at))

    @extend_schema(
        operation_id="buy_reservation",
        parameters=[KEY_REQUIRED],
        request=shapes.UseQuote,
        responses={202: shapes.ReservationAnswer, REFUSED: Problem},
    )
    def post(self, request: Request) -> Response:
        """Buy what was quoted. It is paid now, and nothing more is charged for what runs inside."""
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.UseQuote, request.data), timezone.now()
        with naming("quote"):
            quote = held.quote_for(actor, asked["quote"], verb="reservation.change")

        def effect() -> tuple[int, Any]:
            bought = reservations.buy(actor=actor, quote=quote, at=at)
            return 202, _shown(actor, bought)

        return answered_once(request, organization=quote.project.organization, order=asked, effect=effect)


def _shown(actor: Actor, row: Reservation) -> Answer:
    found = held.reservation_for(actor, row.public_id, verb="reservation.change")
    return answers.reservation(found, at=timezone.now())


class ReservationDetail(APIView):
    """One reservation."""

    @extend_schema(operation_id="show_reservation", responses=ANSWER)
    def get(self, request: Request, reservation_id: str) -> Response:
        """Show a reservation: which hours it holds, what is used, what cancelling costs, and what may be done."""
        queried(request)
        found = held.reservation_for(actor_of(request), reservation_id, verb="reservation.view")
        return Response(answers.reservation(found, at=timezone.now()))

    @extend_schema(operation_id="lend_reservation", request=shapes.ChangeReservation, responses=ANSWER)
    def patch(self, request: Request, reservation_id: str) -> Response:
        """Lend what stands idle in it to spot, or stop that."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.ChangeReservation, request.data)
        found = held.reservation_for(actor, reservation_id, verb="reservation.change")
        reservations.lend(actor=actor, reservation=found, is_lent=asked["is_lent"], at=timezone.now())
        return Response(_shown(actor, found))


class _ReservationVerb(APIView):
    """A verb on a reservation by a quote; the two below differ in the verb alone."""

    verb: Any

    def answer(self, request: Request, reservation_id: str) -> Response:
        queried(request)
        actor, asked, at = actor_of(request), checked(shapes.UseQuote, request.data), timezone.now()
        found = held.reservation_for(actor, reservation_id, verb="reservation.change")
        with naming("quote"):
            quote = held.quote_for(actor, asked["quote"], verb="reservation.change")

        def effect() -> tuple[int, Any]:
            type(self).verb(actor=actor, reservation=found, quote=quote, at=at)
            return 202, _shown(actor, found)

        return answered_once(request, organization=found.project.organization, order=asked, effect=effect)


class ReservationExtend(_ReservationVerb):
    verb = reservations.extend

    @extend_schema(
        operation_id="extend_reservation",
        request=shapes.UseQuote,
        parameters=[KEY_REQUIRED],
        responses={202: shapes.ReservationAnswer, REFUSED: Problem},
    )
    def post(self, request: Request, reservation_id: str) -> Response:
        """Add the hours that were quoted, paid now: all of them, or a refusal with nothing changed."""
        return self.answer(request, reservation_id)


class ReservationCancel(_ReservationVerb):
    verb = reservations.cancel

    @extend_schema(
        operation_id="cancel_reservation",
        request=shapes.UseQuote,
        parameters=[KEY_REQUIRED],
        responses={202: shapes.ReservationAnswer, REFUSED: Problem},
    )
    def post(self, request: Request, reservation_id: str) -> Response:
        """Cancel at what was quoted: the hours become free, and the money comes back but for what is kept."""
        return self.answer(request, reservation_id)


class ReservationEvents(APIView):
    """What happened to one reservation."""

    @extend_schema(
        operation_id="list_reservation_events",
        parameters=[PageQuery],
        responses={200: page_of(shapes.ReservationEventAnswer), REFUSED: Problem},
    )
    def get(self, request: Request, reservation_id: str) -> Response:
        """List what happened to it, newest first."""
        query = queried(request, PageQuery)
        found = held.reservation_for(actor_of(request), reservation_id, verb="reservation.view")
        return paged(held.reservation_events(found), query, lambda rows: [answers.event(row) for row in rows])
