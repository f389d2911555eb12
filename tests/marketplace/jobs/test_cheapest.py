"""`market: cheapest` in real auctions: a task that is outbid counts nothing, goes on, and falls back to on demand."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from billing import books
from marketplace import rentals, spot, spot_terms
from marketplace.access import Actor
from marketplace.models import Auction, Bid, Project, Task
from provisioning import interruptions
from provisioning.models import Instance, Phase, Quota
from tests.conftest import Fleet, Run, order
from tests.marketplace.jobs.conftest import Works, latest, states, tries

pytestmark = pytest.mark.django_db

CENT, USD = 10_000, 1_000_000
NOTICE_S, INTERVAL_S = 30, 60
KEPT = "c" * 64


class Market:
    """H200s by auction, 16 GPUs, each minute, on a clock of the test's own."""

    def __init__(self, clock: Any, works: Works, rival: Actor, project: Project, settle: Run) -> None:
        self.clock, self.works, self.rival, self.project, self.settle = clock, works, rival, project, settle

    def outbids(self, micros: int) -> Bid:
        """Let somebody else bid so much for all GPUs."""
        wanted = order(self.works.fleet.h200, gpus=8, replicas=2)
        with transaction.atomic():
            return spot.bid(
                actor=self.rival, project=self.project, order=wanted, max_price_micros=micros, at=timezone.now()
            )

    def tick(self, *, seconds: int = INTERVAL_S) -> Auction:
        """Hold the next auction, tell who is to go, and let everything follow."""
        self.clock.shift(timedelta(seconds=seconds))
        held = spot.clear(offer_id=self.works.fleet.h200.pk, at=timezone.now())
        interruptions.announce_due(at=timezone.now(), limit=100)
        self.passes(0)
        return held

    def passes(self, seconds: float) -> None:
        self.clock.shift(timedelta(seconds=seconds))
        self.settle()
        interruptions.settle_due(at=timezone.now(), limit=100)
        spot.resume(at=timezone.now(), limit=9)
        self.works.go()


@pytest.fixture
def market(works: Works, actor: Actor, project: Project, run_until_idle: Run, fleet: Fleet) -> Iterator[Market]:
    Quota.objects.update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S, hysteresis_bp=1000, rise_bp=10_000, is_enabled=True,
    )  # fmt: skip
    started = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(started, tick=False) as clock:
        yield Market(clock, works, actor, project, run_until_idle)


def test_a_task_that_is_outbid_goes_on_from_its_checkpoint_and_counts_nothing_and_goes_on_demand_at_last(
    market: Market, works: Works
) -> None:
    job = works.one(market="cheapest", deadline="+6h", time_limit="1h", checkpoint="state", retries=0)
    works.go()
    (first,) = works.running(job)
    assert (first.instance.market, works.phase(first)) == ("spot", Phase.QUEUED)
    market.tick()
    assert works.phase(first) == Phase.RUNNING
    Instance.objects.filter(pk=first.instance_id).update(checkpoint_sha256=KEPT)

    # Whoever bids more has its GPUs in the next auction, after the notice.
    rival = market.outbids(2 * USD)
    market.tick()
    assert works.phase(first) == Phase.NOTIFIED
    market.passes(NOTICE_S)
    assert tries(job)[0] == (1, "cancelled", "interrupted")
    market.passes(10)
    assert Instance.objects.get(pk=rival.instance_id).phase == Phase.RUNNING

    # It counted nothing: no retry was allowed, and yet it bids again, with what the first attempt had kept.
    task = Task.objects.get(job=job)
    assert (task.failures, task.faults, latest(job).state) == (0, 0, "active")
    (second,) = works.running(job)
    assert (second.instance.market, second.instance.checkpoint_sha256, works.phase(second)) == (
        "spot", KEPT, Phase.QUEUED
    )  # fmt: skip
    market.tick()
    assert works.phase(second) == Phase.QUEUED, "the rival still pays more"

    # Once only just enough time is left, it stops to bid, and runs on demand as soon as there are GPUs.
    deadline = latest(job).deadline
    assert deadline is not None
    market.passes((deadline - timedelta(hours=1, minutes=4) - timezone.now()).total_seconds())
    assert tries(job)[1] == (2, "cancelled", "interrupted")
    assert not works.running(job)
    rentals.terminate(actor=market.rival, instance=Instance.objects.get(pk=rival.instance_id), at=timezone.now())
    market.passes(60)
    (third,) = works.running(job)
    assert (third.instance.market, third.instance.checkpoint_sha256) == ("on_demand", KEPT)
    assert works.phase(third) == Phase.RUNNING
    works.exits(third)
    market.passes(60)
    assert (states(job), latest(job).state) == (["succeeded"], "succeeded")
    assert (task.failures, tries(job)[2]) == (0, (3, "succeeded", ""))
    assert books.check(at=timezone.now()) == []
