"""Any order of buying, selling, cancelling and time passing, beside a model of plain numbers."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.errors import BillingError
from marketplace import coverage, delivery, holdings, quotes, rentals, reservations
from marketplace.access import person
from marketplace.errors import MarketError
from marketplace.models import OVER, Project, Reservation, ReservationStrip, TradeLeg
from marketplace.models.reservations import USABLE
from provisioning import quotas
from provisioning.errors import NoCapacity, ProvisioningError
from provisioning.models import GpuHold, Instance, Node
from tests.blocks import HOUR, Buyer, check_conserved
from tests.conftest import Fleet, Run, make_organization, make_person, order, shared_with_nobody
from tests.nodes import announce, join

pytestmark = pytest.mark.django_db

REFUSED = (MarketError, BillingError, ProvisioningError)
GPUS, FIRST, LAST = 16, 4, 12

windows = st.tuples(st.integers(FIRST, LAST - 1), st.integers(1, 4)).map(lambda pair: (pair[0], sum(pair)))
sizes, asks = st.integers(1, GPUS), st.integers(1, 4).map(lambda steps: steps * 1_000_000)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("buy"), st.integers(0, 1), sizes, windows, asks),
        st.tuples(st.just("list"), st.integers(0, 3), sizes, windows, asks),
        st.tuples(st.just("trade"), st.integers(0, 1), sizes, windows, asks),
        st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0), windows, asks),
        st.tuples(st.just("extend"), st.integers(0, 3), st.integers(1, 2), windows, asks),
        st.tuples(st.just("wait"), st.integers(1, 3), st.just(0), windows, asks),
    ),
    min_size=3,
    max_size=12,
)


def gpu_hours() -> int:
    alive = ReservationStrip.objects.exclude(reservation__state__in=[state for state in OVER if state != "expired"])
    return sum(strip.gpus * ((strip.ends_at - strip.starts_at) // HOUR) for strip in alive)


def act(move: tuple[Any, ...], buyers: list[Buyer], hours: float) -> None:
    verb, number, size, (first, last), ask = move
    at = buyers[0].at(hours)
    found = list(Reservation.objects.exclude(state__in=OVER).order_by("pk"))
    own = found[number % len(found)] if found else None
    buyer = buyers[number % 2]
    if verb == "buy":
        buyer.buy(size, first, last, at=hours)
    elif verb == "trade":
        before = gpu_hours()
        trade = buyer.trade(size, first, last, ask, at=hours)
        assert gpu_hours() - before == sum(
            leg.gpus * ((leg.ends_at - leg.starts_at) // HOUR) for leg in trade.legs.filter(listing=None)
        )
    elif own is None:
        return
    else:
        holder = next(one for one in buyers if one.project.pk == own.project_id)
        own = reservations.lock(own.pk)
        if verb == "list":
            holder.put_up(own, size, max(first, 1), last, ask, at=hours)
        elif verb == "cancel":
            quote = quotes.for_cancellation(reservation=own, at=at)
            reservations.cancel(actor=holder.actor, reservation=own, quote=quote, at=at)
        elif verb == "extend":
            quote = quotes.for_extension(reservation=own, ends_at=own.ends_at + size * HOUR, at=at)
            reservations.extend(actor=holder.actor, reservation=own, quote=quote, at=at)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
def test_hours_and_money_are_conserved_whatever_happens(
    acme_buys: Buyer, other_buys: Buyer, moves: list[tuple[Any, ...]]
) -> None:
    with transaction.atomic():
        quotas.set_limit(project_id=acme_buys.project.pk, limit=1000)
        hours = 0.0
        for move in moves:
            if move[0] == "wait":
                hours += move[1] / 2
                acme_buys.go_to(hours)
            else:
                try:
                    with transaction.atomic():
                        act(move, [acme_buys, other_buys], hours)
                except REFUSED:
                    pass
            check_conserved(at=acme_buys.at(hours))
            no_hour_is_oversold(acme_buys.at(hours))
        for leg in TradeLeg.objects.select_related("trade", "listing"):
            assert leg.price_micros <= leg.trade.limit_micros
            assert leg.listing is None or leg.price_micros == leg.listing.ask_micros
            assert leg.listing is None or leg.listing.seller_id != leg.trade.buyer_id
        acme_buys.go_to(40)
        for late in (41, 42, 43):
            acme_buys.go_to(late)
        check_conserved(at=acme_buys.at(43))
        transaction.set_rollback(True)


def no_hour_is_oversold(at: datetime, *, gpus: int = GPUS) -> None:
    for number in range(30):
        hour = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=number)
        here = ReservationStrip.objects.exclude(reservation__state__in=OVER)
        assert sum(here.filter(starts_at__lte=hour, ends_at__gt=hour).values_list("gpus", flat=True)) <= gpus


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=st.lists(st.tuples(sizes, windows), min_size=1, max_size=10))
def test_what_fits_is_sold_and_what_does_not_is_refused(
    acme_buys: Buyer, orders: list[tuple[int, tuple[int, int]]]
) -> None:
    with transaction.atomic():
        quotas.set_limit(project_id=acme_buys.project.pk, limit=1000)
        taken = [0] * 30
        for size, (first, last) in orders:
            fits = max(taken[first:last]) + size <= GPUS
            if fits:
                acme_buys.buy(size, first, last)
                taken[first:last] = [gpus + size for gpus in taken[first:last]]
            else:
                with pytest.raises(NoCapacity):
                    acme_buys.quote(size, first, last)
        transaction.set_rollback(True)


@pytest.fixture
def third_buys(acme_buys: Buyer, fleet: Fleet) -> Buyer:
    """A third customer, and a third node."""
    fleet.nodes["h200-3"] = join(announce(fleet.h200, fleet.nodes["h200-1"].node.fabric, name="h200-3"))
    person_of = make_person("third@third.example")
    make_organization("Third", person_of)
    project = Project.objects.select_related("organization").get(organization__name="Third")
    return Buyer(person(person_of), project, acme_buys.offer, acme_buys.noon)


BLOCK = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(lambda pair: (pair[0], sum(pair)))
runs = st.lists(
    st.one_of(
        st.tuples(st.just("buy"), st.integers(0, 2), st.integers(1, 16), BLOCK),
        st.tuples(st.just("inside"), st.integers(0, 3), st.integers(1, 8), st.none()),
        st.tuples(st.just("inside"), st.integers(0, 3), st.integers(1, 8), st.none()),
        st.tuples(st.just("beside"), st.integers(0, 2), st.integers(1, 8), st.none()),
        st.tuples(st.just("end"), st.integers(0, 5), st.just(0), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 5), st.just(0), st.none()),
    ),
    min_size=4,
    max_size=16,
)


class Hosts:
    """Acme and Third share hosts with nobody, Other does; they run blocks and on demand on three nodes of eight."""

    def __init__(self, buyers: Sequence[Buyer], run: Run, hand: Any) -> None:
        self.buyers, self.run, self.hand, self.hours = buyers, run, hand, 0.0
        self.alone = {buyers[0].project.pk, buyers[2].project.pk}

    @property
    def at(self) -> datetime:
        return self.buyers[0].at(self.hours)

    def missing(self) -> dict[int, int]:
        found = delivery.missing_gpus(self.buyers[0].offer.pk, at=self.at)
        return {pk: missing.gpus for pk, missing in found.items()}

    def active(self) -> list[Reservation]:
        found = Reservation.objects.filter(state__in=USABLE, starts_at__lte=self.at, ends_at__gt=self.at)
        return list(found.select_related("project__organization").order_by("pk"))

    def buyer_of(self, project_id: int) -> Buyer:
        return next(one for one in self.buyers if one.project.pk == project_id)

    def launch(self, buyer: Buyer, gpus: int, **how: Any) -> None:
        """Launch; what finds no place at once is called off."""
        with transaction.atomic():
            instance = rentals.rent(
                actor=buyer.actor, project=buyer.project, order=order(buyer.offer, gpus=gpus, **how), at=self.at
            )
            if not GpuHold.objects.filter(assignment__instance=instance).exists():
                raise NoCapacity

    def act(self, verb: str, number: int, size: int, window: Any) -> None:
        if verb == "wait":
            self.hours += number / 4
            self.hand.move_to(self.at)
            self.buyers[0].go_to(self.hours)
            self.run()
        elif verb == "buy":
            buyer = self.buyers[number]
            gpus = -(-size // 8) * 8 if buyer.project.pk in self.alone else size
            buyer.buy(gpus, window[0] + int(self.hours), window[1] + int(self.hours), at=self.hours)
        elif verb == "inside" and (blocks := self.active()):
            block = blocks[number % len(blocks)]
            self.launch(self.buyer_of(block.project_id), size, reservation=block)
        elif verb == "beside":
            self.launch(self.buyers[number], size, attach="forbid")
        elif verb == "end" and (there := list(Instance.objects.filter(quota_held__gt=0).order_by("pk"))):
            instance = there[number % len(there)]
            buyer = self.buyer_of(instance.project_id)
            rentals.terminate(actor=buyer.actor, instance=instance, at=self.at)
            self.run()

    def check(self, *, backwards: bool) -> None:
        """Assert that all that was paid for starts, whoever is first, but for what is said to be missing."""
        missing, blocks = self.missing(), self.active()
        used = coverage.delivered_gpus(blocks)
        with transaction.atomic():
            for block in blocks[::-1] if backwards else blocks:
                left = holdings.held_at(block.strips.all(), self.at) - used[block.pk] - missing.get(block.pk, 0)
                while left > 0:
                    gpus = min(left, self.most(block))
                    assert gpus, f"{left} GPUs of {block.gpus} are no place"
                    self.launch(self.buyer_of(block.project_id), gpus, reservation=block)
                    left -= gpus
            transaction.set_rollback(True)

    def most(self, block: Reservation) -> int:
        """Return the most GPUs that are free on one node that a block may have."""
        organization, is_alone = block.project.organization_id, block.project_id in self.alone
        rooms = [0]
        for node in Node.objects.filter(offer=block.offer_id):
            is_whole = node.exclusive_to_id is None and node.free_gpus == node.gpu_count
            is_open = node.exclusive_to_id is None and node.kept_for != "block"
            if node.exclusive_to_id == organization or (is_whole if is_alone else is_open):
                rooms.append(node.free_gpus)
        return max(rooms)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=runs)
def test_every_block_that_has_begun_starts_all_that_it_paid_for_whoever_else_runs_there(
    acme_buys: Buyer, other_buys: Buyer, third_buys: Buyer, fleet: Fleet, run_until_idle: Run, moves: list[Any]
) -> None:
    buyers = [acme_buys, other_buys, third_buys]
    with time_machine.travel(acme_buys.noon, tick=False) as hand, transaction.atomic():
        for buyer in buyers:
            quotas.set_limit(project_id=buyer.project.pk, limit=1000)
            quotas.set_limit(organization_id=buyer.project.organization_id, limit=1000)
        for buyer in (acme_buys, third_buys):
            shared_with_nobody(buyer.project)
        for played in fleet.nodes.values():
            played.generation, played.desired, played.states = 0, {}, {}
        hosts = Hosts(buyers, run_until_idle, hand)
        for number, (verb, *what) in enumerate(moves):
            before = hosts.missing()
            try:
                with transaction.atomic():
                    hosts.act(verb, *what)
            except REFUSED:
                pass
            if verb in ("beside", "inside", "buy"):
                # What somebody starts is taken from no block that has begun.
                assert {pk: gpus for pk, gpus in hosts.missing().items() if gpus > before.get(pk, 0)} == {}
            hosts.check(backwards=number % 2 == 1)
            no_hour_is_oversold(hosts.at, gpus=24)
        transaction.set_rollback(True)
