"""The door of the nodes: the agent protocol over plain Django views.

Shapes are checked here by hand and strictly, since a node is not to be
trusted: a report that does not fit is refused whole with 422 and a reason.
"""

import base64
import json
import math
import re
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from provisioning import nodes, reports
from provisioning.errors import InventoryMismatch, JoinTokenUsed, NodeUnknown
from provisioning.models import Assignment

log = structlog.get_logger("provisioning.gateway")

REPORTS_MAX = 500
GPUS_MAX = 1024
LOG_PIECE_MAX = 256 * 1024
TEXT_MAX = 2000
# What the columns can hold; JSON's own whole numbers are exact up to 2^53.
BIGGEST, BIGGEST_INTEGER, BIGGEST_SMALL_INTEGER = 2**53, 2**31 - 1, 2**15 - 1
YEAR_MS = 366 * 24 * 3600 * 1000
STATES = set(Assignment.Observed.values) - {Assignment.Observed.PENDING}
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
SHA256_SHAPE = re.compile(r"[0-9a-f]{64}")


class Malformed(Exception):
    """The body is not what the protocol says."""


@csrf_exempt  # a node has no session and no cookie
@require_POST
def join(request: HttpRequest) -> JsonResponse:
    """Let a node in with its one-time join token."""
    secret = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    at = timezone.now()
    try:
        body = _body(request)
        facts = {
            "hostname": _text(body, "hostname", longest=255),
            "agent_version": _text(body, "agent_version", longest=40),
            "runtime": _text(body, "runtime", longest=20),
            "gpu_source": _text(_object(body, "inventory"), "source", longest=20),
        }
        _, gpus = _inventory(_object(body, "inventory"))
        node = nodes.join(
            secret=secret,
            key_hash=_digest(body, "key_sha256"),
            boot_id=_text(body, "boot_id", longest=64),
            facts=facts,
            gpus=gpus,
            at=at,
        )
    except (Malformed, InventoryMismatch) as error:
        return _refusal(422, error)
    except NodeUnknown as error:
        return _refusal(401, error)
    except JoinTokenUsed as error:
        return _refusal(409, error)
    answer = {"node": node.public_id, "name": node.name, "poll_after_ms": settings.NODE_POLL_MS["idle"]}
    return JsonResponse(answer, status=201 if node.joined_at == at else 200)


@csrf_exempt
@require_POST
def sync(request: HttpRequest) -> JsonResponse:
    """Take the reports of one or many nodes and tell each what should be there."""
    try:
        body = _body(request)
        if "reports" not in body:
            raise Malformed("“reports” is missing.")
        said = [_report(entry) for entry in _objects(body, "reports", most=REPORTS_MAX)]
    except Malformed as error:
        return _refusal(422, error)
    at = timezone.now()
    return JsonResponse({"results": [_taken(report, at) for report in said]})


def _taken(report: reports.Report, at: datetime) -> dict[str, Any]:
    """Take one report; an error of ours with one node must not make the others of its batch look silent."""
    try:
        return reports.take(report, at=at)
    except Exception:
        log.exception("report failed", node=report.node)
        return {"node": report.node, "status": "error", "poll_after_ms": settings.NODE_POLL_MS["busy"]}


def _refusal(status: int, error: Exception) -> JsonResponse:
    return JsonResponse({"detail": str(error)}, status=status)


def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.") from error
    if not isinstance(body, dict):
        raise Malformed("The body is not a JSON object.")
    return body


def _report(entry: dict[str, Any]) -> reports.Report:
    return reports.Report(
        node=_text(entry, "node", longest=32),
        key=_text(entry, "key", longest=200),
        boot_id=_text(entry, "boot_id", longest=64),
        agent_epoch=_number(entry, "agent_epoch"),
        seq=_number(entry, "seq"),
        desired_seen=_number(entry, "desired_seen"),
        inventory=None if entry.get("inventory") is None else _inventory(_object(entry, "inventory")),
        assignments=[_said(word) for word in _objects(entry, "assignments", most=GPUS_MAX)],
        logs=[_log_piece(piece) for piece in _objects(entry, "logs", most=GPUS_MAX)],
        energy=[_reading(reading) for reading in _objects(entry, "energy", most=GPUS_MAX)],
        telemetry=[_reading(reading) for reading in _objects(entry, "telemetry", most=GPUS_MAX)],
    )


