"""The shop window: what is for sale, for how much, and how much of it is free now."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, Max, OuterRef, Q, QuerySet, Sum

from billing import prices
from billing.models import PriceVersion
from billing.prepared import Prepared
from marketplace.errors import NotFound
from marketplace.models import Offer, SpotTerms
from provisioning.models import Node, Site


@dataclass(frozen=True)
class Listing:
    """An offer with its price and what is free, both as of `as_of`; `largest_replica` is the most on one node.

    `by_auction` says whether it is sold by auction too, in the same currency.
    """

    offer: Offer
    price: PriceVersion
    available_gpus: int
    largest_replica: int
    by_auction: bool
    as_of: datetime


def sites() -> QuerySet[Site]:
    """Return where nodes stand; sites are public to everybody signed in."""
    return Site.objects.all()


def site_for(site_id: str) -> Site:
    """Return a site by its id or slug, or raise NotFound."""
    site = sites().filter(Q(public_id=site_id) | Q(slug=site_id)).first()
    if site is None:
        raise NotFound
    return site


def listed(*, gpu_model: str = "", country: str = "") -> QuerySet[Offer]:
    """Return the offers on the market, narrowed by GPU model (any case) and the site's country."""
    found = Offer.objects.filter(is_listed=True).select_related("site", "supplier")
    if gpu_model:
        found = found.filter(gpu_model__iexact=gpu_model)
    if country:
        found = found.filter(site__country__iexact=country)
    return found.order_by("pk")


OFFER = Prepared(lambda offer_id: listed().filter(Q(public_id=offer_id) | Q(slug=offer_id))[:1], str)


def offer_for(offer_id: str) -> Offer:
    """Return a listed offer by its id or slug, or raise NotFound. Offers are public to everybody signed in."""
    found = OFFER(offer_id)
    if not found:
        raise NotFound
    return found[0]


def listings(offers: Iterable[Offer], *, currency: str, at: datetime) -> list[Listing]:
    """Return the offers that are sold in this currency, with price and free GPUs. Two queries."""
    offers = list(offers)
    known = prices.current(skus=[offer.sku for offer in offers], currency=currency, at=at)
    # What is free on a node that a tenant has alone is there for nobody else.
    placeable = Q(
        nodes__state=Node.State.AVAILABLE, nodes__reachability=Node.Reachability.ONLINE, nodes__is_held=False,
        nodes__exclusive_to=None,
    )  # fmt: skip
    auctioned = SpotTerms.objects.filter(offer=OuterRef("pk"), is_enabled=True, currency=currency)
    free = {
        row["pk"]: row
        for row in Offer.objects.filter(pk__in=[offer.pk for offer in offers])
        .values("pk")
        .annotate(
            total=Sum("nodes__free_gpus", filter=placeable),
            most=Max("nodes__free_gpus", filter=placeable),
            by_auction=Exists(auctioned),
        )
    }
    return [
        Listing(
            offer=offer,
            price=known[offer.sku],
            available_gpus=free[offer.pk]["total"] or 0,
            largest_replica=free[offer.pk]["most"] or 0,
            by_auction=free[offer.pk]["by_auction"],
            as_of=at,
        )
        for offer in offers
        if offer.sku in known
    ]
