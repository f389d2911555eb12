"""Cards, top-ups and payments. Whoever types a card does so on the processor's page; here it is only named."""

from typing import Any
from uuid import uuid4

import structlog
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing.errors import PaymentError
from billing.models import Card, Payment
from billing.payments import automatic, cards, gateway, paying
from marketplace import access, access_till, payments
from marketplace.errors import BadOrder
from marketplace.models import Organization
from marketplace.money import plain
from marketplace.portal.doors import Visit, page

PAGE = 20
NEW_CARD = "new"

log = structlog.get_logger(__name__)


@page("GET", "HEAD", "POST")
def methods(visit: Visit) -> HttpResponse:
    """List the cards; choose the default one."""
    organization = visit.organization(verb="payment.view")
    if visit.request.method == "POST":
        organization = visit.organization(verb="payment.change")
        card = access_till.card_for(visit.actor, visit.text("card"), verb="payment.change")
        payments.choose_card(actor=visit.actor, card=card)
        messages.success(visit.request, _("%(card)s is charged from now on.") % {"card": card})
        return redirect("payment-methods")
    if visit.query("added"):
        _looked_at_cards(visit, organization)
    context = {
        "organization": organization,
        "is_there": gateway.is_there(),
        "cards": access_till.cards(organization),
        "payments": access_till.payments(organization).order_by("-pk")[:PAGE],
        "may_change": access.may(visit.actor, organization, "payment.change"),
    }
    return visit.page("payments/methods.html", context)


@page()
def add(visit: Visit) -> HttpResponse:
    """Lead to the processor's page on which a card is saved. A link and no form, which could not lead elsewhere."""
    organization = visit.organization(verb="payment.change")
    return redirect(cards.adding_url(organization=organization))


@page("GET", "HEAD", "POST")
def remove(visit: Visit, card_id: str) -> HttpResponse:
    """Ask before forgetting a card; then do it, here and at the processor."""
    card = access_till.card_for(visit.actor, card_id, verb="payment.change")
    if visit.request.method != "POST":
        return visit.page("payments/remove.html", {"card": card})
    payments.forget_card(actor=visit.actor, card=card, at=visit.at)
    _looked_at_cards(visit, card.organization)
    messages.success(visit.request, _("%(card)s was removed.") % {"card": card})
    return redirect("payment-methods")


@page("GET", "HEAD", "POST")
def top_up(visit: Visit) -> HttpResponse:
    """Pay money in by card."""
    organization = visit.organization(verb="payment.view")
    if visit.request.method != "POST":
        return _top_up_page(visit, organization, {"amount": "", "card": "", "key": str(uuid4())})
    organization = visit.organization(verb="payment.change")
    typed = {name: visit.text(name) for name in ("amount", "card", "key")}
    try:
        payments.refuse_other_currency(organization, visit.text("currency"))
        card = None
        if typed["card"] not in {"", NEW_CARD}:
            card = access_till.card_for(visit.actor, typed["card"], verb="payment.change")
        payment = payments.top_up(
            actor=visit.actor,
            organization=organization,
            amount_micros=visit.money("amount"),
            card=card,
            key=typed["key"][:64] or str(uuid4()),
            at=visit.at,
        )
    except BadOrder as error:
        return _top_up_page(visit, organization, typed, errors={error.field: str(error)}, status=422)
    payment = paying.send(payment_id=payment.pk, at=visit.at)
    needs_them = payment.state == Payment.State.NEEDS_ACTION
    return redirect(f"{payment_path(payment)}?onward=1" if needs_them else payment_path(payment))


@page("POST")
def automatically(visit: Visit) -> HttpResponse:
    """Set or end the automatic top-up."""
    organization = visit.organization(verb="payment.change")
    if visit.text("off"):
        payments.switch_off_automatic(actor=visit.actor, organization=organization, at=visit.at)
        messages.success(visit.request, _("Nothing is charged automatically any more."))
        return redirect("top-up")
    names = ("threshold", "automatic_amount", "monthly_ceiling")
    typed = {name: visit.text(name) for name in names}
    try:
        payments.set_automatic(
            actor=visit.actor,
            organization=organization,
            threshold_micros=visit.money("threshold"),
            amount_micros=visit.money("automatic_amount"),
            monthly_ceiling_micros=visit.money("monthly_ceiling"),
            at=visit.at,
        )
    except BadOrder as error:
        field = "automatic_amount" if error.field == "amount" else error.field
        order = {"amount": "", "card": "", "key": str(uuid4())}
        return _top_up_page(visit, organization, order, rule=typed, errors={field: str(error)}, status=422)
    messages.success(visit.request, _("Your card is charged when less than that is free."))
    return redirect("top-up")


@page()
def shown(visit: Visit, payment_id: str) -> HttpResponse:
    """Show a payment, and look what became of it when its customer comes back from the processor."""
    payment = access_till.payment_for(visit.actor, payment_id, verb="payment.view")
    is_onward = bool(visit.query("onward")) and payment.state == Payment.State.NEEDS_ACTION
    is_news = visit.request.headers.get("HX-Request") == "true"
    if payment.is_open and payment.sent_at and not is_onward and not is_news:
        payment = paying.look(payment_id=payment.pk, at=visit.at)
        if payment.state == Payment.State.SUCCEEDED and payment.card is None:
            _looked_at_cards(visit, payment.organization)
    context = {
        "payment": payment,
        "organization": payment.organization,
        "is_onward": is_onward,
        "may_change": access.may(visit.actor, payment.organization, "payment.change"),
    }
    return visit.live_page("payments/show.html", "live", context)


@page()
def onward(visit: Visit, payment_id: str) -> HttpResponse:
    """Lead a customer to where they finish a payment: the processor's page, or their bank's."""
    payment = access_till.payment_for(visit.actor, payment_id, verb="payment.change")
    return redirect(paying.continue_url(payment=payment, at=visit.at) or payment_path(payment))


@page("POST")
def cancel(visit: Visit, payment_id: str) -> HttpResponse:
    """End a payment that waits for its customer."""
    payment = access_till.payment_for(visit.actor, payment_id, verb="payment.change")
    payments.cancel(actor=visit.actor, payment=payment, at=visit.at)
    return redirect(payment_path(payment))


def payment_path(payment: Payment) -> str:
    """Return where a payment is shown."""
    return reverse("payment", args=[payment.public_id])


def _looked_at_cards(visit: Visit, organization: Organization) -> None:
    """Take over which cards the processor keeps; where it does not answer, what it tells us later does that."""
    try:
        cards.refresh(organization=organization, at=visit.at)
    except PaymentError as error:
        log.warning("cards were not looked at", organization=organization.public_id, why=str(error))


def _top_up_page(
    visit: Visit,
    organization: Organization,
    typed: dict[str, str],
    *,
    rule: dict[str, str] | None = None,
    errors: dict[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    known = automatic.rule_of(organization)
    saved: list[Card] = list(access_till.cards(organization))
    context: dict[str, Any] = {
        "organization": organization,
        "is_there": gateway.is_there(),
        "cards": saved,
        "typed": typed,
        "errors": errors or {},
        "automatic": known,
        "automatic_spent": automatic.spent_micros(organization=organization, at=visit.at),
        "rule": rule
        or {
            "threshold": plain(known.threshold_micros) if known else "",
            "automatic_amount": plain(known.amount_micros) if known else "",
            "monthly_ceiling": plain(known.monthly_ceiling_micros) if known else "",
        },
        "may_change": access.may(visit.actor, organization, "payment.change"),
    }
    return visit.page("payments/top_up.html", context, status=status)
