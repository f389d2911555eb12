"""Offers with their prices, and sites with their fabrics."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import prices
from billing.models import PriceList
from marketplace.console import catalogue, fleet, pricing
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import FabricForm, OfferForm, SiteForm, TermsForm
from marketplace.console.price_forms import PriceForm, StoragePriceForm
from marketplace.portal.doors import Visit


@managers_only()
def offers(visit: Visit) -> HttpResponse:
    """List everything that is or was for sale."""
    found = list(catalogue.offers())
    prices_now = catalogue.prices_now(found, at=visit.at)
    rows = [(offer, prices_now[offer.pk]) for offer in found]
    return visit.page("console/offers.html", {"rows": rows})


@managers_only("GET", "HEAD", "POST")
def new_offer(visit: Visit) -> HttpResponse:
    """Put an offer together."""
    form = OfferForm(sent(visit), initial={"min_gpus": 1, "is_listed": True})
    if carried_out(visit, form, catalogue.create_offer):
        messages.success(visit.request, _("The offer is made. It is for sale once it has a price and nodes."))
        return redirect("console-offer", form.made.public_id)
    return form_page(
        visit, form, title=_("New offer"), text="", send=_("Make the offer"), back=reverse("console-offers")
    )


@managers_only()
def offer(visit: Visit, offer_id: str) -> HttpResponse:
    """Show an offer: its terms, its nodes, and all its prices."""
    found = catalogue.offer_for(offer_id)
    context = {
        "offer": found,
        "prices_now": {price.pk for price in catalogue.prices_now([found], at=visit.at)[found.pk]},
        "prices": list(prices.history(sku=found.sku)),
        "history": fleet.history(offer_id),
    }
    return visit.page("console/offer.html", context)


@managers_only("GET", "HEAD", "POST")
def offer_terms(visit: Visit, offer_id: str) -> HttpResponse:
    """Change the terms on which an offer is sold."""
    found = catalogue.offer_for(offer_id)
    form = TermsForm(sent(visit), initial={name: getattr(found, name) for name in catalogue.TERMS})
    if carried_out(visit, form, catalogue.change_offer, offer=found):
        messages.success(visit.request, _("The terms are changed. What runs is not touched."))
        return redirect("console-offer", offer_id)
    return form_page(
        visit,
        form,
        title=_("Terms of %(offer)s") % {"offer": found},
        text=_("New terms hold for new instances; what runs is not touched."),
        send=_("Save"),
        back=reverse("console-offer", args=[offer_id]),
    )


@managers_only("GET", "HEAD", "POST")
def offer_price(visit: Visit, offer_id: str) -> HttpResponse:
    """Open a draft of a price list with another price for an offer; a second person approves it."""
    found = catalogue.offer_for(offer_id)
    form = PriceForm(sent(visit), offer=found)
    if carried_out(visit, form, pricing.propose, at=visit.at):
        return _proposed(visit, form.made)
    return form_page(
        visit,
        form,
        title=_("Price of %(offer)s") % {"offer": found},
        text=_("It opens a draft: all prices as they are in force, and this one. Nothing changes until somebody else"
               " has approved the list and it is scheduled; what runs keeps the price it started with."),
        send=_("Open the draft"),
        back=reverse("console-offer", args=[offer_id]),
    )  # fmt: skip


def _proposed(visit: Visit, made: PriceList) -> HttpResponse:
    messages.success(visit.request, _("The price stands in a draft. Simulate it; then somebody else approves it."))
    return redirect("console-price-list", made.public_id)


@managers_only()
def sites(visit: Visit) -> HttpResponse:
    """List the sites with their fabrics."""
    return visit.page("console/sites.html", {"sites": catalogue.sites()})


@managers_only("GET", "HEAD", "POST")
def new_site(visit: Visit) -> HttpResponse:
    """Write down a site."""
    form = SiteForm(sent(visit))
    if carried_out(visit, form, catalogue.create_site):
        messages.success(visit.request, _("The site is made. Give it a fabric next."))
        return redirect("console-sites")
    text = _("Policy and placement read these facts, so write them down as they are.")
    return form_page(
        visit, form, title=_("New site"), text=text, send=_("Make the site"), back=reverse("console-sites")
    )


@managers_only("GET", "HEAD", "POST")
def storage(visit: Visit, site_id: str) -> HttpResponse:
    """Show a site's volumes and what their storage costs, and open a draft with another price."""
    site = catalogue.site_for(site_id)
    form = StoragePriceForm(sent(visit))
    if carried_out(visit, form, pricing.propose, sku=site.storage_sku, at=visit.at):
        return _proposed(visit, form.made)
    return form_page(
        visit,
        form,
        "console/storage.html",
        site=site,
        volumes=catalogue.volumes_in(site),
        strays=catalogue.strays_in(site),
        prices=list(prices.history(sku=site.storage_sku)),
    )


@managers_only("GET", "HEAD", "POST")
def new_fabric(visit: Visit, site_id: str) -> HttpResponse:
    """Write down a fabric of a site."""
    site = catalogue.site_for(site_id)
    form = FabricForm(sent(visit))
    if carried_out(visit, form, catalogue.create_fabric, site=site):
        messages.success(visit.request, _("The fabric is made."))
        return redirect("console-sites")
    return form_page(
        visit,
        form,
        title=_("New fabric in %(site)s") % {"site": site},
        text=_("A fabric is the outermost level at which a gang of nodes still talks at full speed."),
        send=_("Make the fabric"),
        back=reverse("console-sites"),
    )