def _inventory(found: dict[str, Any]) -> tuple[int, list[nodes.GpuFact]]:
    gpus = [
        nodes.GpuFact(
            uuid=_text(gpu, "uuid", longest=64),
            index=_number(gpu, "index", biggest=BIGGEST_SMALL_INTEGER),
            model=_text(gpu, "model", longest=80),
            memory_mib=_optional_number(gpu, "memory_mib", biggest=BIGGEST_INTEGER),
            healthy=gpu.get("healthy") is True,
        )
        for gpu in _objects(found, "gpus", most=GPUS_MAX)
    ]
    if len({gpu.uuid for gpu in gpus}) != len(gpus) or len({gpu.index for gpu in gpus}) != len(gpus):
        raise Malformed("Two GPUs share a uuid or an index.")
    return _number(found, "generation"), gpus


def _said(word: dict[str, Any]) -> reports.Said:
    state = _text(word, "state", longest=20)
    if state not in STATES:
        raise Malformed(f"“{state}” is no state of an assignment.")
    return reports.Said(
        id=_text(word, "id", longest=32),
        fence=_number(word, "fence"),
        state=state,
        exit_code=_optional_number(word, "exit_code", biggest=BIGGEST_INTEGER),
        exited_ago_ms=_optional_number(word, "exited_ago_ms", biggest=YEAR_MS),
        message=_text(word, "message", longest=TEXT_MAX, default=""),
    )


def _log_piece(piece: dict[str, Any]) -> tuple[str, int, bytes]:
    try:
        data = base64.b64decode(_text(piece, "data", longest=2 * LOG_PIECE_MAX), validate=True)
    except ValueError as error:
        raise Malformed("A piece of log is not base64.") from error
    return _text(piece, "assignment", longest=32), _number(piece, "offset"), data


READING_NAMES = {
    "uuid",
    "millijoules",
    "driver_epoch",
    "utilization_percent",
    "memory_used_mib",
    "power_mw",
    "temperature_c",
}


def _reading(reading: dict[str, Any]) -> dict[str, Any]:
    """Keep the known names of a reading; a value that the GPU does not tell is null and never zero."""
    return {name: value for name, value in reading.items() if name in READING_NAMES and _is_reading(value)}


def _is_reading(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 64 and _is_storable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= BIGGEST)


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"“{name}” is missing or not an object.")
    return value


def _objects(body: dict[str, Any], name: str, *, most: int) -> list[dict[str, Any]]:
    value = body.get(name, [])
    if not isinstance(value, list) or len(value) > most or not all(isinstance(entry, dict) for entry in value):
        raise Malformed(f"“{name}” is not a list of at most {most} objects.")
    return value


def _text(body: dict[str, Any], name: str, *, longest: int, default: str | None = None) -> str:
    value = body.get(name, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, str) or len(value) > longest or not _is_storable(value):
        raise Malformed(f"“{name}” is missing or not a text of at most {longest} characters.")
    return value


def _is_storable(text: str) -> bool:
    """Say whether PostgreSQL can keep a text: no NUL, and no half of a surrogate pair."""
    return not UNSTORABLE.search(text)


def _digest(body: dict[str, Any], name: str) -> str:
    value = _text(body, name, longest=64)
    if not SHA256_SHAPE.fullmatch(value):
        raise Malformed(f"“{name}” is not a SHA-256 in hexadecimal.")
    return value


def _number(body: dict[str, Any], name: str, *, biggest: int = BIGGEST) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= biggest:
        raise Malformed(f"“{name}” is missing or not a whole number from 0 to {biggest}.")
    return value


def _optional_number(body: dict[str, Any], name: str, *, biggest: int) -> int | None:
    return None if body.get(name) is None else _number(body, name, biggest=biggest)
