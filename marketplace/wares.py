"""All that is sold at listed prices."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from billing.models import Unit
from marketplace.models import Offer
from provisioning.models import Site


@dataclass(frozen=True, slots=True)
class Ware:
    """Something that can have a price in a list."""

    sku: str
    name: str
    unit: str


def all_of_them() -> list[Ware]:
    """Return all that is sold at listed prices: offers on demand and in blocks, and the storage of sites."""
    found = []
    for offer in Offer.objects.select_related("site").order_by("site__name", "name"):
        found.append(Ware(offer.sku, _("%(offer)s, on demand") % {"offer": offer.name}, Unit.GPU))
        found.append(Ware(offer.reserved_sku, _("%(offer)s, in blocks") % {"offer": offer.name}, Unit.GPU))
    sites = Site.objects.order_by("name")
    return found + [Ware(site.storage_sku, _("Storage in %(site)s") % {"site": site.name}, Unit.GIB) for site in sites]
