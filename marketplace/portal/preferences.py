"""How a person likes to see pages: theme and time zone (the language is Django's own affair)."""

from functools import cache
from urllib.parse import unquote
from zoneinfo import ZoneInfo, available_timezones

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

THEMES = ("system", "light", "dark")
THEME_COOKIE, ZONE_COOKIE = "theme", "timezone"
YEAR_S = 365 * 24 * 3600


def theme_of(request: HttpRequest) -> str:
    """Return the theme that the reader chose; `system` until they did."""
    theme = request.COOKIES.get(THEME_COOKIE, "")
    return theme if theme in THEMES else "system"


def zone_of(request: HttpRequest) -> ZoneInfo:
    """Return the reader's time zone, as their browser told us in a cookie; UTC until it did."""
    name = unquote(request.COOKIES.get(ZONE_COOKIE, ""))
    return ZoneInfo(name if name in _zones() else "UTC")


@cache
def _zones() -> set[str]:
    """Return the names of all time zones. Python opens six hundred files to know them."""
    return available_timezones()


def back_to(request: HttpRequest) -> str:
    """Return where a small form wants to go back to: a page of ours, the home page if it names none."""
    wanted = str(request.POST.get("next", ""))
    is_ours = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    # A word alone would be taken for the name of a view.
    if is_ours and wanted.startswith("/"):
        return wanted
    return resolve_url("home")


@require_POST
def set_theme(request: HttpRequest) -> HttpResponse:
    """Remember the theme in a cookie that the server reads, so that pages come in it from their first byte."""
    theme = str(request.POST.get("theme", ""))
    response = redirect(back_to(request))
    response.set_cookie(
        THEME_COOKIE,
        theme if theme in THEMES else "system",
        max_age=YEAR_S,
        samesite="Lax",
        secure=bool(settings.SESSION_COOKIE_SECURE),
        httponly=True,
    )
    return response
