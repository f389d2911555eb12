"""Auctions: the terms of each offer, what the auctions gave, and one auction with its book held again."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace import spot_book, spot_market
from marketplace.console import auctions, catalogue, fleet
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import SpotTermsForm
from marketplace.portal import price_chart
from marketplace.portal.doors import Visit

ROWS = 50
POINTS = 96


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List every offer with its terms, and the newest auctions of all."""
    context = {"rows": auctions.overview(), "auctions": auctions.newest(limit=ROWS)}
    return visit.page("console/auctions.html", context)


@managers_only()
def of_offer(visit: Visit, offer_id: str) -> HttpResponse:
    """Show an offer's auctions: price, demand, who waits and who was told to go."""
    offer = catalogue.offer_for(offer_id)
    since = visit.at - auctions.LOOK_BACK
    history = spot_market.history(offer, since=since, until=visit.at, points=POINTS)
    terms = auctions.terms_of(offer)
    context = {
        "offer": offer,
        "terms": terms,
        "chart": price_chart.draw(history, currency=terms.currency, since=since, until=visit.at) if terms else None,
        "is_day": True,
        "auctions": list(spot_market.auctions(offer)[:ROWS]),
        "open": auctions.open_interruptions(offer),
        "counts": auctions.counts(offer),
        "history": fleet.history(offer_id),
    }
    return visit.page("console/offer_auctions.html", context)


@managers_only()
def shown(visit: Visit, offer_id: str, auction_id: str) -> HttpResponse:
    """Show an auction with its sealed book; `?check` holds it again and compares everything."""
    offer = catalogue.offer_for(offer_id)
    held = spot_market.auction_for(offer, auction_id)
    rules, bids = auctions.book(held)
    context = {
        "offer": offer,
        "held": held,
        "published": spot_market.published(held),
        "rules": rules,
        "bids": bids[: auctions.BIDS_SHOWN],
        "hidden": max(0, len(bids) - auctions.BIDS_SHOWN),
        "check": spot_book.check(held) if "check" in visit.request.GET and rules is not None else None,
    }
    return visit.page("console/auction.html", context)


@managers_only("GET", "HEAD", "POST")
def terms(visit: Visit, offer_id: str) -> HttpResponse:
    """Change how an offer is sold by auction, or begin to sell it so."""
    offer = catalogue.offer_for(offer_id)
    form = SpotTermsForm(sent(visit), initial=auctions.initial(offer, at=visit.at))
    if carried_out(visit, form, auctions.set_terms, offer=offer, at=visit.at):
        messages.success(visit.request, _("The terms are set; the next auction follows them."))
        return redirect("console-offer-auctions", offer_id)
    return form_page(
        visit,
        form,
        title=_("Auction terms of %(offer)s") % {"offer": offer},
        text=_("The next auction follows them. Whoever runs keeps the notice that was promised when it was told."),
        send=_("Save"),
        back=reverse("console-offer-auctions", args=[offer_id]),
    )
