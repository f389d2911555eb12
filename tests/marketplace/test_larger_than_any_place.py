"""What would fit into no empty fleet is refused at every door, by its rule, and nothing is held for it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from billing.models import Hold
from marketplace import rentals, spot, spot_terms, waiting
from marketplace.access import Actor
from marketplace.models import Bid, Project, WaitingOrder
from provisioning import decisions, shards
from provisioning.errors import NeverFits, NoCapacity
from provisioning.models import Fabric, GpuHold, Instance, Node, PlacementDecision, Quota, Site
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, Rent, order
from tests.marketplace.api.tables import every_row

pytestmark = pytest.mark.django_db

USD = 1_000_000
HOUR = timedelta(hours=1)


@pytest.fixture
def halves(fleet: Fleet, site: Site) -> Fleet:
    """Two fabrics of one H200 node each, sold on demand and by auction."""
    Quota.objects.update(limit=1000)
    other = Fabric.objects.create(site=site, name="fabric-2", kind="infiniband")
    Node.objects.filter(name="h200-2").update(fabric=other, rack="r2")
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=USD // 2, interval_s=60
    )
    return fleet


Door = Callable[..., Any]


@pytest.fixture(params=["launch", "bid", "bid, only tried", "wait"])
def door(request: pytest.FixtureRequest, actor: Actor, project: Project, halves: Fleet) -> Door:
    """Order as Alice at one of the doors, as a request does."""

    def ordered(**what: Any) -> Any:
        at, wanted = timezone.now(), order(halves.h200, **what)
        who: dict[str, Any] = {"actor": actor, "project": project, "order": wanted, "at": at}
        with transaction.atomic():
            if request.param == "launch":
                return rentals.rent(**who)
            if request.param == "wait":
                return waiting.wait(**who, max_micros_per_gpu_hour=3 * USD, until=at + HOUR)
            act = spot.bid if request.param == "bid" else spot.rehearse
            return act(**who, max_price_micros=2 * USD)

    return ordered


ONE = {"strategy": "pack", "required": True}
RULES: list[tuple[dict[str, Any], str]] = [
    ({"gpus": 8, "replicas": 2, "wish": ONE | {"level": "fabric"}},
     "2 × 8 GPUs are larger than one fabric of H200 in Narvik: even if all of its nodes were empty, there "
     "would be room for 1 × 8"),
    ({"gpus": 4, "replicas": 3, "wish": ONE | {"level": "rack"}}, "3 × 4 GPUs are larger than one rack .* 2 × 4"),
    ({"gpus": 8, "replicas": 2, "wish": ONE | {"level": "node"}}, "2 × 8 GPUs are larger than one node .* 1 × 8"),
    ({"gpus": 5, "replicas": 3}, "3 × 5 GPUs are larger than the whole site .* 2 × 5"),
    ({"gpus": 4, "replicas": 3, "wish": {"strategy": "spread", "level": "node", "required": True, "max_skew": 0}},
     "could not be spread with a skew of at most 0"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "rule"), RULES)
def test_it_is_refused_with_the_rule_at_every_door_and_nothing_is_held(
    door: Door, what: dict[str, Any], rule: str
) -> None:
    before = every_row()
    with pytest.raises(NeverFits, match=rule):
        door(**what)
    assert every_row() == before
    assert not Instance.objects.exists()
    assert not Hold.objects.exists()
    assert not Quota.objects.filter(held__gt=0).exists()
    assert (Bid.objects.count(), WaitingOrder.objects.count(), GpuHold.objects.count()) == (0, 0, 0)


def test_a_full_fleet_refuses_it_for_good_and_what_would_fit_only_for_now(rent: Rent, halves: Fleet) -> None:
    for _ in range(2):
        rent(gpus=8)
    with pytest.raises(NoCapacity) as now:
        rent(gpus=8)
    assert not isinstance(now.value, NeverFits)
    with pytest.raises(NeverFits, match="larger than one fabric") as never:
        rent(gpus=4, replicas=3, wish=ONE | {"level": "fabric"})
    kept = PlacementDecision.objects.get(public_id=decisions.keep(never.value))
    assert (kept.outcome, kept.rejected) == ("refused", {"full": 2})


def test_inside_a_reservation_it_is_refused_too_and_does_not_wait_for_lent_gpus(
    actor: Actor, project: Project, halves: Fleet
) -> None:
    sell_blocks(halves.h200)
    at = timezone.now()
    buyer = Buyer(actor, project, halves.h200, at.replace(minute=0, second=0, microsecond=0) + HOUR)
    reservation = buyer.buy(16, 2, 4)
    for hours in (1, 2):
        buyer.go_to(hours)
    reservation.refresh_from_db()
    wanted = order(halves.h200, gpus=8, replicas=2, wish=ONE | {"level": "fabric"}, reservation=reservation)
    with pytest.raises(NeverFits, match="larger than one fabric"), transaction.atomic():
        rentals.rent(actor=actor, project=project, order=wanted, at=buyer.at(2.1))
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    "away", [{"is_held": True}, {"reachability": "unreachable"}, {"state": "cordoned"}, {"state": "draining"}]
)
def test_what_may_come_back_is_a_place_and_what_is_retired_is_none(
    rent: Rent, halves: Fleet, away: dict[str, Any]
) -> None:
    gang: dict[str, Any] = {"gpus": 8, "replicas": 2}
    node = Node.objects.filter(name="h200-1")
    node.update(**away)
    with pytest.raises(NoCapacity) as now:
        rent(**gang)
    assert not isinstance(now.value, NeverFits)
    node.update(is_held=False, reachability="online", state="retired")
    with pytest.raises(NeverFits, match=r"the whole site .* 1 × 8"):
        rent(**gang)
    node.update(state="available")
    assert rent(**gang).replicas == 2


def test_what_is_known_of_an_empty_fleet_follows_the_fleet(rent: Rent, halves: Fleet) -> None:
    rent(gpus=3)
    with shards.current(halves.h200.pk) as live:
        live.refresh()
        assert sorted(row.mask.bit_count() for row in live.empty().rows()) == [8, 8]
        assert sorted(row.mask.bit_count() for row in live.shard.rows()) == [5, 8]
    Node.objects.filter(name="h200-2").update(state="retired")
    with shards.current(halves.h200.pk) as live:
        live.refresh()
        assert sorted(row.status for row in live.empty().rows()) == ["", "state"]
