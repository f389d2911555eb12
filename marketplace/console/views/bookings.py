"""The booking board, and the terms of an offer's blocks."""

from datetime import timedelta

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace import money
from marketplace.console import bookings, catalogue
from marketplace.console.block_forms import BlockTermsForm, initial_of
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.portal.doors import Visit, whole_number
from provisioning.calendar import hour_of

DAYS_MOST = 366


@managers_only()
def board(visit: Visit) -> HttpResponse:
    """Show all offers over 24 hours, what is reserved, who goes short, what is lent, what is paid ahead."""
    day = max(0, min(DAYS_MOST, whole_number(visit.query("day") or "0")))
    starts_at = hour_of(visit.at) + timedelta(days=day)
    offers = bookings.sold_offers()
    lent = bookings.lent(offers, at=visit.at)
    rows = bookings.board(offers, starts_at=starts_at)
    context = {
        "day": day,
        "hours": [cell.starts_at for cell in rows[0][1]] if rows else [],
        "rows": rows,
        "reservations": list(bookings.under_way()),
        "shortfalls": list(bookings.shortfalls()),
        "lent": [(offer, lent[offer.pk]) for offer in offers if offer.pk in lent],
        "paid_ahead": bookings.paid_ahead(),
    }
    return visit.live_page("console/bookings.html", "live", context)


@managers_only("GET", "HEAD", "POST")
def terms(visit: Visit, offer_id: str) -> HttpResponse:
    """Set on which terms blocks of an offer are sold."""
    offer = catalogue.offer_for(offer_id)
    form = BlockTermsForm(sent(visit), initial=initial_of(bookings.terms_of(offer)))
    if carried_out(visit, form, bookings.set_terms, offer=offer):
        messages.success(visit.request, _("The terms are set. What is sold already keeps its own."))
        return redirect("console-bookings")
    now = bookings.price_now(offer, at=visit.at)
    known = ", ".join(money.shown(price.micros_per_unit_hour, price.currency, exact=True) for price in now)
    text = _("Blocks are GPUs ahead of time, paid when they are bought.")
    return form_page(
        visit,
        form,
        title=_("Blocks of %(offer)s") % {"offer": offer},
        text=f"{text} {_('Price now: %(price)s.') % {'price': known}}" if known else text,
        send=_("Save"),
        back=reverse("console-offer", args=[offer_id]),
    )
