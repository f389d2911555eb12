"""Is this process alive, and can it serve?"""

from django.db import Error, connection
from django.http import HttpRequest, JsonResponse


def livez(request: HttpRequest) -> JsonResponse:
    """Answer as long as the process does."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """Answer 200 when the database does; Redis only carries nudges, so its absence does not stop the service."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM django_migrations LIMIT 1")
    except Error:
        return JsonResponse({"status": "the database does not answer or has no tables yet"}, status=503)
    return JsonResponse({"status": "ok"})
