"""What surrounds every request: its id in the logs, and the headers that guard the browser."""

import re
import secrets
from collections.abc import Callable
from time import monotonic

import structlog
from django.http import HttpRequest, HttpResponse

Handler = Callable[[HttpRequest], HttpResponse]

log = structlog.get_logger("marketplace.requests")
ACCEPTABLE_ID = re.compile(r"^[A-Za-z0-9_.-]{8,64}$")
SECRET_PARTS = ("secret", "key")
QUIET_PATHS = ("/livez", "/readyz", "/static/", "/agent/v1/sync")

# No inline script or style anywhere, nothing from elsewhere. `data:` images are Bootstrap's own icons in its CSS.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)


def request_context(get_response: Handler) -> Handler:
    """Give the request an id (the caller's, if it looks like one), bind it to the logs and send it back."""

    def middleware(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-Id", "")
        request.id = given if ACCEPTABLE_ID.match(given) else f"req_{secrets.token_hex(10)}"  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.id)  # type: ignore[attr-defined]
        began = monotonic()
        response = get_response(request)
        response["X-Request-Id"] = request.id  # type: ignore[attr-defined]
        if not request.path.startswith(QUIET_PATHS):
            log.info(
                "request",
                method=request.method,
                path=_without_secrets(request),
                status=response.status_code,
                milliseconds=round((monotonic() - began) * 1000),
            )
        return response

    return middleware


def _without_secrets(request: HttpRequest) -> str:
    """Return the path without the secret of a link, such as an invitation's: whoever reads logs could use it."""
    path, match = request.path, request.resolver_match
    for name in SECRET_PARTS:
        if match and (secret := match.kwargs.get(name)):
            path = path.replace(str(secret), "***")
    return path


def security_headers(get_response: Handler) -> Handler:
    """Send the strict content policy unless the view set its own (the API's documentation page does)."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
        return response

    return middleware
