"""Orders that wait for their place inside a reservation."""

from datetime import timedelta
from typing import Any

import pytest

from marketplace import waiting
from marketplace.models import WaitingOrder
from tests.blocks import Buyer
from tests.conftest import order

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("by_name", [False, True])
def test_what_waits_for_a_reservation_starts_inside_it_and_nowhere_else(acme_buys: Buyer, by_name: bool) -> None:
    reservation = acme_buys.buy(4, 2, 10)
    what: dict[str, Any] = {"reservation": reservation} if by_name else {"attach": "strict"}
    at = acme_buys.at(1)
    entry = waiting.wait(
        actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer, **what),
        max_micros_per_gpu_hour=10_000_000, until=at + timedelta(hours=10), at=at,
    )  # fmt: skip
    assert waiting.start_due(at=at, limit=100) == 0
    entry.refresh_from_db()
    assert (entry.state, entry.why) == (WaitingOrder.State.WAITING, WaitingOrder.Why.REFUSED)
    assert waiting.demand(acme_buys.offer, at) == 0
    acme_buys.go_to(2.5)
    assert waiting.start_due(at=acme_buys.at(2.5), limit=100) == 1
    entry.refresh_from_db()
    assert entry.instance is not None
    assert entry.instance.reservation == reservation
    assert entry.instance.attach == "strict"
