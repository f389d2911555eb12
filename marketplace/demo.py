"""The demo world: the same believable marketplace each time, for newcomers and for tests.

Three sites that could exist, four nodes with simulated GPUs, one supplier (the
operator), one customer with promotional credit, and one person per role.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from allauth.account.models import EmailAddress
from django.conf import settings
from django.db import transaction

from billing import credits, prices
from billing.invoicing import sellers
from billing.models import InvoiceSeries, Unit
from marketplace import demo_products, demo_till, spot_terms, tenants, tokens
from marketplace.access import person
from marketplace.models import ApiToken, BlockTerms, Membership, Offer, Organization, Project, Role, SpotTerms, User
from marketplace.money import MICROS
from marketplace.permissions import SCOPES
from provisioning import nodes, quotas
from provisioning.models import Fabric, Node, Site

CUSTOMER, OPERATOR, SUPPLIER = "Example Research", "gpumarket operator", "Nordlys Compute"
MANAGERS = ("manager@example.com", "approver@example.com")
CREDIT_MICROS = 500 * MICROS
QUOTA_GPUS = 32
# About 7 cents for a GiB and month.
STORAGE_MICROS = 96
# Blocks of this offer are sold ahead.
BLOCKS_OF, BLOCK_MICROS = "h200-teesside", 1_990_000
# Half of what it costs on demand.
AUCTIONED, RESERVE_MICROS = "l40s-osaka", 400_000
AUCTION_INTERVAL_S, AUCTION_NOTICE_S = 60, 30
TOKEN_NAME = "command line of the demo"  # noqa: S105  a name, not a secret

SITES = (
    {
        "slug": "narvik",
        "name": "Narvik",
        "kind": Site.Kind.CORE,
        "city": "Narvik",
        "country": "NO",
        "jurisdiction": "NO",
        "latitude": Decimal("68.43840"),
        "longitude": Decimal("17.42720"),
        "grid_zone": "NO4",
        "power_source": "hydro",
        "pue": Decimal("1.10"),
        "certifications": ["ISO 27001", "ISO 50001"],
    },
    {
        "slug": "teesside",
        "name": "Teesside",
        "kind": Site.Kind.CORE,
        "city": "Middlesbrough",
        "country": "GB",
        "jurisdiction": "GB",
        "latitude": Decimal("54.57420"),
        "longitude": Decimal("-1.23490"),
        "grid_zone": "GB",
        "power_source": "wind",
        "pue": Decimal("1.20"),
        "certifications": ["ISO 27001"],
    },
    {
        "slug": "osaka-edge",
        "name": "Osaka edge",
        "kind": Site.Kind.EDGE,
        "city": "Osaka",
        "country": "JP",
        "jurisdiction": "JP",
        "latitude": Decimal("34.69370"),
        "longitude": Decimal("135.50230"),
        "grid_zone": "JP-KN",
        "power_source": "grid",
        "pue": Decimal("1.35"),
        "certifications": [],
    },
)


@dataclass(frozen=True)
class Ware:
    """One offer of the demo and the nodes that serve it."""

    slug: str
    site: str
    gpu_model: str
    memory_mib: int
    gpus_per_node: int
    interconnect: str
    fabric_kind: str
    price_micros: int
    max_gpus: int
    nodes: tuple[str, ...]


WARES = (
    Ware("gb300-narvik", "narvik", "GB300", 288 * 1024, 4, "NVLink 5, 800G InfiniBand", "nvlink", 6_200_000, 4,
         ("nar-gb300-01",)),
    Ware("h200-teesside", "teesside", "H200", 141 * 1024, 8, "NVLink 4, 400G InfiniBand", "infiniband", 2_490_000, 16,
         ("tee-h200-01", "tee-h200-02")),
    Ware("l40s-osaka", "osaka-edge", "L40S", 48 * 1024, 8, "PCIe 4, 100G Ethernet", "ethernet", 890_000, 8,
         ("osa-l40s-01",)),
)  # fmt: skip

PEOPLE = (
    ("owner@example.com", CUSTOMER, Role.OWNER, "owns Example Research"),
    ("developer@example.com", CUSTOMER, Role.DEVELOPER, "rents GPUs for Example Research"),
    ("viewer@example.com", CUSTOMER, Role.VIEWER, "may look but not rent"),
    ("manager@example.com", OPERATOR, Role.OWNER, "capacity manager: opens the console"),
    ("approver@example.com", OPERATOR, Role.ADMIN, "second capacity manager: approves what the first proposes"),
    ("supplier@example.com", SUPPLIER, Role.OWNER, "sells GPUs: earnings, statements, payouts"),
)


def password_of(email: str) -> str:
    """Return a demo person's password: different in each installation, the same in it each time."""
    return hmac.new(settings.SECRET_KEY.encode(), f"demo {email}".encode(), "sha256").hexdigest()[:12]


