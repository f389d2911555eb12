"""The cast and the stage: who plays in every test, and the fleet that they rent from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AbstractUser
from django.core.cache import cache
from django.db import transaction
from django.utils import timezone
from whitenoise.middleware import WhiteNoiseMiddleware

from billing import credits, prices
from billing.models import PriceVersion, Unit
from marketplace import rentals, tenants, tokens, volumes
from marketplace.access import Actor, person
from marketplace.models import Membership, Offer, Organization, Project, Role, User
from marketplace.money import MICROS
from marketplace.permissions import SCOPES
from provisioning import engine, nodes, policies, upkeep
from provisioning.models import Fabric, Instance, Site, Volume
from provisioning.steps import PLAN
from provisioning.volumes import shown
from tests.database import django_db_modify_db_settings, django_db_setup
from tests.nodes import PlayedNode, announce, join, sync_all
from tests.nvml.library import fake_nvml, nvml_library, own_nvml
from tests.order import pytest_collection_finish, pytest_collection_modifyitems
from tests.slurm.stage import slurm, slurm_cluster
from tests.standing import _django_db_helper, _standing_world, pytest_runtest_setup, standing

# Fixtures of the database, the pretended NVML and a Slurm cluster, for every test; how tests are shared out.
__all__ = [
    "_django_db_helper",
    "_standing_world",
    "django_db_modify_db_settings",
    "django_db_setup",
    "fake_nvml",
    "nvml_library",
    "own_nvml",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_runtest_setup",
    "slurm",
    "slurm_cluster",
]

TURNS_MAX = 200
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _silence_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few nodes of a test fall silent together, which would be taken for our own fault; the breaker's tests do."""
    monkeypatch.setattr(nodes, "is_our_fault", lambda node_ids, at: False)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _plain(settings: Any, store: Path) -> None:
    """Fast passwords, a store of artifacts of our own, and no answers remembered from another test."""
    settings.ARTIFACTS = store
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    cache.clear()


@pytest.fixture(scope="session", autouse=True)
def _static_files_are_found_once() -> Iterator[None]:
    """Each client of a test has middleware of its own, which would look for all those files before it answers."""
    find, found = WhiteNoiseMiddleware.add_files_from_finders, {}

    def find_once(middleware: WhiteNoiseMiddleware) -> None:
        if not found:
            find(middleware)
            found.update(middleware.files)
        middleware.files |= found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", find_once)
        yield


def make_person(email: str, **extra: Any) -> User:
    return User.objects.create_user(email, PASSWORD, **extra)


def make_member(organization: Organization, email: str, role: Role) -> User:
    user = make_person(email)
    Membership.objects.create(organization=organization, user=user, role=role)
    return user


def make_organization(name: str, owner: User, *, credit_micros: int = 1000 * MICROS) -> Organization:
    organization = tenants.found_organization(owner=owner, name=name)
    if credit_micros:
        credits.grant(
            organization=organization, amount_micros=credit_micros, key=f"test {name}", reason="test", by="test",
            at=timezone.now(),
        )  # fmt: skip
    return organization


def make_token(user: AbstractUser, organization: Organization, *, scopes: tuple[str, ...] = SCOPES) -> str:
    _, secret = tokens.create_token(
        actor=person(user), organization=organization, name="test", scopes=scopes, at=timezone.now()
    )
    return secret


@standing
def alice(db: None) -> User:
    """Owns Acme."""
    return make_person("alice@acme.example")


@standing
def acme(alice: User) -> Organization:
    """A customer with a thousand dollars of credit."""
    return make_organization("Acme", alice)


def project_of(organization: Organization) -> Project:
    return Project.objects.select_related("organization").get(organization=organization)


@pytest.fixture
def project(acme: Organization) -> Project:
    return project_of(acme)


@pytest.fixture
def bob(acme: Organization) -> User:
    """Works at Acme, may look but not rent."""
    return make_member(acme, "bob@acme.example", Role.VIEWER)


@pytest.fixture
def carol(db: None) -> User:
    """Manages capacity for the operator."""
    return make_person("carol@operator.example", is_staff=True)


@standing
def charlie(db: None) -> User:
    """A stranger with an organization of his own."""
    user = make_person("charlie@other.example")
    make_organization("Other", user)
    return user


@pytest.fixture
def actor(alice: User, acme: Organization) -> Actor:
    return person(alice, "req_test")


@dataclass
class Fleet:
    """Two H200 nodes in one rack and one L40S node, played by the test."""

    h200: Offer
    l40s: Offer
    nodes: dict[str, PlayedNode] = field(default_factory=dict)

    def sync(self) -> None:
        sync_all(self.nodes.values())


def make_offer(operator: Organization, site: Site, *, slug: str, gpu_model: str, price_micros: int) -> Offer:
    offer = Offer.objects.create(
        slug=slug,
        name=f"{gpu_model} in {site.name}",
        supplier=operator,
        site=site,
        gpu_model=gpu_model,
        gpu_memory_gib=141,
        gpus_per_node=8,
        interconnect="NVLink 4",
        max_gpus=16,
    )
    now = timezone.now()
    prices.publish(
        sku=offer.sku, currency="USD", micros_per_unit_hour=price_micros, effective_from=now, by="test", at=now
    )
    return offer


