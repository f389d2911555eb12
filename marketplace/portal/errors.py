"""Every refusal in five parts: what happened, why, whether it was charged, what to do, and a reference."""

from dataclasses import dataclass

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template import loader
from django.urls import reverse_lazy
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.errors import (
    InsufficientFunds,
    KeyReused,
    NoCard,
    NoProcessor,
    OutcomeUnknown,
    PaymentsPastDue,
    ProcessorRefused,
    Stranger,
)
from marketplace import idempotency, numbers
from marketplace.errors import (
    BadOrder,
    BudgetExceeded,
    Conflict,
    Forbidden,
    IllegalState,
    LastOwner,
    NotFound,
    ProjectSuspended,
)
from marketplace.jobs.spec import BadSpec
from marketplace.numbers import NUMBERS
from marketplace.portal.preferences import theme_of
from marketplace.quotes import QuoteExpired, QuoteUsed
from marketplace.trades import LimitTooLow
from provisioning import decisions
from provisioning.errors import (
    IllegalMove,
    NeverFits,
    NoCapacity,
    NoRoom,
    PolicyExcludes,
    QuotaExceeded,
    StaleInstance,
    StaleInterruption,
    StaleVersion,
)
from provisioning.output import BadCursor

Text = str | Promise
WRITTEN_LENGTH_MAX = 5000


@dataclass(frozen=True)
class Kind:
    """One kind of refusal. Without a `why` the error's own words say it; `link` leads to where it can be mended."""

    status: int
    title: Text
    remedy: Text
    why: Text = ""
    link: tuple[Text, Text] | None = None


@dataclass(frozen=True)
class Refusal:
    """What a person reads. Nothing is ever charged by what was refused: it was rolled back whole."""

    status: int
    title: str
    why: str
    charged: str
    remedy: str
    reference: str
    field: str = ""
    link: tuple[str, str] | None = None
    placement: str = ""


