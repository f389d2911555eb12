"""Instances: rent, look, start, stop, terminate, rename, and what they print."""

import json
from collections.abc import Callable, Iterator
from threading import BoundedSemaphore
from time import monotonic, sleep
from typing import Any

from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, held, rentals
from marketplace.access import Actor
from marketplace.api import answers, order_shapes, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.errors import Forbidden, NotFound
from marketplace.models import Project
from marketplace.offers import offer_for
from marketplace.revenue_share import covering
from provisioning import output
from provisioning.models import Instance
from provisioning.volumes import Use
from provisioning.work import Counters, Work

STREAM_S = 50
STREAM_LOOK_S = 0.5
# In each web process; its other threads stay free for requests that are answered at once.
STREAMS = BoundedSemaphore(8)
BUSY_RETRY_MS = 5000
LAST_EVENT_ID = OpenApiParameter(
    "Last-Event-ID", OpenApiTypes.STR, OpenApiParameter.HEADER, description="the id of the last event that arrived"
)


class InstanceList(APIView):
    """All instances that the token may see, and renting a new one."""

    @extend_schema(
        operation_id="list_instances",
        parameters=[shapes.InstanceQuery, PageQuery],
        responses={200: shapes.page_of(shapes.InstanceAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List instances, newest first."""
        actor, query = actor_of(request), queried(request, shapes.InstanceQuery, PageQuery)
        rows = access.instances(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="instance.view"))
        if "phase" in query:
            rows = rows.filter(phase=query["phase"])
        if "name" in query:
            rows = rows.filter(name=query["name"])
        at = timezone.now()
        return paged(rows, query, lambda found: answers.instances(found, at=at))

    @extend_schema(
        operation_id="rent_instance",
        parameters=[shapes.DryRunQuery, KEY_REQUIRED],
        request=order_shapes.LaunchInstance,
        responses={202: shapes.InstanceAnswer, 200: shapes.DryRunAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Rent GPUs: all of them now, or a refusal with nothing made and nothing charged."""
        actor, at = actor_of(request), timezone.now()
        query, asked = queried(request, shapes.DryRunQuery), checked(order_shapes.LaunchInstance, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="instance.change")
        if query["dry_run"]:
            order = order_of(project, asked)
            quote = rentals.rehearse(actor=actor, project=project, order=order, at=at)
            return Response(answers.quote(order, quote))

        def effect() -> tuple[int, Any]:
            # The offer is looked up in here, so that an answer is given again even if it is sold no more.
            instance = rentals.rent(actor=actor, project=project, order=order_of(project, asked), at=at)
            return 202, answers.instance(instance, at=at)

        # The project too, even if the token implied it: tokens of two projects may send the same body and key.
        order_key = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order_key, effect=effect)


def order_of(project: Project, asked: dict[str, Any]) -> rentals.Order:
    """Return the order that a body means; ids that are not there name their fields."""
    with naming("offer"):
        offer = offer_for(asked["offer"])
    with naming("volumes"):
        uses = [
            Use(access.volume_of(project, one["volume"]), one["path"], one["read_only"])
            for one in asked.get("volumes", [])
        ]
    reservation = None
    if "reservation" in asked:
        with naming("reservation"):
            reservation = held.reservation_of(project, asked["reservation"])
    return rentals.Order(
        offer=offer,
        command=asked["command"],
        gpus=asked["gpus"],
        replicas=asked["replicas"],
        name=asked.get("name", ""),
        env=asked.get("env", {}),
        image=asked.get("image", ""),
        ports=asked.get("ports", ()),
        lease=asked.get("lease", Instance.Lease.STICKY),
        on_failure=asked.get("on_failure", Instance.OnFailure.STOP),
        attach=asked.get("attach", Instance.Attach.AUTO),
        reservation=reservation,
        uses=uses,
        wish=asked.get("placement"),
        work=Work(counters=Counters.of(asked.get("counters"))),
        under=covering.agreement(project.organization, asked["contract"]) if "contract" in asked else None,
    )


class InstanceDetail(APIView):
    """One instance."""

    @extend_schema(operation_id="show_instance", responses={200: shapes.InstanceAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, instance_id: str) -> Response:
        """Show an instance with its steps, cost and what may be done."""
        queried(request)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        return Response(answers.instance(instance, at=timezone.now()))

    @extend_schema(
        operation_id="rename_instance",
        request=shapes.RenameInstance,
        responses={200: shapes.InstanceAnswer, shapes.REFUSED: shapes.Problem},
    )
    def patch(self, request: Request, instance_id: str) -> Response:
        """Give an instance another name."""
        queried(request)
        actor = actor_of(request)
        instance = access.instance_for(actor, instance_id, verb="instance.change")
        rentals.rename(actor=actor, instance=instance, name=checked(shapes.RenameInstance, request.data)["name"])
        return Response(answers.instance(instance, at=timezone.now()))


Verb = Callable[..., None]


class _InstanceVerb(APIView):
    """A verb on one instance; the three below differ in the verb alone."""

    verb: Verb
    needs_key = False

    def answer(self, request: Request, instance_id: str) -> Response:
        queried(request)
        actor, at = actor_of(request), timezone.now()
        instance = access.instance_for(actor, instance_id, verb="instance.change")

        def effect() -> tuple[int, Any]:
            type(self).verb(actor=actor, instance=instance, at=at)
            return 202, answers.instance(instance, at=at)

        organization = instance.project.organization
        return answered_once(request, organization=organization, order={}, effect=effect, required=self.needs_key)


class InstanceStart(_InstanceVerb):
    verb = rentals.start
    needs_key = True

    @extend_schema(
        operation_id="start_instance",
        request=None,
        parameters=[KEY_REQUIRED],
        responses={202: shapes.InstanceAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, instance_id: str) -> Response:
        """Start a stopped or failed instance at today's price; it queues while no GPUs are free."""
        return self.answer(request, instance_id)


class InstanceStop(_InstanceVerb):
    verb = rentals.stop

    @extend_schema(
        operation_id="stop_instance",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: shapes.InstanceAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, instance_id: str) -> Response:
        """Give the GPUs back and keep the instance. Charges end now."""
        return self.answer(request, instance_id)


class InstanceTerminate(_InstanceVerb):
    verb = rentals.terminate

    @extend_schema(
        operation_id="terminate_instance",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: shapes.InstanceAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, instance_id: str) -> Response:
        """End the instance for good. Charges end now."""
        return self.answer(request, instance_id)


class InstanceEvents(APIView):
    """What happened to an instance."""

    @extend_schema(
        operation_id="list_instance_events",
        parameters=[PageQuery],
        responses={200: shapes.page_of(shapes.EventAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """List the moves of an instance, newest first."""
        query = queried(request, PageQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        return paged(access.events(instance), query, lambda found: [answers.event(row) for row in found])


class InstanceLogs(APIView):
    """What an instance prints."""

    @extend_schema(
        operation_id="read_instance_logs",
        parameters=[shapes.LogQuery],
        responses={200: shapes.LogAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """Read what the current run printed after the cursor."""
        query = queried(request, shapes.LogQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        page = output.page(instance, cursor=query["cursor"], most_bytes=query["limit"])
        pieces = [{"replica": piece.replica, "offset": piece.offset, "text": piece.text} for piece in page.pieces]
        return Response({"data": pieces, "next_cursor": page.cursor, "complete": page.complete})


class _AnyAccepted(BaseContentNegotiation):
    """A stream of events is not one of our renderers; problems before it begins are JSON."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> tuple[BaseRenderer, str]:
        return JSONRenderer(), "application/json"


class InstanceLogStream(APIView):
    """What an instance prints, as it comes."""

    content_negotiation_class = _AnyAccepted

    @extend_schema(
        operation_id="stream_instance_logs",
        parameters=[shapes.StreamQuery, LAST_EVENT_ID],
        responses={(200, "text/event-stream"): OpenApiTypes.STR, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> HttpResponseBase:
        """Stream the output as server-sent events; resume with Last-Event-ID after the server closed."""
        actor, query = actor_of(request), queried(request, shapes.StreamQuery)
        instance = access.instance_for(actor, instance_id, verb="instance.view")
        cursor = request.headers.get("Last-Event-ID") or query["cursor"]
        output.page(instance, cursor=cursor, most_bytes=1)
        stream = StreamingHttpResponse(_events(actor, instance_id, cursor), content_type="text/event-stream")
        stream["Cache-Control"] = "no-store"
        stream["X-Accel-Buffering"] = "no"
        return stream


def _events(actor: Actor, instance_id: str, cursor: str) -> Iterator[str]:
    """Yield the events of `_looks`; a stream holds a thread, so beyond a few the caller is told to come again."""
    if not STREAMS.acquire(blocking=False):
        yield f"retry: {BUSY_RETRY_MS}\n: too many streams are open here; come again, or poll the logs\n\n"
        return
    try:
        yield from _looks(actor, instance_id, cursor)
    finally:
        STREAMS.release()


def _looks(actor: Actor, instance_id: str, cursor: str) -> Iterator[str]:
    """Yield events until the output is complete or the time for one connection is over.

    Each look goes through the door again, so that a right that was taken away
    ends the stream; the database connection is given back between looks.
    """
    until = monotonic() + STREAM_S
    while monotonic() < until:
        try:
            asks_now = access.renewed(actor, at=timezone.now())
            if asks_now is None:
                return
            instance = access.instance_for(asks_now, instance_id, verb="instance.view")
            page = output.page(instance, cursor=cursor)
        except (Forbidden, NotFound):
            return
        cursor = page.cursor
        for piece in page.pieces:
            data = json.dumps({"replica": piece.replica, "offset": piece.offset, "text": piece.text})
            yield f"id: {piece.cursor}\nevent: log\ndata: {data}\n\n"
        if page.complete:
            yield f"event: end\ndata: {json.dumps({'exit_code': instance.exit_code, 'phase': instance.phase})}\n\n"
            return
        if not page.pieces:
            yield ": waiting\n\n"
            connection.close()
            sleep(STREAM_LOOK_S)
