"""What every view of the API shares: who asks, and answering a POST once for its key."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import idempotency
from marketplace.access import Actor
from marketplace.errors import NotFound
from marketplace.models import Organization

KEY_HEADER = "Idempotency-Key"
KEY_REQUIRED = OpenApiParameter(
    KEY_HEADER,
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    required=True,
    description="new for each order, kept on retry",
)
KEY_ACCEPTED = OpenApiParameter(KEY_HEADER, OpenApiTypes.STR, OpenApiParameter.HEADER, required=False)


def actor_of(request: Request) -> Actor:
    """Return who asks. Views without a token never get here: the permission class refuses them."""
    return cast(Actor, request.auth)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Let a NotFound name the field that its id came from; where an id is in the path, the path says it."""
    try:
        yield
    except NotFound as error:
        raise NotFound(field) from error


def answered_once(
    request: Request,
    *,
    organization: Organization,
    order: dict[str, Any],
    effect: Callable[[], tuple[int, Any]],
    required: bool = True,
) -> Response:
    """Answer a POST once for its Idempotency-Key; without one, when none is required, simply answer it."""
    key = request.headers.get(KEY_HEADER, "")
    if not key and not required:
        status, body = effect()
        return Response(body, status=status)
    answer = idempotency.once(
        organization=organization,
        route=f"{request.method} {request.path}",
        key=key,
        order=order,
        effect=lambda: _rendered(effect()),
    )
    headers = {"Idempotency-Replayed": "true"} if answer.is_replay else {}
    return Response(answer.body, status=answer.status, headers=headers)


def _rendered(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Return the body as JSON will hold it, so that the stored answer and the first one are the same bytes."""
    status, body = answer
    return status, json.loads(JSONRenderer().render(body))