KINDS: dict[type[Exception], Kind] = {
    NotFound: Kind(
        404,
        gettext_lazy("There is no such page"),
        gettext_lazy("Check the address, or start from the home page."),
        gettext_lazy("It does not exist, or it belongs to an organization that you are not a member of."),
    ),
    Forbidden: Kind(
        403,
        gettext_lazy("You may not do this"),
        gettext_lazy("Ask an owner or admin of the organization, or choose another organization."),
        link=(gettext_lazy("See who may do what"), reverse_lazy("members")),
    ),
    ProjectSuspended: Kind(
        403,
        gettext_lazy("The project is suspended"),
        gettext_lazy("Ask the operator why. What is stored is kept."),
    ),
    BadSpec: Kind(
        422, gettext_lazy("The job does not make sense"), gettext_lazy("Correct what is named and send it again.")
    ),
    BadOrder: Kind(422, gettext_lazy("Please correct this"), gettext_lazy("Correct the field and send it again.")),
    InsufficientFunds: Kind(
        402,
        gettext_lazy("Not enough credit"),
        gettext_lazy("Add credit, or choose fewer GPUs."),
        link=(gettext_lazy("See the balance"), reverse_lazy("balance")),
    ),
    PaymentsPastDue: Kind(
        402,
        gettext_lazy("A payment is past due"),
        gettext_lazy("Pay it; everything is as before at once."),
        link=(gettext_lazy("See the invoices"), reverse_lazy("invoices")),
    ),
    QuotaExceeded: Kind(
        409,
        gettext_lazy("A quota is used up"),
        gettext_lazy("Terminate what you do not need, or ask for a higher limit."),
        link=(gettext_lazy("See quotas and ask for more"), reverse_lazy("quotas")),
    ),
    BudgetExceeded: Kind(
        409,
        gettext_lazy("It would pass a budget"),
        gettext_lazy("Order less, wait for the next month, or ask whoever set the budget to raise it."),
        link=(gettext_lazy("See budgets"), reverse_lazy("quotas")),
    ),
    NoCapacity: Kind(
        409,
        gettext_lazy("Not enough free GPUs"),
        gettext_lazy("Ask for fewer GPUs, choose another offer, or try again in a moment."),
        link=(gettext_lazy("See what is free"), reverse_lazy("market")),
    ),
    NeverFits: Kind(
        409,
        gettext_lazy("It is larger than any place of the offer"),
        gettext_lazy("Ask for fewer GPUs or replicas, let them use a wider level, or choose another offer."),
        link=(gettext_lazy("See what is free"), reverse_lazy("market")),
    ),
    PolicyExcludes: Kind(
        409,
        gettext_lazy("A policy keeps it out"),
        gettext_lazy("Choose another offer, or ask an owner or admin to change the policy."),
        link=(gettext_lazy("See the policies"), reverse_lazy("policies")),
    ),
    NoRoom: Kind(
        409,
        gettext_lazy("No node can keep the volume"),
        gettext_lazy("Choose another site, or try again later."),
        link=(gettext_lazy("See volumes"), reverse_lazy("volumes")),
    ),
    IllegalMove: Kind(
        409,
        gettext_lazy("Its state does not allow this"),
        gettext_lazy("Look at it again to see what can be done now."),
        gettext_lazy("It has moved on since you opened the page."),
        (gettext_lazy("See instances"), reverse_lazy("instances")),
    ),
    StaleInstance: Kind(
        409,
        gettext_lazy("It changed at the same moment"),
        gettext_lazy("Look at it again, then repeat what you wanted."),
        gettext_lazy("Somebody else, or the marketplace itself, was faster."),
        (gettext_lazy("See instances"), reverse_lazy("instances")),
    ),
    StaleVersion: Kind(
        409,
        gettext_lazy("It was changed meanwhile"),
        gettext_lazy("Open the page again, then repeat your change."),
        link=(gettext_lazy("See the policies"), reverse_lazy("policies")),
    ),
    StaleInterruption: Kind(
        409,
        gettext_lazy("The interruption is not open any more"),
        gettext_lazy("Look at the bid again: it may go on, or have ended already."),
        gettext_lazy("It was called off or carried out meanwhile."),
    ),
    Conflict: Kind(409, gettext_lazy("This is there already"), gettext_lazy("Change it as said above and try again.")),
    IllegalState: Kind(
        409,
        gettext_lazy("Its state does not allow this"),
        gettext_lazy("Look at it again to see what can be done now."),
    ),
    QuoteExpired: Kind(
        409,
        gettext_lazy("The quote is too old"),
        gettext_lazy("Ask for a new one; the price may be the same."),
        link=(gettext_lazy("See free hours"), reverse_lazy("hours")),
    ),
    QuoteUsed: Kind(
        409,
        gettext_lazy("The quote was used already"),
        gettext_lazy("Look at what it bought. To buy more, ask for a new quote."),
        link=(gettext_lazy("See reservations"), reverse_lazy("reservations")),
    ),
    LimitTooLow: Kind(
        409, gettext_lazy("It costs more than your limit"), gettext_lazy("Raise the limit, or choose other hours.")
    ),
    LastOwner: Kind(
        409,
        gettext_lazy("An organization needs an owner"),
        gettext_lazy("Make somebody else an owner first."),
        gettext_lazy("This is the last owner."),
        (gettext_lazy("See members"), reverse_lazy("members")),
    ),
    idempotency.KeyOfAnotherOrder: Kind(
        409,
        gettext_lazy("This form was sent before"),
        gettext_lazy("Look at what it started. To start one more, send the form below again."),
        gettext_lazy("It has started something already, with other values."),
        (gettext_lazy("See instances"), reverse_lazy("instances")),
    ),
    idempotency.KeyMissing: Kind(
        400,
        gettext_lazy("The form was incomplete"),
        gettext_lazy("Open the form again and send it from there."),
        gettext_lazy("It lacks the key that keeps it from being done twice."),
    ),
    BadCursor: Kind(
        400,
        gettext_lazy("This place in the log is not known"),
        gettext_lazy("Open the instance again."),
        gettext_lazy("The address was changed or is from another instance."),
    ),
    NoProcessor: Kind(
        409,
        gettext_lazy("Cards cannot be used here"),
        gettext_lazy("Ask the operator to add credit. Everything else works."),
        gettext_lazy("The operator has not connected a card processor."),
        (gettext_lazy("See the balance"), reverse_lazy("balance")),
    ),
    NoCard: Kind(
        409,
        gettext_lazy("There is no such card any more"),
        gettext_lazy("Choose another card, or add one."),
        gettext_lazy("It was removed."),
        (gettext_lazy("See payment methods"), reverse_lazy("payment-methods")),
    ),
    KeyReused: Kind(
        409,
        gettext_lazy("This form was sent before"),
        gettext_lazy("Look at your payments. To pay once more, open the form again."),
        gettext_lazy("It has started a payment already, with other values."),
        (gettext_lazy("See payment methods"), reverse_lazy("payment-methods")),
    ),
    ProcessorRefused: Kind(
        409,
        gettext_lazy("The card processor refused this"),
        gettext_lazy("Look at the payment again, or try another card."),
        link=(gettext_lazy("See payment methods"), reverse_lazy("payment-methods")),
    ),
    OutcomeUnknown: Kind(
        503,
        gettext_lazy("The card processor does not answer"),
        gettext_lazy("Try again in a moment. A payment that was ordered is looked after and charged once at most."),
        gettext_lazy("It may be away, or the way to it is."),
        (gettext_lazy("See payment methods"), reverse_lazy("payment-methods")),
    ),
    Stranger: Kind(
        409,
        gettext_lazy("The card processor's answer does not belong to this"),
        gettext_lazy("Tell us the reference. Nothing was moved."),
        gettext_lazy("It speaks of something that we did not ask for."),
    ),
    OperationalError: Kind(
        503,
        gettext_lazy("We cannot answer now"),
        gettext_lazy("Try again in a few seconds."),
        gettext_lazy("The database does not answer."),
    ),
}


