"""A limit of all GPUs together: what runs and what is reserved share it, whatever was first; every door shows both."""

import pytest
from django.utils import timezone

from marketplace import limits, quotes, rentals, reservations, reserved_quotas
from marketplace.models import Reservation
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Instance, Quota
from tests.blocks import Buyer
from tests.conftest import Run, order
from tests.marketplace.reservations.test_delivery import launch
from tests.marketplace.reservations.test_races import at_once

pytestmark = pytest.mark.django_db


def limited(buyer: Buyer, limit: int, **words: str) -> Quota:
    return limits.change(
        actor=None, organization=buyer.project.organization, project=buyer.project, limit=limit, reason="test", **words
    )  # fmt: skip


def numbers(buyer: Buyer, **words: str) -> tuple[int, int, int]:
    """Held, reserved and free of the project's limit."""
    quota = Quota.objects.get(project=buyer.project, **quotas.FIRST | words)
    return quota.held, quota.reserved, quota.free


def test_what_runs_leaves_no_more_to_reserve_than_the_rest(acme_buys: Buyer, run_until_idle: Run) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=8)
    running = launch(acme_buys, gpus=6)
    for first in (1, 500):
        with pytest.raises(QuotaExceeded) as refusal:
            acme_buys.buy(3, first, first + 1)
        assert (refusal.value.wanted, refusal.value.held, refusal.value.limit) == (3, 6, 8)
    acme_buys.buy(2, 1, 2)
    assert (numbers(acme_buys), Reservation.objects.count()) == ((6, 2, 0), 1)
    rentals.terminate(actor=acme_buys.actor, instance=running, at=timezone.now())
    run_until_idle()
    acme_buys.buy(6, 1, 2)
    assert numbers(acme_buys) == (0, 8, 0)


def test_what_is_reserved_leaves_no_more_to_run_than_the_rest(acme_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=8)
    acme_buys.buy(6, 100, 102)
    acme_buys.buy(5, 102, 104)
    assert numbers(acme_buys) == (0, 6, 2)
    with pytest.raises(QuotaExceeded) as refusal:
        launch(acme_buys, gpus=3)
    assert (refusal.value.wanted, refusal.value.held, refusal.value.limit) == (3, 6, 8)
    launch(acme_buys, gpus=2)
    # Free is what the fullest hour leaves; another hour may have more.
    assert numbers(acme_buys) == (2, 6, 0)
    acme_buys.buy(1, 102, 104)
    with pytest.raises(QuotaExceeded):
        acme_buys.buy(1, 101, 104)


def test_what_runs_inside_a_block_counts_once(acme_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=8)
    block = acme_buys.buy(5, 2, 6)
    for hours in (1, 2):
        acme_buys.go_to(hours)
    assert launch(acme_buys, 2, gpus=5).reservation_id == block.pk
    assert launch(acme_buys, 2, gpus=3).reservation_id is None
    assert numbers(acme_buys) == (3, 5, 0)
    more = quotes.for_extension(reservation=block, ends_at=acme_buys.at(8), at=acme_buys.at(2))
    reservations.extend(actor=acme_buys.actor, reservation=block, quote=more, at=acme_buys.at(2))
    with pytest.raises(QuotaExceeded):
        launch(acme_buys, 2, gpus=1)


def test_hours_that_are_given_up_or_over_leave_their_room_at_once(acme_buys: Buyer, other_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=8)
    block, sold, short = acme_buys.buy(8, 300, 302), acme_buys.buy(8, 310, 312), acme_buys.buy(8, 2, 3)
    quote = quotes.for_cancellation(reservation=block, at=acme_buys.noon)
    reservations.cancel(actor=acme_buys.actor, reservation=block, quote=quote, at=acme_buys.noon)
    acme_buys.put_up(sold, 8, 310, 312, 1_500_000)
    other_buys.trade(8, 310, 312, 2_000_000)
    for hours in (1, 2, 2.9):
        acme_buys.go_to(hours)
    with pytest.raises(QuotaExceeded):
        launch(acme_buys, 2.9, gpus=1, attach="forbid")
    launch(acme_buys, 3, gpus=8, attach="forbid")  # before any sweep
    assert numbers(acme_buys) == (8, 0, 0)
    acme_buys.go_to(3)
    assert Reservation.objects.get(pk=short.pk).state == "expired"
    bought = Quota.objects.get(project=other_buys.project)
    assert (bought.held, bought.reserved) == (0, 8)


def test_limits_of_a_model_or_market_count_what_they_name(acme_buys: Buyer) -> None:
    acme_buys.buy(4, 10, 12)
    for words in ({"gpu_model": "H200"}, {"market": "reserved"}):
        assert limited(acme_buys, 5, **words).reserved == 4
        with pytest.raises(QuotaExceeded):
            acme_buys.buy(2, 11, 13)
        acme_buys.buy(5, 12, 13)
        assert numbers(acme_buys, **words) == (0, 5, 0)
        Quota.objects.filter(project=acme_buys.project, **words).delete()
        Reservation.objects.order_by("-pk")[:1].get().strips.all().delete()
    for words in ({"gpu_model": "L40S"}, {"market": "on_demand"}, {"unit": Quota.Unit.MICROS_PER_HOUR}):
        assert limited(acme_buys, 1, **words).reserved == 0
        acme_buys.buy(1, 11, 12)


def test_a_number_that_is_wrong_is_counted_again(acme_buys: Buyer) -> None:
    acme_buys.buy(4, 10, 12)
    for wrong in (9, 0):
        Quota.objects.filter(organization=acme_buys.project.organization).update(reserved=wrong)
        assert reserved_quotas.recount(at=acme_buys.noon) == 2  # the project's and its organization's
        assert reserved_quotas.recount(at=acme_buys.noon) == 0
        assert numbers(acme_buys) == (0, 4, 12)


@pytest.mark.django_db(transaction=True)
def test_launches_and_bookings_at_once_take_no_more_than_there_is(acme_buys: Buyer) -> None:
    quotas.set_limit(project_id=acme_buys.project.pk, limit=5)
    ready = [acme_buys.quote(1, 24, 26) for _ in range(6)]

    def book(number: int) -> None:
        reservations.buy(actor=acme_buys.actor, quote=ready[number], at=acme_buys.noon)

    def rent(number: int) -> None:
        rentals.rent(actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer), at=timezone.now())

    came = at_once(*(lambda n=n, act=act: act(n) for n in range(6) for act in (book, rent)))  # type: ignore[misc]
    assert came == ["QuotaExceeded"] * 7 + ["done"] * 5
    held, reserved, free = numbers(acme_buys)
    assert (held + reserved, free) == (5, 0)
    assert (held, reserved) == (Instance.objects.count(), Reservation.objects.count())
