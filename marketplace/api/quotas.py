"""Quotas, requests for more, and orders that wait for GPUs."""

from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, limits, outlook, quota_requests, waiting
from marketplace.api import answers, quota_shapes, shapes
from marketplace.api.instances import order_of
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.errors import Forbidden
from marketplace.limits import Limit
from marketplace.models import QuotaRequest, WaitingOrder
from marketplace.money import decimal_string
from marketplace.offers import offer_for
from provisioning.models import Quota

Answer = dict[str, Any]
REQUEST = {200: quota_shapes.QuotaRequestAnswer, shapes.REFUSED: shapes.Problem}
WAIT = {200: quota_shapes.WaitAnswer, shapes.REFUSED: shapes.Problem}


class QuotaList(APIView):
    @extend_schema(
        operation_id="list_quotas",
        parameters=[PageQuery],
        responses={200: shapes.page_of(quota_shapes.QuotaAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List what the organization and each project may hold, by GPU model and market, and what they hold and use."""
        query = queried(request, PageQuery)
        rows = access.quotas(actor_of(request))
        return paged(rows, query, lambda found: [_quota(row) for row in limits.listed(found)])


def _words(row: Quota | QuotaRequest) -> Answer:
    return {
        "id": row.public_id,
        "organization": {"id": row.organization.public_id, "name": row.organization.name},
        "project": {"id": row.project.public_id, "name": row.project.name} if row.project else None,
        "gpu_model": row.gpu_model or None,
        "market": row.market or None,
        "unit": "per_hour" if row.is_spend else "gpus",
        "currency": row.organization.currency if row.is_spend else None,
        "limit": decimal_string(row.limit) if row.is_spend else row.limit,
    }


def _quota(found: Limit) -> Answer:
    row = found.quota
    numbers = {"held": row.held, "used": found.used, "reserved": row.reserved, "free": row.free}
    return _words(row) | {name: decimal_string(number) if row.is_spend else number for name, number in numbers.items()}


def _request(row: QuotaRequest) -> Answer:
    return _words(row) | {
        "reason": row.reason,
        "state": row.state,
        "asked_by": row.asked_by_name,
        "decided_by": row.decided_by_name or None,
        "automatic": row.is_automatic,
        "note": row.note,
        "created_at": row.created_at,
        "decided_at": row.decided_at,
    }


class QuotaRequestList(APIView):
    @extend_schema(
        operation_id="list_quota_requests",
        parameters=[quota_shapes.QuotaRequestQuery, PageQuery],
        responses={200: shapes.page_of(quota_shapes.QuotaRequestAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List requests for quota and how they were decided, newest first."""
        query = queried(request, quota_shapes.QuotaRequestQuery, PageQuery)
        rows = access.quota_requests(actor_of(request))
        rows = rows.filter(state=query["state"]) if "state" in query else rows
        return paged(rows, query, lambda found: [_request(row) for row in found])

    @extend_schema(
        operation_id="request_quota",
        parameters=[KEY_REQUIRED],
        request=quota_shapes.RequestQuota,
        responses={201: quota_shapes.QuotaRequestAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Ask for a higher limit, with a reason. A rule may approve it at once; else a capacity manager decides."""
        queried(request)
        actor, asked = actor_of(request), checked(quota_shapes.RequestQuota, request.data)
        with naming("project"):
            project = None
            if asked["organization_wide"]:
                if access.own_project(actor) is not None:
                    raise Forbidden("The token is for one project; this is a limit of the whole organization.")
                organization = access.organization_for(actor, None, verb="quota_request.create")
            else:
                project = access.project_for(actor, asked.get("project"), verb="quota_request.create")
                organization = project.organization
        is_spend = isinstance(request.data.get("limit"), str)

        def effect() -> tuple[int, Any]:
            made = quota_requests.request(
                actor=actor,
                organization=organization,
                project=project,
                limit=asked["limit"],
                reason=asked["reason"],
                gpu_model=asked.get("gpu_model", ""),
                market=asked.get("market", ""),
                unit=Quota.Unit.MICROS_PER_HOUR if is_spend else Quota.Unit.GPUS,
                at=timezone.now(),
            )
            return 201, _request(made)

        order = {**asked, "project": project.public_id if project else None}
        return answered_once(request, organization=organization, order=order, effect=effect)


class QuotaRequestDetail(APIView):
    @extend_schema(operation_id="show_quota_request", responses=REQUEST)
    def get(self, request: Request, request_id: str) -> Response:
        """Show a request, who decided it and with which note."""
        queried(request)
        return Response(_request(access.quota_request_for(actor_of(request), request_id, verb="quota.view")))


class QuotaRequestWithdraw(APIView):
    @extend_schema(operation_id="withdraw_quota_request", request=None, parameters=[KEY_ACCEPTED], responses=REQUEST)
    def post(self, request: Request, request_id: str) -> Response:
        """Take a request back. Withdrawing twice changes nothing; what is decided stays decided."""
        queried(request)
        actor = actor_of(request)
        found = access.quota_request_for(actor, request_id, verb="quota_request.create")

        def effect() -> tuple[int, Any]:
            quota_requests.withdraw(actor=actor, found=found, at=timezone.now())
            return 200, _request(found)

        return answered_once(request, organization=found.organization, order={}, effect=effect, required=False)


class WaitList(APIView):
    @extend_schema(
        operation_id="list_waits",
        parameters=[quota_shapes.WaitQuery, PageQuery],
        responses={200: shapes.page_of(quota_shapes.WaitAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List orders that wait or waited for GPUs, newest first, with their places in the queue."""
        actor, query = actor_of(request), queried(request, quota_shapes.WaitQuery, PageQuery)
        rows = access.waiting_orders(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="wait.view"))
        rows = rows.filter(state=query["state"]) if "state" in query else rows
        return paged(rows, query, _waits)

    @extend_schema(
        operation_id="create_wait",
        parameters=[KEY_REQUIRED],
        request=quota_shapes.CreateWait,
        responses={202: quota_shapes.WaitAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Let an order start by itself once its GPUs are free, at a price up to `max_price`, until a moment.

        Nothing is held or charged while it waits.
        """
        queried(request)
        actor, asked = actor_of(request), checked(quota_shapes.CreateWait, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="wait.change")

        def effect() -> tuple[int, Any]:
            entry = waiting.wait(
                actor=actor,
                project=project,
                order=order_of(project, asked),
                max_micros_per_gpu_hour=asked["max_price"],
                until=asked["until"],
                at=timezone.now(),
            )
            return 202, _waits([entry])[0]

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect)


class WaitDetail(APIView):
    @extend_schema(operation_id="show_wait", responses=WAIT)
    def get(self, request: Request, entry_id: str) -> Response:
        """Show an order in a queue: its place, why it still waits, and the instance that it became."""
        queried(request)
        return Response(_waits([access.waiting_order_for(actor_of(request), entry_id, verb="wait.view")])[0])


class WaitCancel(APIView):
    @extend_schema(operation_id="cancel_wait", request=None, parameters=[KEY_ACCEPTED], responses=WAIT)
    def post(self, request: Request, entry_id: str) -> Response:
        """Take an order out of its queue. Cancelling twice changes nothing."""
        queried(request)
        actor = actor_of(request)
        entry = access.waiting_order_for(actor, entry_id, verb="wait.change")

        def effect() -> tuple[int, Any]:
            waiting.cancel(actor=actor, entry=entry, at=timezone.now())
            return 200, _waits([entry])[0]

        return answered_once(request, organization=entry.project.organization, order={}, effect=effect, required=False)


class Outlook(APIView):
    @extend_schema(
        operation_id="show_outlook",
        parameters=[quota_shapes.OutlookQuery],
        responses={200: quota_shapes.OutlookAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """Say whether an order of this size fits now, what fits instead, and when it may fit."""
        actor, query = actor_of(request), queried(request, quota_shapes.OutlookQuery)
        with naming("project"):
            project = access.project_for(actor, query.get("project"), verb="project.view")
        with naming("offer"):
            offer = offer_for(query["offer"])
        found = outlook.look(
            project=project, offer=offer, gpus=query["gpus"], replicas=query["replicas"], at=timezone.now()
        )
        nearest = [
            {"offer": one.offer.slug, "gpus": one.gpus, "replicas": one.replicas, "price": answers.price(one.price)}
            for one in found.nearest
        ]
        return Response(
            {
                "fits_now": found.fits_now,
                "nearest": nearest,
                "next_window": found.next_window,
                "ahead": found.ahead,
                "gpus_ahead": found.gpus_ahead,
                "estimate": found.estimate,
                "as_of": found.as_of,
            }
        )


def _waits(entries: Sequence[WaitingOrder]) -> list[Answer]:
    places = waiting.positions(entries)
    estimates = outlook.estimates(entries, at=timezone.now())
    return [_wait(entry, places.get(entry.pk), estimates.get(entry.pk)) for entry in entries]


def _wait(entry: WaitingOrder, position: int | None, estimate: Any) -> Answer:
    waits = entry.state == WaitingOrder.State.WAITING
    return {
        "id": entry.public_id,
        "project": {"id": entry.project.public_id, "name": entry.project.name},
        "offer": entry.offer.slug,
        "gpus": entry.gpus,
        "replicas": entry.replicas,
        "max_price": answers.amount(entry.max_micros_per_gpu_hour, entry.project.organization.currency),
        "until": entry.until,
        "state": entry.state,
        "position": position,
        "why": entry.why if waits else None,
        "message": waiting.told(entry) if waits else "",
        "estimate": estimate,
        "instance": entry.instance.public_id if entry.instance else None,
        "tried_at": entry.tried_at,
        "created_at": entry.created_at,
        "closed_at": entry.closed_at,
    }
