"""Instances that do nothing and cost money, and what a project wants done about them."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, idle
from marketplace.api import shapes
from marketplace.api.pages import checked, queried
from marketplace.api.price_shapes import Amount
from marketplace.api.shapes import Count, NamedRef, Shape
from marketplace.api.views import actor_of
from marketplace.models import IdleAction, Project
from marketplace.money import decimal_string


class IdleAnswer(serializers.Serializer[Any]):
    instance = NamedRef()
    project = NamedRef()
    since = serializers.DateTimeField(help_text="from when on its GPUs did nothing")
    per_hour = Amount()
    for_nothing = Amount(help_text="what it has cost since, at its present price")
    warned_at = serializers.DateTimeField(allow_null=True, help_text="when the e-mail was sent")
    stops_at = serializers.DateTimeField(allow_null=True, help_text="when it is stopped")


class IdleListAnswer(serializers.Serializer[Any]):
    data = IdleAnswer(many=True)  # type: ignore[assignment]


class IdleSettings(serializers.Serializer[Any]):
    action = serializers.ChoiceField(choices=IdleAction.choices)
    stop_minutes = serializers.IntegerField(help_text="after the warning, where the action is stop")


class ChangeIdle(Shape):
    action = serializers.ChoiceField(choices=IdleAction.choices)
    stop_minutes = Count(
        min_value=idle.STOP_MINUTES_MIN, max_value=idle.STOP_MINUTES_MAX, required=False, help_text="default: as it is"
    )


class IdleList(APIView):
    @extend_schema(operation_id="list_idle", responses={200: IdleListAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request) -> Response:
        """List instances whose GPUs did nothing for an hour, the longest first, and what they cost."""
        queried(request)
        rows = idle.listed(idle.spells(actor_of(request)), at=timezone.now())
        return Response({"data": [_idle(row) for row in rows]})


class ProjectIdle(APIView):
    @extend_schema(operation_id="show_idle_setting", responses={200: IdleSettings, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, project_id: str) -> Response:
        """Show what a project wants done about what is idle."""
        queried(request)
        return Response(_settings(access.project_for(actor_of(request), project_id, verb="project.view")))

    @extend_schema(
        operation_id="change_idle_setting",
        request=ChangeIdle,
        responses={200: IdleSettings, shapes.REFUSED: shapes.Problem},
    )
    def put(self, request: Request, project_id: str) -> Response:
        """Say what a project wants done about what is idle: show it, warn by e-mail, or stop it after the warning."""
        queried(request)
        actor, asked = actor_of(request), checked(ChangeIdle, request.data)
        project = access.project_for(actor, project_id, verb="project.change")
        minutes = asked.get("stop_minutes", project.idle_stop_minutes)
        idle.change(actor=actor, project=project, action=asked["action"], stop_minutes=minutes)
        return Response(_settings(project))


def _settings(project: Project) -> dict[str, Any]:
    return {"action": project.idle_action, "stop_minutes": project.idle_stop_minutes}


def _idle(row: idle.Idle) -> dict[str, Any]:
    instance = row.spell.instance
    return {
        "instance": {"id": instance.public_id, "name": instance.name},
        "project": {"id": instance.project.public_id, "name": instance.project.name},
        "since": row.spell.since,
        "per_hour": {"amount": decimal_string(row.per_hour_micros), "currency": row.currency},
        "for_nothing": {"amount": decimal_string(row.for_nothing_micros), "currency": row.currency},
        "warned_at": row.spell.sent_at,
        "stops_at": row.spell.stops_at,
    }
