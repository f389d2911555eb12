"""Every refusal as a problem document (RFC 9457): one table from error to status, code and what to do next."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog
from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions
from rest_framework.response import Response

from billing.errors import (
    AlreadyDecided,
    AlreadyProposed,
    InsufficientFunds,
    KeyReused,
    NoCard,
    NoProcessor,
    PaymentsPastDue,
    SecondPersonNeeded,
)
from marketplace import errors, idempotency, numbers
from marketplace.access import TokenExpired
from marketplace.api.parsers import BodyTooLarge
from marketplace.jobs.spec import BadSpec
from marketplace.quotes import QuoteExpired, QuoteUsed
from marketplace.trades import LimitTooLow
from provisioning import decisions
from provisioning.errors import (
    ArtifactsFull,
    ArtifactTooLarge,
    BadFolder,
    IllegalMove,
    NeverFits,
    NoCapacity,
    NoRoom,
    PolicyExcludes,
    QuotaExceeded,
    StaleInstance,
    StaleInterruption,
    StaleVersion,
    WrongDigest,
    WrongOffset,
)
from provisioning.output import BadCursor

log = structlog.get_logger("marketplace.api")

# What a program sent comes back shortened: an answer is never larger than its question by much.
TEXT_LENGTH_MAX = 500
FIELDS_MAX = 20


@dataclass(frozen=True)
class Kind:
    """One kind of problem. `retry`: none, same_request (it is safe), new_request (change it first), after (wait)."""

    status: int
    code: str
    title: str
    retry: str
    suggestion: str


KINDS: dict[type[Exception], Kind] = {
    exceptions.NotAuthenticated: Kind(
        401, "not_authenticated", "You are not signed in", "new_request",
        "Send “Authorization: Bearer gm_...” with a token from the portal's Tokens page.",
    ),
    exceptions.AuthenticationFailed: Kind(
        401, "not_authenticated", "The token is not good", "new_request",
        "Make a new token on the portal's Tokens page, or run “gpumarket login”.",
    ),
    TokenExpired: Kind(
        401, "token_expired", "The token has expired", "new_request",
        "Make a new token on the portal's Tokens page, or run “gpumarket login”.",
    ),
    errors.Forbidden: Kind(
        403, "permission_denied", "You may not do this", "none", "Ask an owner or admin of the organization."
    ),
    errors.ProjectSuspended: Kind(
        403, "project_suspended", "The project is suspended", "none", "Ask the operator why it is suspended."
    ),
    errors.NotFound: Kind(
        404, "not_found", "There is no such thing", "none",
        "Check the id. What belongs to another organization looks as if it did not exist.",
    ),
    exceptions.MethodNotAllowed: Kind(
        405, "method_not_allowed", "This method does not work here", "none", "See the API's description at /api/docs."
    ),
    exceptions.UnsupportedMediaType: Kind(
        415, "unsupported_media_type", "The body is not JSON", "new_request", "Send “Content-Type: application/json”."
    ),
    exceptions.NotAcceptable: Kind(
        406, "not_acceptable", "We only answer in JSON", "new_request", "Send “Accept: application/json”."
    ),
    exceptions.ParseError: Kind(
        400, "malformed_json", "The body is not valid JSON", "new_request", "Correct the JSON and send it again."
    ),
    SuspiciousOperation: Kind(
        400, "bad_request", "We could not read this request", "new_request", "Check the address and the headers."
    ),
    BodyTooLarge: Kind(
        413, "body_too_large", "The body is too large", "new_request", "Send less; no request needs that much."
    ),
    exceptions.ValidationError: Kind(
        422, "invalid_request", "The request does not make sense", "new_request", "Correct the fields named in errors."
    ),
    BadSpec: Kind(
        422, "invalid_job", "The job does not make sense", "new_request", "Correct what errors names, line by line."
    ),
    errors.BadOrder: Kind(
        422, "invalid_request", "The request does not make sense", "new_request", "Correct the fields named in errors."
    ),
    BadCursor: Kind(
        422, "invalid_request", "The cursor is not one of ours", "new_request", "Leave the cursor out to start anew."
    ),
    idempotency.KeyMissing: Kind(
        400, "idempotency_key_required", "An Idempotency-Key is missing", "new_request",
        "Send the header Idempotency-Key with a new random value for each order, and the same one when you retry.",
    ),
    idempotency.KeyOfAnotherOrder: Kind(
        422, "idempotency_key_reused", "The key was used for another order", "new_request",
        "Use a new Idempotency-Key for a new order.",
    ),
    InsufficientFunds: Kind(
        402, "insufficient_funds", "Not enough credit", "new_request", "Add credit, or choose fewer GPUs."
    ),
    PaymentsPastDue: Kind(
        402, "payments_past_due", "A payment is past due", "new_request",
        "Pay it (POST /api/v1/invoices/{id}/pay, or gpumarket invoices pay), or by bank transfer with its number. What "
        "a bank took back is paid by adding credit.",
    ),
    NoCapacity: Kind(
        409, "no_capacity", "Not enough free GPUs", "after",
        "Wait for them (POST /api/v1/waits), see what fits instead (GET /api/v1/waits/outlook), or ask for fewer GPUs.",
    ),
    NeverFits: Kind(
        409, "never_fits", "It is larger than any place of the offer", "new_request",
        "Ask for fewer GPUs or replicas, let them use a wider level, or choose another offer. Waiting does not help.",
    ),
    PolicyExcludes: Kind(
        409, "policy_excludes", "A policy keeps it out", "new_request",
        "Choose another offer, or ask an owner or admin to change the policy; it is never relaxed by itself.",
    ),
    ArtifactTooLarge: Kind(
        413, "artifact_too_large", "The artifact is too large", "new_request", "Send smaller files."
    ),
    ArtifactsFull: Kind(
        409, "artifacts_full", "The project keeps too much", "new_request",
        "What nothing uses is removed after 30 days; ask the operator for more room.",
    ),
    WrongOffset: Kind(
        409, "wrong_offset", "The upload does not go on there", "new_request",
        "Go on from the byte in the header Upload-Offset.",
    ),
    WrongDigest: Kind(
        422, "wrong_digest", "The bytes are not what they were announced as", "new_request",
        "Nothing was kept. Work out the SHA-256 anew, and send the file from its first byte.",
    ),
    BadFolder: Kind(
        422, "bad_folder", "This names no whole folder", "new_request",
        "Upload the files, then the manifest that lists them (gpumarket does both).",
    ),
    NoRoom: Kind(
        409, "no_room", "No node can keep the volume", "after",
        "Try again later, or make the volume in another site (GET /api/v1/sites).",
    ),
    QuotaExceeded: Kind(
        409, "quota_exceeded", "A quota is used up", "new_request",
        "Terminate what you do not need, or ask for a higher limit (POST /api/v1/quota-requests).",
    ),
    errors.BudgetExceeded: Kind(
        409, "budget_exceeded", "It would pass a budget", "new_request",
        "Order less, wait for the next month, or ask whoever set the budget to raise it.",
    ),
    IllegalMove: Kind(
        409, "wrong_state", "Its state does not allow this", "none", "Its “actions” say what may be done now."
    ),
    StaleInstance: Kind(
        409, "wrong_state", "It changed at the same moment", "same_request", "Look again, then repeat the request."
    ),
    StaleVersion: Kind(
        409, "stale_version", "It was changed meanwhile", "new_request",
        "Read it again (GET), then repeat your change with the ETag that you got.",
    ),
    StaleInterruption: Kind(
        409, "interruption_over", "The interruption is not open any more", "none",
        "Look at the bid again: it may go on, or have ended already.",
    ),
    errors.Conflict: Kind(
        409, "conflict", "It contradicts what is there already", "new_request", "Change the request as the detail says."
    ),
    errors.IllegalState: Kind(
        409, "wrong_state", "Its state does not allow this", "none", "Look at it again to see what can be done now."
    ),
    QuoteExpired: Kind(
        409, "quote_expired", "The quote is too old", "new_request", "Ask for a new quote (POST /api/v1/quotes)."
    ),
    QuoteUsed: Kind(
        409, "quote_used", "The quote was used already", "new_request",
        "Look at what it bought (GET /api/v1/reservations); to buy more, ask for a new quote.",
    ),
    LimitTooLow: Kind(
        409, "limit_too_low", "It costs more than your limit", "new_request",
        "Raise the limit, or look what is for sale (GET /api/v1/offers/{offer}/asks).",
    ),
    errors.LastOwner: Kind(
        409, "conflict", "An organization needs an owner", "new_request", "Make somebody else an owner first."
    ),
    NoProcessor: Kind(
        409, "no_card_processor", "Cards cannot be used here", "none",
        "The operator has not connected a card processor; ask them to add credit.",
    ),
    NoCard: Kind(
        409, "no_card", "There is no such card", "new_request",
        "See GET /api/v1/cards; add one in the portal, or name the card “new”.",
    ),
    KeyReused: Kind(
        422, "idempotency_key_reused", "The key was used for another order", "new_request",
        "Use a new Idempotency-Key for a new order.",
    ),
    SecondPersonNeeded: Kind(
        403, "second_person_needed", "Somebody else has to decide", "none", "Ask another person to decide about it."
    ),
    AlreadyDecided: Kind(
        409, "already_decided", "It was decided already", "none", "Look at it again to see what became of it."
    ),
    AlreadyProposed: Kind(
        409, "already_proposed", "Another proposal waits", "after", "Let somebody decide about that one first."
    ),
    OperationalError: Kind(
        503, "unavailable", "We cannot answer now", "same_request", "Repeat the request in a few seconds, same key."
    ),
}  # fmt: skip
INTERNAL = Kind(
    500, "internal_error", "Something went wrong on our side", "same_request",
    "Repeat the request with the same Idempotency-Key; if it fails again, tell us the request id.",
)  # fmt: skip
SUBSTITUTES: dict[type[Exception], type[Exception]] = {
    Http404: errors.NotFound,
    PermissionDenied: errors.Forbidden,
    exceptions.NotFound: errors.NotFound,
    exceptions.PermissionDenied: errors.Forbidden,
    InterfaceError: OperationalError,
}


def handle(error: Exception, context: dict[str, Any]) -> Response:
    """Turn any error of a view into a problem document. What is not in the table is a bug of ours: 500, and logged."""
    request: HttpRequest = context["request"]._request
    kind = kind_of(error)
    if kind is INTERNAL:
        log.exception("unexpected error", path=request.path, exc_info=error)
    body = problem(kind, request=request, detail=_detail(error, kind), errors=_first(error))
    if isinstance(error, NoCapacity) and (placement_id := decisions.keep(error)):
        # What the refusal belongs to was rolled back by now; what was decided stays.
        body["placement"] = placement_id
    response = Response(body)
    response.status_code = kind.status
    response.content_type = "application/problem+json"
    if kind.status == 401:
        response["WWW-Authenticate"] = 'Bearer realm="gpumarket"'
    if isinstance(error, WrongOffset):
        response["Upload-Offset"] = str(error.offset)
    if kind.status == 503 or kind.retry == "after":
        response["Retry-After"] = "5"
    return response


def kind_of(error: Exception) -> Kind:
    """Return the entry of the table for an error, through its substitutes and base classes."""
    wanted = SUBSTITUTES.get(type(error), type(error))
    return next((KINDS[ancestor] for ancestor in wanted.__mro__ if ancestor in KINDS), INTERNAL)


def problem(kind: Kind, *, request: HttpRequest, detail: str, errors: list[dict[str, str]]) -> dict[str, Any]:
    """Return the document. Nothing is ever charged by a request that was refused: it was rolled back whole."""
    return {
        "type": f"{settings.PUBLIC_URL}/api/problems#{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": _plain(detail),
        "instance": _plain(request.path),
        "code": kind.code,
        "charged": False,
        "retry": kind.retry,
        "suggestion": kind.suggestion,
        "errors": errors,
        "request_id": getattr(request, "id", ""),
    }


@csrf_exempt  # whatever the method: there is nothing to forge
def not_found(request: HttpRequest) -> JsonResponse:
    """Answer for a path under /api that is no route."""
    return _answer(KINDS[errors.NotFound], request, f"There is nothing at {request.path}.")


def bad_request(request: HttpRequest) -> JsonResponse:
    """Answer for what Django refused before any view, such as a host that is not ours."""
    return _answer(KINDS[SuspiciousOperation], request, "It was refused before it reached the API.")


def server_error(request: HttpRequest) -> JsonResponse:
    """Answer for an error outside of a view; Django has logged it."""
    return _answer(INTERNAL, request, _detail(Exception(), INTERNAL))


def _answer(kind: Kind, request: HttpRequest, detail: str) -> JsonResponse:
    body = problem(kind, request=request, detail=detail, errors=[])
    return JsonResponse(body, status=kind.status, content_type="application/problem+json")


def _detail(error: Exception, kind: Kind) -> str:
    if kind is INTERNAL:
        return "The request was rolled back; nothing was started and nothing was charged."
    if isinstance(error, exceptions.ValidationError):
        return "; ".join(f"{field['pointer'][1:] or 'body'}: {field['detail']}" for field in _first(error))
    if isinstance(error, exceptions.APIException):
        return str(error.detail)
    return numbers.said(error) or kind.title


def _first(error: Exception) -> list[dict[str, str]]:
    return list(islice(_fields(error), FIELDS_MAX))


def _fields(error: Exception) -> Iterator[dict[str, str]]:
    if isinstance(error, BadSpec):
        yield from ({"pointer": fault.pointer, "detail": str(fault)} for fault in error.faults)
    elif isinstance(error, errors.BadOrder | errors.NotFound) and error.field:
        yield {"pointer": f"/{error.field}", "detail": str(error)}
    elif isinstance(error, BadCursor):
        yield {"pointer": "/cursor", "detail": str(error)}
    elif isinstance(error, exceptions.ValidationError):
        yield from _walk(error.detail, "")


def _walk(detail: Any, pointer: str) -> Iterator[dict[str, str]]:
    """Name each faulty field by a JSON pointer (RFC 6901)."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            step = _plain(str(name)).replace("~", "~0").replace("/", "~1")
            yield from _walk(inner, pointer if name == "non_field_errors" else f"{pointer}/{step}")
    elif isinstance(detail, list):
        for inner in detail:
            yield from _walk(inner, pointer)
    else:
        yield {"pointer": pointer, "detail": _plain(str(detail))}


def _plain(text: str) -> str:
    """Return a text that can be sent: shortened, and halves of surrogate pairs written out."""
    short = text if len(text) <= TEXT_LENGTH_MAX else f"{text[:TEXT_LENGTH_MAX]}…"
    return short.encode(errors="backslashreplace").decode()
