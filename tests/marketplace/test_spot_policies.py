"""Policies and auctions: what a policy keeps out does not bid, wins nothing and says why; what runs is not moved."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from billing.models import Hold
from marketplace import access, rentals, spot, spot_market, spot_terms
from marketplace import policies as doors
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Organization, Project
from provisioning import decisions, interruptions, policies
from provisioning.errors import PolicyExcludes
from provisioning.models import Instance, Phase, PlacementDecision, Quota
from tests.conftest import Fleet, Run, order

pytestmark = pytest.mark.django_db

USD = 1_000_000


@pytest.fixture
def start() -> datetime:
    return timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)


@pytest.fixture
def sold(fleet: Fleet) -> Fleet:
    """H200s by auction, each minute, for half a dollar or more."""
    Quota.objects.update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=USD // 2, interval_s=60,
        min_notice_s=30,
    )  # fmt: skip
    return fleet


Rule = Callable[..., None]


@pytest.fixture
def rule(actor: Actor, project: Project) -> Rule:
    """Replace the project's policy."""

    def made(**document: Any) -> None:
        doors.replace(actor=actor, scope=project, document=document, version=None, at=timezone.now())

    return made


Place = Callable[..., Bid]


@pytest.fixture
def place(actor: Actor, project: Project, sold: Fleet) -> Place:
    """Bid a dollar as Alice."""

    def placed(**overrides: Any) -> Bid:
        with transaction.atomic():
            return spot.bid(
                actor=actor, project=project, order=order(sold.h200, **overrides), max_price_micros=USD,
                at=timezone.now(),
            )  # fmt: skip

    return placed


def held_at(sold: Fleet, at: datetime) -> Auction:
    with time_machine.travel(at, tick=False):
        return spot.clear(offer_id=sold.h200.pk, at=at)


def standing(actor: Actor, bid: Bid) -> spot_market.Standing:
    return spot_market.standings([access.bids(actor).get(pk=bid.pk)])[0]


def test_a_bid_that_a_policy_excludes_is_refused_with_the_rule_and_holds_nothing(place: Place, rule: Rule) -> None:
    rule(countries={"deny": ["NO"]})
    with pytest.raises(PolicyExcludes, match="in a country that a policy excludes") as refused:
        place()
    assert not Instance.objects.exists()
    assert not Hold.objects.exists()
    assert not Quota.objects.filter(held__gt=0).exists()
    kept = PlacementDecision.objects.get(public_id=decisions.keep(refused.value))
    assert (kept.outcome, kept.rejected) == ("refused", {"countries": 2})


def test_a_bid_that_is_only_tried_is_refused_the_same_and_leaves_no_decision(
    sold: Fleet, actor: Actor, project: Project, rule: Rule
) -> None:
    rule(suppliers={"allow": []})
    with pytest.raises(PolicyExcludes) as refused:
        spot.rehearse(
            actor=actor, project=project, order=order(sold.h200), max_price_micros=USD, at=timezone.now()
        )  # fmt: skip
    assert decisions.keep(refused.value) == ""


def test_a_bid_that_a_later_policy_excludes_wins_nothing_says_why_and_bids_again_without_it(
    sold: Fleet, place: Place, rule: Rule, start: datetime, actor: Actor
) -> None:
    placed = place(gpus=2)
    assert (standing(actor, placed).state, standing(actor, placed).why) == ("waiting", "")
    rule(countries={"allow": ["SE"]})
    found = standing(actor, placed)
    assert found.state == "excluded"
    assert "the offer is in a country that a policy excludes" in found.why
    assert spot_market.published(held_at(sold, start))["bids"] == 0
    rule()
    assert spot_market.published(held_at(sold, start + timedelta(minutes=1)))["winners"] == 1


def test_a_bid_of_a_project_that_is_suspended_drives_nobody_out_and_bids_again_after_it(
    sold: Fleet, place: Place, project: Project, start: datetime, actor: Actor
) -> None:
    placed = place(gpus=2)
    for suspended in (Project.objects.filter(pk=project.pk), Organization.objects.filter(pk=project.organization_id)):
        suspended.update(suspended_at=start)
        assert "while its project is suspended" in standing(actor, placed).why
        assert spot_market.published(held_at(sold, start))["bids"] == 0
        suspended.update(suspended_at=None)
        start += timedelta(minutes=1)
    assert standing(actor, placed).why == ""
    assert spot_market.published(held_at(sold, start))["winners"] == 1


def test_what_won_and_waits_for_its_gpus_is_let_in_no_more_once_a_policy_excludes_it(
    sold: Fleet, place: Place, rule: Rule, start: datetime
) -> None:
    placed = place(gpus=2)
    held_at(sold, start)
    assert Instance.objects.get(pk=placed.instance_id).admitted_at is not None
    rule(countries={"deny": ["NO"]})
    held_at(sold, start + timedelta(minutes=1))
    assert Instance.objects.get(pk=placed.instance_id).admitted_at is None


def test_what_runs_already_stays_in_the_book_and_goes_on(
    sold: Fleet, place: Place, rule: Rule, start: datetime, run_until_idle: Run, actor: Actor
) -> None:
    placed = place(gpus=2)
    held_at(sold, start)
    with time_machine.travel(start, tick=False):
        run_until_idle()
    assert Instance.objects.get(pk=placed.instance_id).phase == Phase.RUNNING
    rule(countries={"deny": ["NO"]})
    shown = spot_market.published(held_at(sold, start + timedelta(minutes=1)))
    assert (shown["bids"], shown["winners"]) == (1, 1)
    assert interruptions.open_of(Instance.objects.get(pk=placed.instance_id)) is None
    assert standing(actor, placed).state == "running"


def test_what_was_stopped_does_not_bid_again_where_a_policy_excludes_it(
    place: Place, rule: Rule, run_until_idle: Run, actor: Actor
) -> None:
    placed = place()
    with transaction.atomic():
        rentals.stop(actor=actor, instance=Instance.objects.get(pk=placed.instance_id), at=timezone.now())
    run_until_idle()
    rule(countries={"deny": ["NO"]})
    stopped = Instance.objects.select_related("project__organization", "offer", "price_version").get(
        pk=placed.instance_id
    )
    with pytest.raises(PolicyExcludes):
        rentals.start(actor=actor, instance=stopped, at=timezone.now())
    assert not Hold.objects.filter(state="pending").exists()


def test_the_rules_of_many_projects_and_offers_take_two_queries(
    sold: Fleet, project: Project, rule: Rule, django_assert_num_queries: Any
) -> None:
    pairs = [(project.pk, sold.h200.pk), (project.pk, sold.l40s.pk), (0, sold.h200.pk)]
    with django_assert_num_queries(1):
        assert policies.exclusions(pairs) == {}
    rule(countries={"deny": ["NO"]}, certifications=["ISO 27001"])
    with django_assert_num_queries(2):
        found = policies.exclusions(pairs)
    assert found == {pair: ["countries", "certifications"] for pair in pairs[:2]}
