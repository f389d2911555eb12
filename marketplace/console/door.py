"""The console's only door: capacity managers of the operator, who may see every tenant."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.utils.cache import add_never_cache_headers
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from billing.errors import (
    AlreadyDecided,
    AlreadyProposed,
    BillingError,
    KeyReused,
    PriceAlreadyPublished,
    RetroactivePrice,
    SecondPersonNeeded,
)
from marketplace.console.forms import ConsoleForm
from marketplace.errors import MarketError, NotFound
from marketplace.portal import doors
from marketplace.portal.doors import Visit
from provisioning.errors import IllegalMove, ProvisioningError, StaleInstance

View = Callable[..., HttpResponse]

REFUSALS = (MarketError, ProvisioningError, BillingError)
# The rooms below speak English; what a capacity manager meets in daily work is said in their language.
SAID: dict[type[Exception], Promise] = {
    AlreadyDecided: _("Somebody decided about this already."),
    AlreadyProposed: _("Another proposal waits for a second person; decide about that one first."),
    IllegalMove: _("The instance has moved on, and its state does not allow this any more."),
    KeyReused: _("This form was sent before with other values. Nothing was changed; open it again."),
    PriceAlreadyPublished: _("Another price begins at that very moment, and prices are never changed."),
    ProvisioningError: _("The node's state does not allow this."),
    RetroactivePrice: _("A price cannot begin in the past: somebody may have used the old one already."),
    SecondPersonNeeded: _("You proposed this; somebody else has to decide."),
    StaleInstance: _("An instance moved at the same moment. Nothing was changed; try again."),
}


def managers_only(*methods: str) -> Callable[[View], View]:
    """Make a page of the console: strangers are asked to sign in, and others who did are told that nothing is here."""

    def decorate(view: View) -> View:
        def opened(visit: Visit, /, **ids: str) -> HttpResponse:
            if not is_manager(visit.request):
                raise NotFound
            response = view(visit, **ids)
            add_never_cache_headers(response)
            return response

        return wraps(view)(doors.page(*methods)(opened))

    return decorate


def is_manager(request: HttpRequest) -> bool:
    """Return whether a capacity manager asks."""
    return bool(request.user.is_authenticated and request.user.is_staff)


def sent(visit: Visit) -> dict[str, str] | None:
    """Return the fields of a form that was sent, full-width characters made plain; None where none was."""
    if visit.request.method != "POST":
        return None
    return {name: visit.text(name) for name in visit.request.POST}


def carried_out(visit: Visit, form: ConsoleForm, verb: Callable[..., Any], **order: Any) -> bool:
    """Say a verb for a valid form and return whether it was done; a refusal is told beside what was typed."""
    if not form.is_valid():
        return False
    try:
        form.made = verb(actor=visit.actor, **order, **form.cleaned_data)
    except REFUSALS as refusal:
        form.is_refused = True
        field = getattr(refusal, "field", None)
        if field in form.fields:
            form.add_error(field, str(refusal))
        else:
            messages.error(visit.request, str(SAID.get(type(refusal), refusal)))
        return False
    return True


def form_page(visit: Visit, form: ConsoleForm, template: str = "console/form.html", **context: Any) -> HttpResponse:
    """Show a form: new, or again with what was typed and what is wrong with it."""
    return visit.page(template, {"form": form, **context}, status=422 if form.errors or form.is_refused else 200)