@transaction.atomic
def seed(*, at: datetime, new_token: bool = False) -> dict[str, Any]:
    """Make what is missing of the demo world and return what a newcomer needs to know. Safe to repeat."""
    people = [_person(email, role, note, organization) for email, organization, role, note in PEOPLE]
    operator = _organization(OPERATOR, owner="manager@example.com", is_supplier=True)
    customer = _organization(CUSTOMER, owner="owner@example.com", is_supplier=False)
    supplier = _organization(SUPPLIER, owner="supplier@example.com", is_supplier=True)
    for email, organization, role, _ in PEOPLE:
        user = User.objects.get(email=email)
        of = {OPERATOR: operator, CUSTOMER: customer, SUPPLIER: supplier}[organization]
        Membership.objects.get_or_create(organization=of, user=user, defaults={"role": role})
    User.objects.filter(email__in=MANAGERS).update(is_staff=True)
    User.objects.filter(email=MANAGERS[0]).update(is_superuser=True)
    project = Project.objects.get(organization=customer, name="default")
    if project.quotas.get(**quotas.FIRST).limit == quotas.DEFAULT_LIMIT:
        quotas.set_limit(project_id=project.pk, limit=QUOTA_GPUS)
    credits.grant(
        organization=customer, amount_micros=CREDIT_MICROS, key="demo", reason="Welcome to the demo", by=OPERATOR, at=at
    )
    _name_seller(operator, customer)
    sites = {facts["slug"]: Site.objects.get_or_create(slug=facts["slug"], defaults=facts)[0] for facts in SITES}
    for site in sites.values():
        _sell_storage(site, at)
    made = [_node(ware, name, operator, sites[ware.site], at) for ware in WARES for name in ware.nodes]
    _sell_blocks(Offer.objects.get(slug=BLOCKS_OF), at)
    _sell_by_auction(Offer.objects.get(slug=AUCTIONED), at)
    _fill_the_till(customer, supplier, sites["narvik"], at)
    merchant = person(User.objects.get(email="supplier@example.com"))
    manager = person(User.objects.get(email=MANAGERS[0]))
    demo_products.offer_all(actor=merchant, manager=manager, seller=supplier, at=at)
    return {"people": people, "token": _token(customer, at, new_token), "nodes": made}


def _fill_the_till(customer: Organization, supplier: Organization, site: Site, at: datetime) -> None:
    """Let the pages of suppliers and commitments have something on them."""
    first, second = (User.objects.get(email=email) for email in MANAGERS)
    studio = _organization(demo_till.STUDIO, owner="supplier@example.com", is_supplier=False)
    demo_till.seed(supplier=supplier, studio=studio, site=site, managers=(first, second), at=at)
    offer = Offer.objects.get(slug=BLOCKS_OF)
    demo_till.offer_commitment(customer=customer, offer=offer, managers=(first, second), at=at)


def _sell_by_auction(offer: Offer, at: datetime) -> None:
    """Let newcomers bid and see an auction each minute."""
    if not SpotTerms.objects.filter(offer=offer).exists():
        spot_terms.set_terms(
            offer=offer,
            by=OPERATOR,
            at=at,
            reserve_micros=RESERVE_MICROS,
            interval_s=AUCTION_INTERVAL_S,
            min_notice_s=AUCTION_NOTICE_S,
        )


