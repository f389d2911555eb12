"""The door of the nodes: the agent protocol over plain Django views. Shapes are in `protocol.py`."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST

from provisioning import artifacts, networks, node_files, nodes, protocol, registries, reports, statements
from provisioning.agent.manifest import SHA256
from provisioning.errors import (
    ArtifactsFull,
    ArtifactTooLarge,
    InventoryMismatch,
    JoinTokenUsed,
    NoArtifact,
    NodeUnknown,
    NotAssigned,
    WrongDigest,
    WrongOffset,
)
from provisioning.models import Artifact, Assignment

log = structlog.get_logger("provisioning.gateway")

RETRY_AFTER_S = 2

Body = TypeVar("Body", bound=msgspec.Struct)


class Malformed(Exception):
    """The body is not what the protocol says."""


PIECE_BYTES = 1 << 20
BYTES = "application/octet-stream"
REFUSALS: dict[type[Exception], int] = {
    NodeUnknown: 401,
    NoArtifact: 404,
    NotAssigned: 409,
    ArtifactTooLarge: 413,
    ArtifactsFull: 507,
    Malformed: 422,
    WrongDigest: 422,
}


@csrf_exempt  # a node has no session and no cookie
@require_POST
def join(request: HttpRequest) -> JsonResponse:
    """Let a node in with its one-time join token."""
    secret = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    at = timezone.now()
    try:
        said = _read(request, protocol.Introduction)
        node = nodes.join(
            secret=secret,
            key_hash=said.key_sha256,
            boot_id=said.boot_id,
            facts={
                "hostname": said.hostname,
                "agent_version": said.agent_version,
                "runtime": said.runtime,
                "gpu_source": said.inventory.source,
                "access": msgspec.to_builtins(said.inventory.access),
                "encrypts": said.inventory.encrypts,
            },
            gpus=said.inventory.gpus,
            at=at,
        )
        statements.learn_key(node=node, public=said.inventory.signing_key, at=at)
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
        said = _read(request, protocol.Sync)
    except Malformed as error:
        return _refusal(422, error)
    try:
        return JsonResponse({"results": reports.take_all(said.reports, at=timezone.now())})
    except (OperationalError, InterfaceError) as error:
        # Nothing of it counts; the nodes come with all of it again.
        log.warning("database away", error=str(error))
        return JsonResponse(
            {"detail": "The database does not answer."}, status=503, headers={"Retry-After": str(RETRY_AFTER_S)}
        )


@csrf_exempt
@require_POST
def secrets(request: HttpRequest) -> JsonResponse:
    """Tell a node how to log in for the pull that it is about to make, or the key of its gang's network.

    It keeps either in memory alone.
    """
    try:
        told = _secret(_decoded(request, protocol.SecretsWanted))
    except Malformed as error:
        return _refusal(422, error)
    except NodeUnknown as error:
        return _refusal(401, error)
    except NotAssigned as error:
        return _refusal(409, error)
    answer = JsonResponse(told)
    answer["Cache-Control"] = "no-store"
    return answer


def _secret(said: protocol.SecretsWanted) -> dict[str, object]:
    if said.of == "network":
        key = networks.key_for(node=said.node, key=said.key, assignment=said.assignment, fence=said.fence)
        return {"network": {"key": key}}
    login = registries.login_for(
        node=said.node, key=said.key, assignment=said.assignment, fence=said.fence, at=timezone.now()
    )
    return {"registry": dataclasses.asdict(login) if login else None}


@csrf_exempt
@require_POST
def artifacts_missing(request: HttpRequest) -> JsonResponse:
    """Tell a node which artifacts of an assignment it must still send."""
    try:
        said = _decoded(request, protocol.ArtifactsWanted)
        row = node_files.holder(node=said.node, key=said.key, assignment=said.assignment, fence=said.fence)
        return JsonResponse({"missing": node_files.missing(row, said.sha256s)})
    except Malformed as error:
        return _refusal(422, error)
    except (NodeUnknown, NotAssigned) as error:
        return _refusal(REFUSALS[type(error)], error)


@csrf_exempt
@require_http_methods(["GET", "HEAD", "PUT"])
def artifact(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """Give a node what an assignment begins with, or take what it leaves behind; either goes on where it was cut off.

    Who asks stands in headers: Authorization (the node's key), Gpumarket-Node,
    -Assignment and -Fence.
    """
    try:
        row = node_files.holder(**_asked_for(request))
        if not SHA256.fullmatch(sha256):
            raise NoArtifact(sha256)
        if request.method == "PUT":
            return _taken(request, row, sha256)
        return _known(row, sha256) if request.method == "HEAD" else _given(request, row, sha256)
    except WrongOffset as error:
        answer = _refusal(409, error)
        answer["Upload-Offset"] = str(error.offset)
        return answer
    except tuple(REFUSALS) as error:
        return _refusal(REFUSALS[type(error)], error)


def _asked_for(request: HttpRequest) -> dict[str, Any]:
    fence = request.headers.get("Gpumarket-Fence", "")
    if not (fence.isascii() and fence.isdigit() and len(fence) < 10):
        raise NotAssigned("The header Gpumarket-Fence is a whole number.")
    return {
        "node": request.headers.get("Gpumarket-Node", ""),
        "key": request.headers.get("Authorization", "").removeprefix("Bearer ").strip(),
        "assignment": request.headers.get("Gpumarket-Assignment", ""),
        "fence": int(fence),
    }


def _known(row: Assignment, sha256: str) -> HttpResponse:
    found = node_files.find(row, sha256)
    if found is None:
        raise NoArtifact(sha256)
    return _with_offset(HttpResponse(content_type=BYTES), found)


def _given(request: HttpRequest, row: Assignment, sha256: str) -> HttpResponseBase:
    size_bytes = node_files.readable(row, sha256)
    offset = artifacts.first_byte(request.headers.get("Range", ""), size_bytes=size_bytes) or 0
    pieces = artifacts.pieces_of(project_id=row.instance.project_id, sha256=sha256, offset=offset)
    answer = StreamingHttpResponse(pieces, status=206 if offset else 200, content_type=BYTES)
    answer["Content-Length"] = str(size_bytes - offset)
    return answer


def _taken(request: HttpRequest, row: Assignment, sha256: str) -> HttpResponse:
    numbers = [request.headers.get(name, "") for name in ("Upload-Offset", "Upload-Length")]
    if not all(text.isascii() and text.isdigit() and len(text) <= 16 for text in numbers):
        raise Malformed("Upload-Offset and Upload-Length are whole numbers of bytes.")
    offset, size_bytes = map(int, numbers)
    found = node_files.receive(
        row, sha256=sha256, size_bytes=size_bytes, offset=offset, pieces=_pieces(request), at=timezone.now()
    )
    return _with_offset(JsonResponse({"state": found.state}), found)


def _with_offset(answer: HttpResponse, found: Artifact) -> HttpResponse:
    answer["Upload-Offset"] = str(artifacts.offset_of(found))
    answer["Upload-Length"] = str(found.size_bytes)
    return answer


def _pieces(request: HttpRequest) -> Iterator[bytes]:
    """Yield the body as it comes. What breaks off has ended: the node goes on from there."""
    try:
        while piece := request.read(PIECE_BYTES):
            yield piece
    except UnreadablePostError:
        return


def _refusal(status: int, error: Exception) -> JsonResponse:
    return JsonResponse({"detail": str(error)}, status=status)


def _read(request: HttpRequest, shape: type[Body]) -> Body:
    """Return the body in this shape if it is of our protocol, or raise Malformed with the place and the reason."""
    spoken = _decoded(request, protocol.Spoken).protocol
    if spoken != protocol.VERSION:
        raise Malformed(f"This control plane speaks protocol {protocol.VERSION}, and the node {spoken}.")
    return _decoded(request, shape)


def _decoded(request: HttpRequest, shape: type[Body]) -> Body:
    try:
        return msgspec.json.decode(request.body, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"The body does not fit the protocol: {error}.") from error
