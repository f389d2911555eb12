"""Sites, fabrics, offers and prices: what capacity managers put up for sale. Every change leaves an audit entry."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.utils.translation import gettext as _

from billing import prices
from billing.models import PriceVersion
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Offer, Organization
from provisioning.models import Fabric, Heartbeat, Node, Site, Volume

VOLUMES_MOST = 500
TERMS = ("name", "interconnect", "runtime", "min_gpus", "max_gpus", "is_listed")


def sites() -> QuerySet[Site]:
    """Return all sites with their fabrics, and how many nodes and GPUs each has."""
    counted = Site.objects.annotate(nodes=Count("fabrics__nodes"), gpus=Sum("fabrics__nodes__gpu_count", default=0))
    return counted.prefetch_related("fabrics").order_by("name")


def site_for(site_id: str) -> Site:
    """Return a site, or raise NotFound."""
    site = Site.objects.filter(public_id=site_id).first()
    if site is None:
        raise NotFound
    return site


def fabrics() -> QuerySet[Fabric]:
    """Return all fabrics, by site."""
    return Fabric.objects.select_related("site").order_by("site__name", "name")


def offers() -> QuerySet[Offer]:
    """Return all offers, also those not on the market, with the nodes and GPUs that serve them."""
    placeable = Q(nodes__state=Node.State.AVAILABLE, nodes__reachability=Node.Reachability.ONLINE, nodes__is_held=False)
    return (
        Offer.objects.select_related("site", "supplier")
        .annotate(
            node_count=Count("nodes", filter=~Q(nodes__state=Node.State.RETIRED)),
            gpus=Sum("nodes__gpu_count", default=0, filter=~Q(nodes__state=Node.State.RETIRED)),
            free=Sum("nodes__free_gpus", default=0, filter=placeable),
        )
        .order_by("site__name", "name")
    )


def suppliers() -> QuerySet[Organization]:
    """Return the organizations that sell capacity."""
    return Organization.objects.filter(is_supplier=True).order_by("name")


def offer_for(offer_id: str) -> Offer:
    """Return any offer, or raise NotFound."""
    offer = offers().filter(public_id=offer_id).first()
    if offer is None:
        raise NotFound
    return offer


def prices_now(chosen: Sequence[Offer], *, at: datetime) -> dict[int, list[PriceVersion]]:
    """Return each offer's price in force, one per currency. One query per currency that we write."""
    found: dict[int, list[PriceVersion]] = {offer.pk: [] for offer in chosen}
    skus = [offer.sku for offer in chosen]
    for currency in money.SYMBOLS:
        known = prices.current(skus=skus, currency=currency, at=at)
        for offer in chosen:
            if offer.sku in known:
                found[offer.pk].append(known[offer.sku])
    return found


def volumes_in(site: Site) -> list[Volume]:
    """Return the volumes that a site keeps, those with trouble first."""
    alive = Volume.objects.filter(site=site).exclude(state=Volume.State.DELETED)
    return list(alive.select_related("project__organization", "node").order_by("-health", "-pk")[:VOLUMES_MOST])


def strays_in(site: Site) -> list[Heartbeat]:
    """Return the nodes of a site that keep folders which are no volumes of ours."""
    return list(Heartbeat.objects.filter(node__fabric__site=site).exclude(stray_volumes=[]).select_related("node"))


@transaction.atomic
def create_offer(*, actor: Actor, **facts: Any) -> Offer:
    """Put an offer together; it is sold once it has a price and nodes. Raises BadOrder naming the field."""
    _check_terms(facts)
    try:
        with transaction.atomic():
            offer = Offer.objects.create(**facts)
    except IntegrityError as error:
        raise BadOrder("slug", _("There is an offer with this short name already.")) from error
    after = {name: str(value) for name, value in facts.items()}
    _record(actor, "offer.create", offer.public_id, after=after)
    return offer


@transaction.atomic
def change_offer(*, actor: Actor, offer: Offer, **terms: Any) -> None:
    """Change the terms on which an offer is sold; what runs is not touched. Raises BadOrder naming the field."""
    assert set(terms) <= set(TERMS)
    _check_terms(terms)
    _check_runtime(offer, terms)
    before = {name: getattr(offer, name) for name in terms}
    changed = {name: value for name, value in terms.items() if value != before[name]}
    if not changed:
        return
    Offer.objects.filter(pk=offer.pk).update(**changed)
    for name, value in changed.items():
        setattr(offer, name, value)
    _record(actor, "offer.change", offer.public_id, before={name: before[name] for name in changed}, after=changed)


def _check_terms(terms: Mapping[str, Any]) -> None:
    smallest, biggest = terms["min_gpus"], terms["max_gpus"]
    if biggest < smallest:
        raise BadOrder("max_gpus", _("The most cannot be less than the fewest, %(fewest)s.") % {"fewest": smallest})


def _check_runtime(offer: Offer, terms: Mapping[str, Any]) -> None:
    """What runs there and what may join was decided by the runtime, so it stays as long as there are nodes."""
    if terms.get("runtime", offer.runtime) != offer.runtime and offer.nodes.exists():
        raise BadOrder("runtime", _("The offer has nodes, and they run it as it is; make a new offer instead."))


@transaction.atomic
def create_site(*, actor: Actor, **facts: Any) -> Site:
    """Write down a data centre or an edge location. Raises BadOrder naming the field."""
    try:
        with transaction.atomic():
            site = Site.objects.create(**facts)
    except IntegrityError as error:
        raise BadOrder("slug", _("There is a site with this short name already.")) from error
    after = {name: value if name == "certifications" else str(value) for name, value in facts.items()}
    _record(actor, "site.create", site.public_id, after=after)
    return site


@transaction.atomic
def create_fabric(*, actor: Actor, site: Site, name: str, kind: str) -> Fabric:
    """Write down a fast-network domain of a site. Raises BadOrder naming the field."""
    try:
        with transaction.atomic():
            fabric = Fabric.objects.create(site=site, name=name, kind=kind)
    except IntegrityError as error:
        raise BadOrder("name", _("%(site)s has a fabric of this name already.") % {"site": site}) from error
    _record(actor, "fabric.create", fabric.public_id, after={"site": site.slug, "name": name, "kind": kind})
    return fabric


def _record(
    actor: Actor,
    verb: str,
    subject_id: str,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    audit.record(actor=actor, organization=None, verb=verb, subject_id=subject_id, before=before, after=after)