@standing
def operator(db: None) -> Organization:
    return make_organization("Operator", make_person("operator@operator.example"), credit_micros=0)


@standing
def site(db: None) -> Site:
    return Site.objects.create(
        slug="narvik",
        name="Narvik",
        city="Narvik",
        country="NO",
        jurisdiction="NO",
        latitude=Decimal("68.43840"),
        longitude=Decimal("17.42720"),
        grid_zone="NO4",
        power_source="hydro",
        pue=Decimal("1.10"),
    )


@standing
def fleet(operator: Organization, site: Site) -> Fleet:
    fabric = Fabric.objects.create(site=site, name="fabric-1", kind="infiniband")
    h200 = make_offer(operator, site, slug="h200-narvik", gpu_model="H200", price_micros=2_490_000)
    l40s = make_offer(operator, site, slug="l40s-narvik", gpu_model="L40S", price_micros=890_000)
    nodes = {name: join(announce(h200, fabric, name=name)) for name in ("h200-1", "h200-2")}
    nodes["l40s-1"] = join(announce(l40s, fabric, name="l40s-1"))
    return Fleet(h200=h200, l40s=l40s, nodes=nodes)


def order(offer: Offer, **overrides: Any) -> rentals.Order:
    return rentals.Order(**{"offer": offer, "command": ["sleep", "1000"]} | overrides)


def shared_with_nobody(project: Project) -> None:
    """Let a project run on hosts that it has alone."""
    policies.replace(project_id=project.pk, document={"no_shared_host": True}, version=None, at=timezone.now())


def sell_storage(site: Site, *, price_micros: int = 100) -> PriceVersion:
    """Put a site's storage on sale, per GiB-hour."""
    now = timezone.now()
    return prices.publish(
        sku=site.storage_sku, currency="USD", micros_per_unit_hour=price_micros, effective_from=now, by="test", at=now,
        unit=Unit.GIB,
    )  # fmt: skip


@dataclass
class Storage:
    """Makes volumes of Acme as Alice, and lets the nodes and the sweep do their part."""

    actor: Actor
    project: Project
    fleet: Fleet
    site: Site

    def make(self, name: str = "data", *, is_ready: bool = True, **overrides: Any) -> Volume:
        """Make a volume on an H200 node; what differs from 100 GiB is named."""
        ordinary = {"site": self.site, "name": name, "size_gib": 100, "offer": self.fleet.h200}
        wanted = volumes.Order(**ordinary | overrides)
        with transaction.atomic():
            volume = volumes.create(actor=self.actor, project=self.project, order=wanted, at=timezone.now())
        return self.settle(volume) if is_ready else volume

    def settle(self, volume: Volume) -> Volume:
        """Let nodes report and the sweep follow until nothing moves, and return the volume as it is then."""
        for _ in range(3):
            self.fleet.sync()
            upkeep.settle_due(at=timezone.now(), limit=100)
        return shown(Volume.objects.all()).get(pk=volume.pk)

    def node_of(self, volume: Volume) -> PlayedNode:
        return next(node for node in self.fleet.nodes.values() if node.node.pk == volume.node_id)


@pytest.fixture
def storage(actor: Actor, project: Project, fleet: Fleet, site: Site) -> Storage:
    sell_storage(site)
    return Storage(actor, project, fleet, site)


Rent = Callable[..., Instance]


def rent_with(actor: Actor, project: Project, fleet: Fleet, **overrides: Any) -> Instance:
    offer = overrides.pop("offer", fleet.h200)
    with transaction.atomic():
        return rentals.rent(actor=actor, project=project, order=order(offer, **overrides), at=timezone.now())


@pytest.fixture
def rent(actor: Actor, project: Project, fleet: Fleet) -> Rent:
    """Rent as Alice; what differs from one H200 is named."""
    return partial(rent_with, actor, project, fleet)


Run = Callable[[], None]


def run_fleet(fleet: Fleet) -> None:
    """Run every workflow that is due and let every node report, until nothing moves any more."""
    for _ in range(TURNS_MAX):
        moved = [engine.run_one(workflow_id, PLAN) for workflow_id in engine.due(limit=1000)]
        fleet.sync()
        if not moved and not engine.due(limit=1):
            return
    raise AssertionError(f"still moving after {TURNS_MAX} turns")


@pytest.fixture
def run_until_idle(fleet: Fleet) -> Run:
    return partial(run_fleet, fleet)


@standing
def running(alice: User, acme: Organization, fleet: Fleet) -> Instance:
    """An instance of one H200 that runs."""
    instance = rent_with(person(alice, "req_test"), project_of(acme), fleet)
    run_fleet(fleet)
    instance.refresh_from_db()
    assert instance.phase == "running"
    return instance