def refusal_of(error: Exception, *, reference: str) -> Refusal:
    """Return what to tell about an error of the table; what placement decided is kept, once all was rolled back."""
    kind = next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)
    why = numbers.said(error) if type(error) in NUMBERS else str(kind.why or error)
    return Refusal(
        status=kind.status,
        title=str(kind.title),
        why=why,
        charged=_("Nothing was started, changed or charged."),
        remedy=str(kind.remedy),
        reference=reference,
        field=error.field if isinstance(error, BadOrder) else "",
        link=(str(kind.link[0]), str(kind.link[1])) if kind.link else None,
        placement=decisions.keep(error) if isinstance(error, NoCapacity) else "",
    )


def refused(request: HttpRequest, error: Exception, *, written: str = "") -> HttpResponse:
    """Answer with the page of a refusal, and with what was written in what is refused: nobody types it twice."""
    refusal = refusal_of(error, reference=reference_of(request))
    context = {"refusal": refusal, "written": written[:WRITTEN_LENGTH_MAX]}
    return render(request, "refused.html", context, status=refusal.status)


def reference_of(request: HttpRequest) -> str:
    """Return what a person can tell us so that we find their request in our logs."""
    return str(getattr(request, "id", ""))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer for what no form of ours sends."""
    kind = Kind(
        400,
        _("We could not read this request"),
        _("Go back, reload the page and try again."),
        _("It is not in the form that our pages send."),
    )
    return _plain(request, kind)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer for PermissionDenied."""
    return refused(request, Forbidden(_("This page is not for your account.")))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer for a form that does not belong to this session."""
    kind = Kind(
        403,
        _("This form is out of date"),
        _("Go back, reload the page and send the form again."),
        _("You signed in or out since it was opened, or cookies are blocked."),
    )
    return _plain(request, kind)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer for an address that is no page of ours."""
    return refused(request, NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer for an error of ours."""
    kind = Kind(
        500,
        _("Something went wrong on our side"),
        _("Try again in a moment. If it happens again, tell us the reference."),
        _("We have written down what happened and will look at it."),
    )
    return _plain(request, kind)


def _plain(request: HttpRequest, kind: Kind) -> HttpResponse:
    """Answer without asking the database or the session, which may be what is broken."""
    refusal = Refusal(
        status=kind.status,
        title=str(kind.title),
        why=str(kind.why),
        charged=_("Nothing was started, changed or charged."),
        remedy=str(kind.remedy),
        reference=reference_of(request),
    )
    context = {"refusal": refusal, "theme": theme_of(request), "LANGUAGE_CODE": translation.get_language()}
    return HttpResponse(loader.render_to_string("refused_plainly.html", context), status=kind.status)
