"""Policies hold whoever asks for a place: every door goes through the one claim, and the claim reads them itself."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace import policies as doors
from marketplace import rentals, restarts, spot, spot_terms, waiting
from marketplace.access import Actor, person
from marketplace.errors import BadOrder, MarketError
from marketplace.models import Auction, AuditEntry, Offer, Organization, Project
from provisioning import decisions, engine, interruptions, nodes, placement, policies, quotas
from provisioning.calendar import HOUR, hour_of
from provisioning.errors import IllegalMove, NoCapacity, PolicyExcludes, ProvisioningError, StaleVersion
from provisioning.models import (
    Assignment,
    GpuHold,
    Instance,
    Node,
    Phase,
    PlacementDecision,
    Policy,
    Site,
    Workflow,
)
from provisioning.placing import policy
from provisioning.steps import PLAN
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, Rent, Run, make_organization, make_person, order
from tests.nodes import wiped

pytestmark = pytest.mark.django_db

Rule = Callable[..., Policy]


@pytest.fixture
def rule(actor: Actor) -> Rule:
    """Make a document the policy of an organization or a project, as Alice."""

    def made(scope: Organization | Project, version: int | None = None, **document: Any) -> Policy:
        return doors.replace(actor=actor, scope=scope, document=document, version=version, at=timezone.now())

    return made


def test_a_launch_that_a_policy_excludes_is_refused_with_the_rule_and_leaves_its_decision(
    rent: Rent, rule: Rule, project: Project
) -> None:
    rule(project.organization, countries={"deny": ["NO"]})
    with pytest.raises(PolicyExcludes, match="in a country that a policy excludes") as refused:
        rent()
    assert not Instance.objects.exists()
    assert not GpuHold.objects.exists()
    kept = PlacementDecision.objects.get(public_id=decisions.keep(refused.value))
    assert (kept.outcome, kept.instance, kept.project, kept.rejected) == ("refused", None, project, {"countries": 2})
    assert len(kept.policy_digest) == 64


@pytest.mark.parametrize(
    "document",
    [
        {"countries": {"allow": ["SE"]}},
        {"jurisdictions": {"deny": ["NO"]}},
        {"certifications": ["ISO 27001"]},
        {"near": {"latitude": 35.68, "longitude": 139.69, "within_ms": 20}},
        {"power_sources": {"allow": ["wind"]}},
        {"suppliers": {"allow": ["org_aaaaaaaaaaaaaaaaaaaa"]}},
    ],
)
def test_each_rule_holds_for_a_project_and_its_absence_lets_in(
    rent: Rent, rule: Rule, project: Project, document: dict[str, Any]
) -> None:
    rule(project, **document)
    with pytest.raises(PolicyExcludes):
        rent()
    rule(project)
    assert rent().assignments.count() == 1


def test_a_project_cannot_loosen_what_its_organization_denies(rent: Rent, rule: Rule, project: Project) -> None:
    rule(project.organization, countries={"deny": ["NO"]})
    rule(project, countries={"allow": ["NO"]})
    with pytest.raises(PolicyExcludes):
        rent()


def test_another_organization_s_policy_is_not_ours(rent: Rent, fleet: Fleet, rule: Rule) -> None:
    other = make_organization("Other", make_person("other@example.com"))
    policies.replace(
        organization_id=other.pk, document={"countries": {"deny": ["NO"]}}, version=None, at=timezone.now()
    )
    assert rent().assignments.count() == 1


def test_a_start_after_the_policy_waits_and_is_never_placed(
    running: Instance, rule: Rule, project: Project, actor: Actor, run_until_idle: Run
) -> None:
    rentals.stop(actor=actor, instance=running, at=timezone.now())
    run_until_idle()
    rule(project, countries={"allow": []})
    stopped = Instance.objects.select_related("project__organization", "offer").get(pk=running.pk)
    rentals.start(actor=actor, instance=stopped, at=timezone.now())
    for _ in range(3):
        Workflow.objects.filter(pk=stopped.pk).update(due_at=timezone.now())
        engine.run_one(stopped.pk, PLAN)
    stopped.refresh_from_db()
    assert (stopped.phase, stopped.assignments.filter(fence=stopped.run).count()) == (Phase.QUEUED, 0)
    kept = PlacementDecision.objects.get(instance=stopped, run=stopped.run)
    assert (kept.outcome, kept.times, kept.rejected) == ("refused", 3, {"countries": 2})


def test_what_is_placed_keeps_its_decision_and_a_waiting_one_both(
    rent: Rent, fleet: Fleet, project: Project, run_until_idle: Run
) -> None:
    quotas.set_limit(project_id=project.pk, limit=100)
    instance = rent(replicas=3, gpus=4)
    kept = PlacementDecision.objects.get(instance=instance)
    assert (kept.outcome, kept.level, kept.nodes, kept.candidates) == ("placed", "rack", 2, 2)
    assert kept.request == {"replicas": 3, "gpus": 4}
    with pytest.raises(NoCapacity, match="1 replicas would fit now") as refused:
        rent(replicas=2, gpus=4)
    late = PlacementDecision.objects.get(public_id=decisions.keep(refused.value))
    assert (late.relaxation, late.rejected, late.most["rack"]) == ({"replicas": 1}, {"full": 1}, 1)


def test_old_decisions_are_forgotten(rent: Rent) -> None:
    rent()
    assert decisions.purge(at=timezone.now()) == 0
    assert decisions.purge(at=timezone.now() + decisions.KEPT * 1.1) == 1


def test_a_replaced_policy_has_a_new_version_and_an_audit_entry(rule: Rule, project: Project) -> None:
    assert rule(project, countries={"deny": ["us"]}, version=0).version == 1
    assert rule(project, no_shared_host=True, version=1).document == {"no_shared_host": True}
    with pytest.raises(StaleVersion):
        rule(project, version=1)
    entry = AuditEntry.objects.filter(verb="policy.replace").latest("pk")
    assert (entry.subject_id, entry.before, entry.after) == (
        project.public_id, {"countries": {"deny": ["US"]}}, {"no_shared_host": True},
    )  # fmt: skip


def test_a_policy_that_makes_no_sense_is_refused_with_its_field(rule: Rule, project: Project) -> None:
    with pytest.raises(BadOrder, match="two letters") as refused:
        rule(project, countries={"allow": ["Norway"]})
    assert refused.value.field == "countries/allow"
    assert not Policy.objects.exists()


# Hosts that are not shared, in both directions.


@pytest.fixture
def other(fleet: Fleet) -> Callable[..., Instance]:
    """Rents as somebody else."""
    user = make_person("other@example.com")
    theirs = Project.objects.select_related("organization").get(organization=make_organization("Other", user))
    quotas.set_limit(project_id=theirs.pk, limit=100)

    def rented(**overrides: Any) -> Instance:
        with transaction.atomic():
            return rentals.rent(
                actor=person(user), project=theirs, order=order(fleet.h200, **overrides), at=timezone.now()
            )

    return rented


def node_of(instance: Instance) -> Node:
    return Node.objects.get(assignments__instance=instance)


def test_who_shares_no_host_goes_where_nobody_is_and_lets_nobody_in(
    rent: Rent, other: Callable[..., Instance], rule: Rule, project: Project
) -> None:
    theirs = other()
    rule(project, no_shared_host=True)
    mine = rent()
    assert node_of(mine) != node_of(theirs)
    assert node_of(mine).exclusive_to == project.organization
    assert node_of(rent()) == node_of(mine)
    assert node_of(other(gpus=7)) == node_of(theirs)
    with pytest.raises(NoCapacity):
        other()
    with pytest.raises(NoCapacity) as refused:
        rent(gpus=7)
    assert refused.value.decision is not None


def test_a_host_is_for_everybody_again_once_its_tenant_has_left(
    rent: Rent, other: Callable[..., Instance], rule: Rule, project: Project
) -> None:
    rule(project, no_shared_host=True)
    mine = rent(gpus=8)
    node = node_of(mine)
    wiped(mine)
    placement.release(instance=mine, at=timezone.now())
    node.refresh_from_db()
    assert (node.exclusive_to, node.free_gpus) == (None, 8)


def test_the_policy_closes_the_hosts_that_its_tenant_is_on_already(
    rent: Rent, other: Callable[..., Instance], rule: Rule, project: Project
) -> None:
    mine, theirs = rent(), other()
    assert node_of(mine) == node_of(theirs)
    rule(project, no_shared_host=True)
    assert node_of(mine).exclusive_to == project.organization
    assert node_of(other()) != node_of(mine)
    # Nor does the tenant itself come back to where somebody else still is.
    with pytest.raises(NoCapacity):
        rent()


# No path past them.

COUNTRIES = ("NO", "SE", "GB")
documents = st.fixed_dictionaries(
    {},
    optional={
        "countries": st.fixed_dictionaries(
            {}, optional={"allow": st.lists(st.sampled_from(COUNTRIES)), "deny": st.lists(st.sampled_from(COUNTRIES))}
        ),
        "power_sources": st.just({"allow": ["hydro"]}),
        "no_shared_host": st.booleans(),
    },
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("policy"), st.integers(0, 1), st.booleans(), st.just({"no_shared_host": True}) | documents),
        st.tuples(
            st.sampled_from(["rent", "bid", "wait", "reserve", "rent_inside"]),
            st.integers(0, 1),
            st.integers(0, 1),
            st.integers(1, 4),
        ),
        st.tuples(st.sampled_from(["auction", "resume", "queue"]), st.integers(0, 1)),
        st.tuples(st.sampled_from(["stop", "start", "fail", "restart", "cordon", "uncordon"]), st.integers(0, 7)),
    ),
    min_size=4,
    max_size=14,
)


class Market:
    """Two tenants on the two offers of the fleet, in two countries, and every way in which something gets a place."""

    def __init__(self, fleet: Fleet, run: Run) -> None:
        self.fleet, self.run = fleet, run
        abroad = Site.objects.create(
            slug="kiruna", name="Kiruna", city="Kiruna", country="SE", jurisdiction="SE", latitude=67.86,
            longitude=20.23, grid_zone="SE1", power_source="wind", pue=1.1,
        )  # fmt: skip
        Offer.objects.filter(pk=fleet.l40s.pk).update(site=abroad)
        fleet.l40s.refresh_from_db()
        self.offers = (fleet.h200, fleet.l40s)
        users = [make_person(f"{name}@tenant.example") for name in ("one", "two")]
        self.actors = [person(user) for user in users]
        self.projects = [
            Project.objects.select_related("organization").get(organization=make_organization(user.email, user))
            for user in users
        ]
        for project in self.projects:
            quotas.set_limit(project_id=project.pk, limit=100)
        self.noon = hour_of(timezone.now()) + HOUR
        for offer in self.offers:
            sell_blocks(offer)
            spot_terms.set_terms(offer=offer, by="test", at=timezone.now(), reserve_micros=500_000, interval_s=1)

    def do(self, move: tuple[Any, ...]) -> None:
        known = set(Assignment.objects.values_list("pk", flat=True))
        try:
            with transaction.atomic():
                getattr(self, move[0])(*move[1:])
        except (ProvisioningError, MarketError):
            pass
        # A start that waits looks again at once.
        Workflow.objects.filter(step="place").update(due_at=timezone.now())
        self.run()
        for assignment in Assignment.objects.exclude(pk__in=known).select_related("instance__project", "node"):
            self.assert_allowed(assignment)

    def assert_allowed(self, assignment: Assignment) -> None:
        project, offer = assignment.instance.project, assignment.instance.offer
        found = self.documents_of(project)
        assert policy.broken_by(found, policies.facts_of(offer.pk)) == []
        live = Assignment.objects.filter(node=assignment.node, holds__released_at=None).exclude(pk=assignment.pk)
        for neighbour in live.select_related("instance__project").distinct():
            if neighbour.instance.project.organization_id == project.organization_id:
                continue
            for own in (*found, *self.documents_of(neighbour.instance.project)):
                assert not own.get("no_shared_host"), "they share a host"

    def documents_of(self, project: Project) -> list[dict[str, Any]]:
        """Return what holds for a project: its own policy, and that of its organization."""
        rows = [policies.of(project_id=project.pk), policies.of(organization_id=project.organization_id)]
        return [row.document for row in rows if row]

    def policy(self, tenant: int, of_all: bool, document: dict[str, Any]) -> None:
        project = self.projects[tenant]
        scope = project.organization if of_all else project
        doors.replace(actor=self.actors[tenant], scope=scope, document=document, version=None, at=timezone.now())

    def rent(self, tenant: int, offer: int, gpus: int) -> None:
        wanted = order(self.offers[offer], gpus=gpus, on_failure="restart")
        rentals.rent(actor=self.actors[tenant], project=self.projects[tenant], order=wanted, at=timezone.now())

    def bid(self, tenant: int, offer: int, gpus: int) -> None:
        spot.bid(
            actor=self.actors[tenant], project=self.projects[tenant], order=order(self.offers[offer], gpus=gpus),
            max_price_micros=890_000, at=timezone.now(),
        )  # fmt: skip

    def wait(self, tenant: int, offer: int, gpus: int) -> None:
        at = timezone.now()
        waiting.wait(
            actor=self.actors[tenant], project=self.projects[tenant], order=order(self.offers[offer], gpus=gpus),
            max_micros_per_gpu_hour=10_000_000, until=at + HOUR, at=at,
        )  # fmt: skip
        self.queue(0)

    def queue(self, number: int) -> None:
        waiting.start_due(at=timezone.now(), limit=10)

    def reserve(self, tenant: int, offer: int, gpus: int) -> None:
        """Buy the next hours and let them begin."""
        buyer = Buyer(self.actors[tenant], self.projects[tenant], self.offers[offer], self.noon)
        buyer.buy(gpus, 2, 4)
        for hours in (1, 2):
            buyer.go_to(hours)

    def rent_inside(self, tenant: int, offer: int, gpus: int) -> None:
        wanted = order(self.offers[offer], gpus=gpus, attach="strict")
        rentals.rent(
            actor=self.actors[tenant], project=self.projects[tenant], order=wanted, at=self.noon + 2.1 * HOUR
        )  # fmt: skip

    def auction(self, offer: int) -> None:
        Auction.objects.all().delete()  # Each is the first of its tick.
        spot.clear(offer_id=self.offers[offer].pk, at=timezone.now())

    def resume(self, number: int) -> None:
        interruptions.announce_due(at=timezone.now(), limit=10)
        Instance.objects.filter(phase=Phase.INTERRUPTED).update(restart_at=timezone.now())
        spot.resume(at=timezone.now(), limit=10)

    def _one(self, number: int) -> Instance:
        rows = list(Instance.objects.select_related("project__organization", "offer", "price_version").order_by("pk"))
        if not rows:
            raise IllegalMove("nothing is there yet")
        return rows[number % len(rows)]

    def _actor(self, instance: Instance) -> Actor:
        return self.actors[[project.pk for project in self.projects].index(instance.project_id)]

    def stop(self, number: int) -> None:
        instance = self._one(number)
        rentals.stop(actor=self._actor(instance), instance=instance, at=timezone.now())

    def start(self, number: int) -> None:
        instance = self._one(number)
        rentals.start(actor=self._actor(instance), instance=instance, at=timezone.now())

    def fail(self, number: int) -> None:
        instance = self._one(number)
        if instance.phase == Phase.RUNNING:
            node = instance.assignments.filter(fence=instance.run).values_list("node_id", flat=True)[0]
            engine.wake(instance.pk, step="tear_down")
            instance.move_to(Phase.FAILED, at=timezone.now(), reason="node_failed", retryable=True, failed_on_id=node)

    def restart(self, number: int) -> None:
        restarts.start_again(at=timezone.now(), limit=10)

    def cordon(self, number: int) -> None:
        nodes.cordon(node=self._node(number), reason="test", at=timezone.now())

    def uncordon(self, number: int) -> None:
        nodes.uncordon(node=self._node(number))

    def _node(self, number: int) -> Node:
        found = list(Node.objects.order_by("pk"))
        return found[number % len(found)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moves=moves)
def test_no_path_places_outside_of_the_policies(
    moves: list[tuple[Any, ...]], fleet: Fleet, run_until_idle: Run
) -> None:
    with transaction.atomic():
        market = Market(fleet, run_until_idle)
        for move in [("rent", 0, 0, 1), *moves, ("rent", 0, 0, 1), ("rent", 1, 0, 1)]:
            market.do(move)
        transaction.set_rollback(True)
    fleet.l40s.refresh_from_db()
