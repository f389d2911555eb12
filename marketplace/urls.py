"""Every route of the marketplace."""

from django.urls import URLPattern, URLResolver, include, path, re_path

from marketplace import health, webhooks
from marketplace.admin import back_office
from marketplace.api import docs, errors
from provisioning import gateway

urlpatterns: list[URLPattern | URLResolver] = [
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("agent/v1/join", gateway.join, name="agent-join"),
    path("agent/v1/sync", gateway.sync, name="agent-sync"),
    path("agent/v1/secrets", gateway.secrets, name="agent-secrets"),
    path("agent/v1/artifacts/missing", gateway.artifacts_missing, name="agent-artifacts-missing"),
    path("agent/v1/artifacts/<slug:sha256>", gateway.artifact, name="agent-artifact"),
    path("webhooks/stripe", webhooks.stripe, name="stripe-webhook"),
    path("api/v1/", include("marketplace.api.urls")),
    path("api/schema", docs.Schema.as_view(), name="api-schema"),
    path("api/docs", docs.SwaggerPage.as_view(), name="api-docs"),
    path("api/problems", docs.problems, name="api-problems"),
    re_path("^api(?:/|$)", errors.not_found),
    path("accounts/", include("allauth.urls")),
    path("console/", include("marketplace.console.urls")),
    path("back-office/", back_office.urls),
    path("", include("marketplace.portal.urls")),
]

handler400 = "marketplace.refusals.bad_request"
handler403 = "marketplace.portal.errors.forbidden"
handler404 = "marketplace.refusals.not_found"
handler500 = "marketplace.refusals.server_error"
