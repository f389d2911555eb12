"""The marketplace: what is for sale, with filters that live in the address."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlencode

from django.http import HttpResponse, QueryDict
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from marketplace import access, offers
from marketplace.offers import Listing
from marketplace.portal import commands, words
from marketplace.portal.doors import Visit, page

SORTS: dict[str, Callable[[Listing], Any]] = {
    "price": lambda listing: (listing.price.micros_per_unit_hour, listing.offer.slug),
    "-price": lambda listing: (-listing.price.micros_per_unit_hour, listing.offer.slug),
    "free": lambda listing: (-listing.available_gpus, listing.offer.slug),
}
NUMBER_DIGITS_MAX = 6


@dataclass(frozen=True)
class Filters:
    """What the reader looks for; an empty value excludes nothing."""

    gpu_model: str = ""
    country: str = ""
    min_gpus: int = 0
    available: bool = False
    sort: str = "price"

    @classmethod
    def read(cls, query: QueryDict) -> Self:
        """Return the filters of an address; what makes no sense there is as if it were not."""
        number = query.get("min_gpus", "")
        sort = query.get("sort", "")
        return cls(
            gpu_model=query.get("gpu_model", "").strip(),
            country=query.get("country", "").strip().upper(),
            min_gpus=int(number) if number.isdecimal() and len(number) <= NUMBER_DIGITS_MAX else 0,
            available=query.get("available") == "true",
            sort=sort if sort in SORTS else "price",
        )

    @property
    def address(self) -> str:
        """Return the address of the market with these filters."""
        values = {
            "gpu_model": self.gpu_model,
            "country": self.country,
            "min_gpus": self.min_gpus or "",
            "available": "true" if self.available else "",
            "sort": "" if self.sort == "price" else self.sort,
        }
        query = urlencode({name: value for name, value in values.items() if value})
        return reverse("market") + (f"?{query}" if query else "")

    def lets_through(self, listing: Listing) -> bool:
        offer = listing.offer
        return (
            (not self.gpu_model or offer.gpu_model.lower() == self.gpu_model.lower())
            and (not self.country or offer.site.country == self.country)
            and offer.max_gpus >= self.min_gpus
            and (not self.available or listing.available_gpus >= max(1, self.min_gpus))
        )


@dataclass(frozen=True)
class Relaxed:
    """A filter that can be taken away, and how many offers that would bring back."""

    name: str
    found: int
    address: str


@page()
def market(visit: Visit) -> HttpResponse:
    """Show the offers that the filters let through; if none, say which filter excludes them."""
    organization = visit.organization(verb="project.view")
    filters = Filters.read(visit.request.GET)
    everything = offers.listings(offers.listed(), currency=organization.currency, at=visit.at)
    found = sorted(filter(filters.lets_through, everything), key=SORTS[filters.sort])
    context = {
        "filters": filters,
        "listings": found,
        "total": len(everything),
        "gpu_models": sorted({listing.offer.gpu_model for listing in everything}),
        "countries": sorted({(listing.offer.site.country, words.country(listing.offer.site.country))
                             for listing in everything}, key=lambda pair: pair[1]),
        "relaxed": [] if found else _relaxed(filters, everything),
        "organization": organization,
        "may_rent": access.may(visit.actor, organization, "instance.change"),
        "cli": commands.offers(filters.gpu_model, filters.country, filters.min_gpus, available=filters.available),
    }  # fmt: skip
    return visit.live_page("market.html", "rows", context)


def _relaxed(filters: Filters, everything: list[Listing]) -> list[Relaxed]:
    """Return each filter in force with what would be found without it, the most telling first."""
    options = [
        (_("GPU model: %(model)s") % {"model": filters.gpu_model}, {"gpu_model": ""}, filters.gpu_model),
        (_("Country: %(country)s") % {"country": words.country(filters.country)}, {"country": ""}, filters.country),
        (
            ngettext("At least %(count)s GPU", "At least %(count)s GPUs", filters.min_gpus)
            % {"count": filters.min_gpus},
            {"min_gpus": 0},
            filters.min_gpus,
        ),
        (_("Only what is free now"), {"available": False}, filters.available),
    ]
    relaxed = []
    for name, change, is_set in options:
        if is_set:
            wider = replace(filters, **change)  # type: ignore[arg-type]
            relaxed.append(Relaxed(name, sum(map(wider.lets_through, everything)), wider.address))
    return sorted(relaxed, key=lambda option: -option.found)
