"""Sweeps in which something fails that nobody expected: it is left for the next one, and all others have their turn."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace import delivery, resale, reservations, waiting
from marketplace.access import Actor
from marketplace.models import Offer, Project, Reservation, WaitingOrder
from provisioning import calendar
from provisioning.models import Quota
from tests.blocks import Buyer
from tests.conftest import Fleet
from tests.marketplace.test_waiting import Wait, states, sweep, waits_as

pytestmark = pytest.mark.django_db


@pytest.fixture
def wait(actor: Actor, project: Project, fleet: Fleet) -> Wait:
    Quota.objects.update(limit=100)
    return waits_as(actor, project, fleet)


def fails(real: Any, at_name: str, value: object) -> Any:
    """Return the same verb, which fails where its argument of this name, or its first one, is this."""

    def verb(*args: Any, **named: Any) -> Any:
        if value in (*args[:1], named.get(at_name)):
            raise ArithmeticError
        return real(*args, **named)

    return verb


def test_a_reservation_that_fails_keeps_no_other_from_its_turn(
    acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = acme_buys.buy(4, 2, 5), acme_buys.buy(4, 2, 5)
    with monkeypatch.context() as fault:
        fault.setattr(reservations, "lock", fails(reservations.lock, "reservation_id", first.pk))
        delivery.advance(at=acme_buys.at(1.5), limit=100)
    assert [Reservation.objects.get(pk=one.pk).state for one in (first, second)] == ["scheduled", "locked"]
    acme_buys.go_to(1.5)
    assert Reservation.objects.get(pk=first.pk).state == "locked"


def test_a_part_of_the_life_of_reservations_that_fails_keeps_no_other_from_its_turn(
    acme_buys: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = acme_buys.buy(4, 2, 5)
    at = acme_buys.at(1.5)
    monkeypatch.setattr(resale, "expire_due", fails(resale.expire_due, "at", at))
    monkeypatch.setattr(delivery, "missing_gpus", fails(delivery.missing_gpus, "offer_id", reservation.offer_id))
    delivery.advance(at=at, limit=100)
    assert Reservation.objects.get(pk=reservation.pk).state == "locked"


def test_an_order_that_fails_lets_those_behind_it_start_and_keeps_its_place(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = wait(), wait()
    with monkeypatch.context() as fault:
        fault.setattr(waiting, "_start", fails(waiting._start, "entry", first))
        assert sweep() == 1
    assert states(first, second) == [("waiting", "refused"), ("started", "capacity")]
    assert waiting.told(WaitingOrder.objects.get(pk=first.pk)) == "Something went wrong on our side"
    assert sweep() == 1


def test_a_queue_that_fails_keeps_no_other_queue_from_its_turn(
    wait: Wait, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = Offer.objects.filter(pk__in=[fleet.h200.pk, fleet.l40s.pk]).order_by("pk")
    first, second = (wait(offer=one) for one in offers)
    monkeypatch.setattr(calendar, "count", fails(calendar.count, "offer_id", first.offer_id))
    assert sweep() == 1
    assert [state for state, _ in states(first, second)] == ["waiting", "started"]


def test_an_order_that_cannot_expire_keeps_no_other_from_it(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = wait(hours=1), wait(hours=1)
    monkeypatch.setattr(waiting, "_record_own", fails(waiting._record_own, "entry", first))
    waiting.start_due(at=timezone.now() + timedelta(hours=2), limit=10)
    assert [state for state, _ in states(first, second)] == ["waiting", "expired"]
