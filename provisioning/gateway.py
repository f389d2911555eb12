"""The door of the nodes: the agent protocol over plain Django views. Shapes are in `protocol.py`."""

import dataclasses
from typing import TypeVar

import msgspec
import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from provisioning import networks, nodes, protocol, registries, reports, statements
from provisioning.errors import InventoryMismatch, JoinTokenUsed, NodeUnknown, NotAssigned

log = structlog.get_logger("provisioning.gateway")

RETRY_AFTER_S = 2

Body = TypeVar("Body", bound=msgspec.Struct)


class Malformed(Exception):
    """The body is not what the protocol says."""


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
