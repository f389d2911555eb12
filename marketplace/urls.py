"""Every route of the marketplace."""

from django.urls import URLPattern, URLResolver, path

from marketplace import health
from provisioning import gateway

urlpatterns: list[URLPattern | URLResolver] = [
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("agent/v1/join", gateway.join, name="agent-join"),
    path("agent/v1/sync", gateway.sync, name="agent-sync"),
]
