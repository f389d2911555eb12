"""The API knows tokens only: no session, so no CSRF."""

from typing import Any

from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from marketplace import access
from marketplace.access import Actor
from marketplace.models import User


class TokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer gm_...`; `request.auth` is the Actor."""

    def authenticate(self, request: Request) -> tuple[User, Actor] | None:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if not secret or scheme.lower() != "bearer":
            return None
        request_id = getattr(request, "id", "")
        actor = access.actor_of_token(secret.strip(), request_id=request_id, at=timezone.now())
        if actor is None:
            raise AuthenticationFailed("The token is unknown or was revoked.")
        return actor.user, actor

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="gpumarket"'


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the API's description names it."""

    target_class = "marketplace.api.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API token, made in the portal under Tokens."}