def _name_seller(operator: Organization, customer: Organization) -> None:
    """Let the operator send invoices, to a customer whose address is known. What somebody changed stays."""
    if InvoiceSeries.objects.exists():
        return
    papers = (
        (operator, {"legal_name": "gpumarket operator AS", "address": "Havnegata 1\n8514 Narvik"}),
        (customer, {"legal_name": "Example Research AS", "address": "Storgata 1\n0155 Oslo"}),
    )
    for organization, paper in papers:
        if sellers.details_of(organization) is None:
            sellers.save_details(organization=organization, country="NO", **paper)
    sellers.name_seller(organization=operator)


def _sell_storage(site: Site, at: datetime) -> None:
    if not prices.history(sku=site.storage_sku).exists():
        prices.publish(
            sku=site.storage_sku, currency="USD", micros_per_unit_hour=STORAGE_MICROS, effective_from=at, by=OPERATOR,
            at=at, unit=Unit.GIB,
        )  # fmt: skip


def _sell_blocks(offer: Offer, at: datetime) -> None:
    """Sell blocks of one offer ahead, a fifth below on demand, and less the longer they are."""
    _, is_new = BlockTerms.objects.get_or_create(
        offer=offer,
        defaults={
            "max_gpus": 16,
            "max_hours": 24 * 90,
            "horizon_hours": 24 * 180,
            "discounts": [[720, 2500], [168, 1500], [24, 500]],
            "cancellation": [[168, 0], [24, 1000], [1, 5000]],
        },
    )
    if is_new:
        prices.publish(
            sku=offer.reserved_sku, currency="USD", micros_per_unit_hour=BLOCK_MICROS, effective_from=at, by=OPERATOR,
            at=at,
        )  # fmt: skip


def _person(email: str, role: Role, note: str, organization: str) -> dict[str, str]:
    user = User.objects.filter(email=email).first()
    if user is None:
        user = User.objects.create_user(email, password_of(email))
        EmailAddress.objects.create(user=user, email=email, verified=True, primary=True)
    return {"email": email, "password": password_of(email), "role": role, "note": note, "organization": organization}


def _organization(name: str, *, owner: str, is_supplier: bool) -> Organization:
    found = Organization.objects.filter(name=name).first()
    if found is not None:
        return found
    return tenants.found_organization(owner=User.objects.get(email=owner), name=name, is_supplier=is_supplier)


def _node(ware: Ware, name: str, operator: Organization, site: Site, at: datetime) -> dict[str, Any]:
    offer, is_new = Offer.objects.get_or_create(
        slug=ware.slug,
        defaults={
            "name": f"{ware.gpu_model} in {site.name}",
            "supplier": operator,
            "site": site,
            "gpu_model": ware.gpu_model,
            "gpu_memory_gib": ware.memory_mib // 1024,
            "gpus_per_node": ware.gpus_per_node,
            "interconnect": ware.interconnect,
            "max_gpus": ware.max_gpus,
        },
    )
    if is_new:
        prices.publish(
            sku=offer.sku, currency="USD", micros_per_unit_hour=ware.price_micros, effective_from=at, by=OPERATOR, at=at
        )
    fabric, _ = Fabric.objects.get_or_create(site=site, name="fabric-1", defaults={"kind": ware.fabric_kind})
    node, _ = Node.objects.get_or_create(
        name=name,
        defaults={
            "fabric": fabric,
            "offer": offer,
            "rack": "r1",
            "gpu_model": ware.gpu_model,
            "gpu_count": ware.gpus_per_node,
            "gpu_memory_mib": ware.memory_mib,
        },
    )
    secret = None if node.joined_at else nodes.issue_join_token(node=node, at=at)
    gpus = f"simulated:{ware.gpu_model}:{ware.gpus_per_node}:{ware.memory_mib}"
    return {"name": name, "join_token": secret, "gpus": gpus}


def _token(customer: Organization, at: datetime, new_token: bool) -> str | None:
    """Return the secret of a new token for the command line, or None while the one given earlier is good."""
    developer = User.objects.get(email="developer@example.com")
    good = ApiToken.objects.filter(
        membership__user=developer, name=TOKEN_NAME, revoked_at=None, expires_at__gt=at + timedelta(days=1)
    )
    if good.exists() and not new_token:
        return None
    _, secret = tokens.create_token(
        actor=person(developer), organization=customer, name=TOKEN_NAME, scopes=SCOPES, at=at
    )
    return secret
