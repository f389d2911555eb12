"""The API's description: the schema, a page to read and try it, and what each problem means."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.errors import INTERNAL, KINDS

# Swagger UI writes styles into the page; its script comes from us as a file of its own.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)


class Schema(SpectacularAPIView):
    """The OpenAPI 3.1 description of this server."""

    permission_classes = [AllowAny]


@extend_schema(exclude=True)
class SwaggerPage(SpectacularSwaggerSplitView):
    """Swagger UI, served by us, without anything from elsewhere."""

    url_name = "api-schema"
    url_self = "api-docs"
    permission_classes = [AllowAny]

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]
        response["Content-Security-Policy"] = DOCS_POLICY
        return response


def problems(request: HttpRequest) -> HttpResponse:
    """List every problem that the API can answer with."""
    kinds = {kind.code: kind for kind in [*KINDS.values(), INTERNAL]}
    return render(request, "api/problems.html", {"kinds": sorted(kinds.values(), key=lambda kind: kind.code)})
