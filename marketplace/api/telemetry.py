"""What the GPUs of an instance read while the instance had them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access
from marketplace.api import shapes
from marketplace.api.pages import queried
from marketplace.api.views import actor_of
from provisioning import telemetry

SPAN = timedelta(hours=1)
FIRST_END = datetime.min.replace(tzinfo=UTC) + SPAN
POINTS_MAX = 1500
MILLI = 1000


class TelemetryQuery(serializers.Serializer[Any]):
    since = serializers.DateTimeField(required=False, help_text="default: an hour before `until`")
    until = serializers.DateTimeField(required=False, help_text="default: now")
    resolution = serializers.ChoiceField(
        choices=list(telemetry.RESOLUTIONS),
        required=False,
        help_text="default: by the length of the time. 10s reaches back 2 days, 1m 30 days, 1h 2 years",
    )


class PointAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField(help_text="when this step of time begins")
    utilization_percent = serializers.FloatField(allow_null=True, help_text="mean; null where the GPU does not tell")
    memory_used_mib = serializers.FloatField(allow_null=True)
    power_watts = serializers.FloatField(allow_null=True)
    temperature_c = serializers.FloatField(allow_null=True)
    energy_joules = serializers.FloatField(allow_null=True, help_text="since the point before; null where not known")


class GpuSeries(serializers.Serializer[Any]):
    uuid = serializers.CharField()
    current = serializers.BooleanField(help_text="whether it is of the current run, or was of one before")
    points = PointAnswer(many=True)
    energy_joules = serializers.FloatField(allow_null=True, help_text="sum over the points")


class TelemetryAnswer(serializers.Serializer[Any]):
    resolution = serializers.ChoiceField(choices=list(telemetry.RESOLUTIONS))
    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    gpus = GpuSeries(many=True)


class InstanceTelemetry(APIView):
    """What the GPUs of an instance read."""

    @extend_schema(
        operation_id="read_instance_telemetry",
        parameters=[TelemetryQuery],
        responses={200: TelemetryAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """Read utilization, memory, power and energy of its GPUs, for the time in which it had them and no other."""
        query = queried(request, TelemetryQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        until = query.get("until") or timezone.now()
        since = query.get("since") or max(until, FIRST_END) - SPAN
        step = telemetry.RESOLUTIONS.get(query.get("resolution", "")) or telemetry.step_for(since=since, until=until)
        if until <= since:
            raise serializers.ValidationError({"until": [_("This is not after “since”.")]})
        if (until - since) / step > POINTS_MAX:
            raise serializers.ValidationError(
                {"since": [_("That is more than %(most)s points for each GPU.") % {"most": POINTS_MAX}]}
            )
        found = telemetry.series(of=instance, since=since, until=until, step=step)
        name = next(name for name, of in telemetry.RESOLUTIONS.items() if of == step)
        gpus = [_series(one) for one in found]
        return Response({"resolution": name, "since": since, "until": until, "gpus": gpus})


def _series(one: telemetry.Series) -> dict[str, Any]:
    used = [point.energy_mj for point in one.points if point.energy_mj is not None]
    points = [_point(point) for point in one.points]
    energy = sum(used) / MILLI if used else None
    return {"uuid": one.uuid, "current": one.is_current, "points": points, "energy_joules": energy}


def _point(point: telemetry.Point) -> dict[str, Any]:
    return {
        "at": point.at,
        "utilization_percent": _rounded(point.utilization_percent),
        "memory_used_mib": _rounded(point.memory_used_mib),
        "power_watts": None if point.power_mw is None else _rounded(point.power_mw / MILLI),
        "temperature_c": _rounded(point.temperature_c),
        "energy_joules": None if point.energy_mj is None else point.energy_mj / MILLI,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
