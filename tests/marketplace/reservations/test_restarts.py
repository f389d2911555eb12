"""What runs inside a block and fails by a fault of ours: it starts again inside one by itself, and nowhere else."""

from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from marketplace import rentals, restarts
from provisioning import engine
from provisioning.models import Assignment, Instance
from provisioning.steps import PLAN
from tests.blocks import Buyer
from tests.conftest import Run, order

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("lost_at", "again_at", "is_inside"), [(3, 3, True), (5.4, 5.5, False), (5.4, 6.1, False)])
def test_what_fails_inside_a_block_is_never_started_again_by_itself_where_it_costs(
    other_buys: Buyer, clock: Any, run_until_idle: Run, lost_at: float, again_at: float, is_inside: bool
) -> None:
    block = other_buys.buy(8, 2, 6, at=1.5)
    other_buys.go_to(2)
    with transaction.atomic():
        instance = rentals.rent(
            actor=other_buys.actor, project=other_buys.project,
            order=order(other_buys.offer, gpus=8, on_failure="restart"), at=timezone.now(),
        )  # fmt: skip
    run_until_idle()
    clock.move_to(other_buys.at(lost_at))
    other_buys.go_to(lost_at)
    Assignment.objects.filter(instance=instance).update(observed="gone", message="Its node is off.")
    engine.wake(instance.pk)
    for _ in range(5):
        engine.run_one(instance.pk, PLAN)
    clock.move_to(other_buys.at(again_at))
    other_buys.go_to(again_at)
    assert restarts.start_again(at=timezone.now(), limit=9) == is_inside
    found = Instance.objects.get(pk=instance.pk)
    if is_inside:
        assert (found.phase, found.market, found.reservation_id) == ("queued", "reserved", block.pk)
        return
    assert (found.phase, found.run) == ("failed", 1)
    assert found.restart_at is not None
    assert found.restart_at > timezone.now()
    assert "No reservation of" in found.message
