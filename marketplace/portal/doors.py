"""What every page of the portal does before and after its own work: who is asking, where, and what a refusal says."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import unquote

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from marketplace import access
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Organization, Project
from marketplace.money import typed_micros
from marketplace.portal import errors
from marketplace.portal.preferences import zone_of
from marketplace.portal.shell import ORGANIZATION_KEY
from provisioning.calendar import HOUR

REFUSALS = tuple(errors.KINDS)
DIGITS_MAX = 9
NUL = "\x00"
WHOLE_DIGITS_MAX = 7

P = ParamSpec("P")


@dataclass(frozen=True)
class Visit:
    """One request of a signed-in person. `at` is its one moment in time."""

    request: HttpRequest
    actor: Actor
    at: datetime

    def organization(self, *, verb: str) -> Organization:
        """Return the organization that a form was shown for, the one that this person chose to look at, or their first.

        They may have chosen another one in another tab since the form was shown.
        """
        if shown_for := self.text(ORGANIZATION_KEY):
            return access.organization_for(self.actor, shown_for, verb=verb)
        chosen = self.request.session.get(ORGANIZATION_KEY)
        if chosen is not None:
            try:
                return access.organization_for(self.actor, chosen, verb=verb)
            except NotFound:
                # They are no member there any more.
                del self.request.session[ORGANIZATION_KEY]
        return access.organization_for(self.actor, None, verb=verb)

    def projects(self, organization: Organization) -> list[Project]:
        """Return the organization's projects, the oldest first."""
        return list(access.projects(self.actor).filter(organization=organization).order_by("pk"))

    def text(self, name: str) -> str:
        """Return what was typed into a field, without outer blanks; full-width digits and letters become plain ones."""
        typed = self.raw(name)
        if NUL in typed:
            raise BadOrder(name, _("A field cannot contain NUL bytes."))
        return unicodedata.normalize("NFKC", typed).strip()

    def query(self, name: str) -> str:
        """Return what the address says under a name, empty where it says nothing."""
        return str(self.request.GET.get(name, "")).strip()

    def moment(self, name: str) -> datetime:
        """Return the UTC time that was typed into a field, or raise BadOrder."""
        return self.moment_of(name, self.text(name))

    def moment_of(self, name: str, typed: str) -> datetime:
        """Return a time as `2026-11-27T18:00` writes it, UTC unless it says otherwise, or raise BadOrder."""
        try:
            at = datetime.fromisoformat(typed)
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise BadOrder(name, _("Write a time in UTC, such as 2026-11-27 18:00.")) from error

    def money(self, name: str) -> int:
        """Return the micros of the amount that was typed into a field, or raise BadOrder."""
        micros = typed_micros(self.text(name), whole_digits_max=WHOLE_DIGITS_MAX)
        if micros is None:
            raise BadOrder(name, _("Write an amount such as 1.50, with at most six places."))
        return micros

    def raw(self, name: str) -> str:
        """Return what was typed into a field, exactly."""
        return str(self.request.POST.get(name, ""))

    def page(self, template: str, context: dict[str, Any], *, status: int = 200) -> HttpResponse:
        """Render a page with this visit's moment in it."""
        return render(self.request, template, {"at": self.at, **context}, status=status)

    def live_page(self, template: str, fragment: str, context: dict[str, Any]) -> HttpResponse:
        """Render a page, or only its live fragment when the page that is open asks for news."""
        return self.page(f"{template}#{fragment}" if is_htmx(self.request) else template, context)


def page(
    *methods: str,
) -> Callable[[Callable[Concatenate[Visit, P], HttpResponse]], Callable[Concatenate[HttpRequest, P], HttpResponse]]:
    """Make a view of a function of a Visit: signed in, in the reader's time zone, refusals as pages."""
    allowed = methods or ("GET", "HEAD")

    def decorate(
        view: Callable[Concatenate[Visit, P], HttpResponse],
    ) -> Callable[Concatenate[HttpRequest, P], HttpResponse]:
        @wraps(view)
        def opened(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if request.method not in allowed:
                return HttpResponseNotAllowed(allowed)
            if not request.user.is_authenticated:
                return _to_sign_in(request)
            request_id = str(getattr(request, "id", ""))
            visit = Visit(request=request, actor=access.person(request.user, request_id), at=timezone.now())
            with timezone.override(zone_of(request)):
                try:
                    if NUL in unquote(request.get_full_path()):
                        raise NotFound
                    return view(visit, *args, **kwargs)
                except REFUSALS as error:
                    return errors.refused(request, error, written=visit.raw("reason"))

        return opened

    return decorate


def is_htmx(request: HttpRequest) -> bool:
    """Return whether a page that is open asks for a fragment of itself."""
    return request.headers.get("HX-Request") == "true" and "HX-Boosted" not in request.headers


def _to_sign_in(request: HttpRequest) -> HttpResponse:
    if not is_htmx(request):
        return redirect_to_login(request.get_full_path())
    # The open page reloads itself and then comes to the sign-in page as a whole.
    return HttpResponse(status=204, headers={"HX-Refresh": "true"})


def absolute(path: str) -> str:
    """Return the address under which others reach a path of ours."""
    return f"{settings.PUBLIC_URL}{path}"


def whole_number(text: str) -> int:
    """Return a whole number that was typed, or -1 for what is none; verbs refuse it by their own rules."""
    return int(text) if text.isdecimal() and len(text) <= DIGITS_MAX else -1


def hours_after(start: datetime, typed: str) -> datetime:
    """Return when so many typed hours after a start are over, or raise BadOrder where no calendar goes so far."""
    try:
        return start + whole_number(typed) * HOUR
    except OverflowError as error:
        raise BadOrder("hours", _("No calendar goes so far; ask for fewer hours.")) from error


def amount_or_none(field: str, text: str) -> int | None:
    """Return the micros of an amount that was typed, None where nothing was; raise BadOrder for what is none."""
    if not text:
        return None
    micros = typed_micros(text.replace(",", ""))
    if micros is None:
        raise BadOrder(field, _("Type an amount such as 1000 or 2.50, or nothing."))
    return micros
