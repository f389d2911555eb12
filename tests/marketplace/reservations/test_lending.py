"""Lending: idle reserved GPUs run spot work, their holder is paid a share, and never waits longer than the notice."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from billing import books, charging
from billing.models import Charge, LentUse, PriceVersion
from marketplace import lending, lending_record, recalls, rentals, reservations, spot
from marketplace.models import BlockTerms, LendingShare, LendingSpell, Reservation, SpotTerms
from provisioning import interruptions
from provisioning.models import Gpu, Instance, Interruption, Node
from tests.blocks import USD, Buyer, check_conserved
from tests.conftest import Run, order
from tests.marketplace.reservations.conftest import CENT, INTERVAL_S, NOTICE_S

pytestmark = pytest.mark.django_db


@pytest.fixture
def spot_runs(acme_buys: Buyer, lent: Reservation, clock: Any, run_until_idle: Run) -> Instance:
    """Acme's bid for eight GPUs, which runs on lent ones."""
    with transaction.atomic():
        bid = spot.bid(
            actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer, gpus=8),
            max_price_micros=USD, at=timezone.now(),
        )  # fmt: skip
    clock.shift(timedelta(seconds=INTERVAL_S))
    held = spot.clear(offer_id=acme_buys.offer.pk, at=timezone.now())
    assert held.capacity_gpus == 16
    run_until_idle()
    instance = Instance.objects.get(bid=bid)
    assert instance.phase == "running"
    return instance


def test_what_is_missing_or_ends_within_the_notice_is_not_lent(other_buys: Buyer, lent: Reservation) -> None:
    def gpus(hours: float) -> int:
        return lending.lent_gpus(offer_id=lent.offer_id, at=other_buys.at(hours))

    assert (gpus(5), gpus(5.3), gpus(5.35)) == (16, 16, 0)  # it ends at 6
    Reservation.objects.update(missing_gpus=3)
    assert gpus(5) == 13


def test_without_lending_spot_gets_nothing_of_what_is_reserved(
    acme_buys: Buyer, lent: Reservation, other_buys: Buyer, clock: Any
) -> None:
    reservations.lend(actor=other_buys.actor, reservation=lent, is_lent=False, at=timezone.now())
    clock.shift(timedelta(seconds=INTERVAL_S))
    assert spot.clear(offer_id=acme_buys.offer.pk, at=timezone.now()).capacity_gpus == 0


@pytest.mark.parametrize("out", ["held", "cordoned", "quarantined", "silent"])
def test_what_a_block_runs_on_and_is_out_of_service_is_taken_from_spot_once(
    acme_buys: Buyer, other_buys: Buyer, clock: Any, run_until_idle: Run, out: str
) -> None:
    def capacity(hours: float) -> int:
        clock.move_to(acme_buys.at(hours))
        return spot.clear(offer_id=acme_buys.offer.pk, at=timezone.now()).capacity_gpus

    other_buys.buy(8, 2, 6, at=1.5)
    other_buys.go_to(2)
    with transaction.atomic():
        rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8),
            at=timezone.now(),
        )  # fmt: skip
    run_until_idle()
    assert capacity(2.1) == 8
    node = Node.objects.filter(free_mask=0)
    if out == "quarantined":
        Gpu.objects.filter(node__in=node).update(state="quarantined")
    else:
        changed: dict[str, dict[str, Any]] = {
            "held": {"is_held": True}, "cordoned": {"state": "cordoned"}, "silent": {"reachability": "lost"},
        }  # fmt: skip
        node.filter(offer=acme_buys.offer).update(**changed[out])
    # What does not answer is not had: the block is to have the other eight.
    assert capacity(2.2) == (0 if out == "silent" else 8)
    acme_buys.buy(8, 6, 7, at=2.3)
    assert capacity(5.9) == (0 if out == "silent" else 8)
    # What begins with the next hour has nothing of the node that is out.
    assert capacity(5.98) == 0


def test_the_holder_gets_their_share_of_each_charge_once(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any
) -> None:
    before = other_buys.wallet().available_micros
    clock.shift(timedelta(minutes=6))
    charging.charge_due(at=timezone.now())
    charge = Charge.objects.get()
    assert charge.amount_micros == 8 * 50 * CENT // 10
    for _ in range(2):
        lending.share_due(at=timezone.now(), limit=10)
    ran = lending_record.between(lent.offer, spot_runs.ready_at, charge.through)
    assert not lending.share(charge=charge, since=spot_runs.ready_at, ran=ran, at=timezone.now())
    share = LendingShare.objects.get()
    assert share.amount_micros == charge.amount_micros // 2
    assert other_buys.wallet().available_micros == before + share.amount_micros
    assert lending.earned_micros([lent]) == {lent.pk: share.amount_micros}
    check_conserved(at=timezone.now())


def test_a_holder_gets_the_share_that_their_quote_promised_whatever_the_terms_of_today_are(
    other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any
) -> None:
    BlockTerms.objects.update(lend_share_bp=1000)
    clock.shift(timedelta(minutes=6))
    charging.charge_due(at=timezone.now())
    assert lending.share_due(at=timezone.now(), limit=10) == 1
    assert LendingShare.objects.get().amount_micros == Charge.objects.get().amount_micros // 2
    check_conserved(at=timezone.now())


def test_lent_gpus_earn_by_when_they_ran_whatever_is_so_when_the_charge_is_shared(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any, run_until_idle: Run
) -> None:
    before = other_buys.wallet().available_micros
    clock.shift(timedelta(minutes=2))
    reservations.lend(actor=other_buys.actor, reservation=lent, is_lent=False, at=timezone.now())
    clock.shift(timedelta(minutes=4))
    rentals.terminate(actor=acme_buys.actor, instance=spot_runs, at=timezone.now())
    run_until_idle()
    charging.charge_due(at=timezone.now())
    charge = Charge.objects.get()
    assert charge.amount_micros == 8 * 50 * CENT // 10
    # Now nothing is lent and nothing runs; for a third of the time it did.
    for _ in range(2):
        lending.share_due(at=timezone.now(), limit=10)
    share = LendingShare.objects.get()
    assert share.amount_micros == charge.amount_micros // 2 // 3
    assert other_buys.wallet().available_micros == before + share.amount_micros
    spell = LendingSpell.objects.get()
    assert spell.ends_at is not None
    assert spell.ends_at - spot_runs.ready_at == timedelta(minutes=2)


def test_what_the_holder_uses_beside_spot_takes_nothing_from_what_the_rest_earns(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any, run_until_idle: Run
) -> None:
    clock.shift(timedelta(minutes=3))
    with transaction.atomic():
        mine = rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8), at=timezone.now()
        )
    run_until_idle()
    clock.shift(timedelta(minutes=3))
    charging.charge_due(at=timezone.now())
    ran = lending_record.between(lent.offer, spot_runs.ready_at, timezone.now())
    assert [piece.parts for piece in ran.pieces if piece.parts] == [{lent.pk: lending_record.SCALE}] * len(ran.pieces)
    # Eight idle GPUs are lent beside the eight that the holder runs on, and spot runs on all of those.
    mine.refresh_from_db()
    rentals.terminate(actor=other_buys.actor, instance=mine, at=timezone.now())
    run_until_idle()
    assert lending.share_due(at=timezone.now(), limit=10) == 1


def test_what_the_holder_starts_takes_lent_gpus_back_within_the_notice(
    other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any, run_until_idle: Run
) -> None:
    with transaction.atomic():
        mine = rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8, replicas=2),
            at=timezone.now(),
        )  # fmt: skip
    assert (mine.reservation_id, mine.phase) == (lent.pk, "queued")
    run_until_idle()
    for _ in range(2):
        recalls.recall_due(at=timezone.now(), limit=10)
    interruptions.announce_due(at=timezone.now(), limit=10)
    told = Interruption.objects.get()
    assert (told.reason, told.instance_id, told.min_notice_s) == ("owner_recall", spot_runs.pk, NOTICE_S)
    clock.shift(timedelta(seconds=NOTICE_S))
    run_until_idle()
    clock.shift(timedelta(seconds=5))
    run_until_idle()
    assert Instance.objects.get(pk=mine.pk).phase == "running"
    assert Instance.objects.get(pk=spot_runs.pk).phase == "interrupted"
    assert books.check(at=timezone.now()) == []


def share() -> int:
    charging.charge_due(at=timezone.now())
    return lending.share_due(at=timezone.now(), limit=10)


def test_a_share_waits_until_its_run_cannot_be_given_back_any_more(spot_runs: Instance, clock: Any) -> None:
    SpotTerms.objects.update(interval_s=600)
    clock.shift(timedelta(minutes=6))
    assert (share(), Charge.objects.count()) == (0, 1)
    clock.shift(timedelta(minutes=4))
    assert share() == Charge.objects.count()


def test_a_holder_has_no_share_of_a_run_that_is_given_back(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any, run_until_idle: Run
) -> None:
    clock.shift(timedelta(seconds=INTERVAL_S - 20))
    with transaction.atomic():
        rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8, replicas=2),
            at=timezone.now(),
        )  # fmt: skip
    recalls.recall_due(at=timezone.now(), limit=10)
    interruptions.announce_due(at=timezone.now(), limit=10)
    for seconds in (10, NOTICE_S, 10):
        clock.shift(timedelta(seconds=seconds))
        run_until_idle()
        assert share() == 0
    interruptions.settle_due(at=timezone.now(), limit=10)
    told, charges = Interruption.objects.get(), Charge.objects.filter(span__resource_id=spot_runs.public_id)
    assert (told.state, told.reason) == ("interrupted", "owner_recall")
    assert told.credited_micros == sum(charge.amount_micros for charge in charges) > 0
    clock.shift(timedelta(minutes=5))
    assert share() == 0
    assert LendingShare.objects.count() == 0
    assert books.check(at=timezone.now()) == []


def test_what_fits_beside_spot_recalls_nothing(
    other_buys: Buyer, spot_runs: Instance, lent: Reservation, run_until_idle: Run
) -> None:
    with transaction.atomic():
        mine = rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8), at=timezone.now()
        )
    recalls.recall_due(at=timezone.now(), limit=10)
    run_until_idle()
    assert Instance.objects.get(pk=mine.pk).phase == "running"
    assert Interruption.objects.count() == 0


def test_a_bid_that_waits_has_no_lent_gpus_to_give_back(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation
) -> None:
    with transaction.atomic():
        spot.bid(
            actor=acme_buys.actor, project=acme_buys.project, order=order(acme_buys.offer, gpus=8),
            max_price_micros=USD, at=timezone.now(),
        )  # fmt: skip
        rentals.rent(
            actor=other_buys.actor, project=other_buys.project, order=order(other_buys.offer, gpus=8), at=timezone.now()
        )
    recalls.recall_due(at=timezone.now(), limit=10)
    assert Interruption.objects.count() == 0


def test_nobody_gets_the_part_of_a_holder_with_another_currency(
    acme_buys: Buyer, other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    foreign = Reservation(price_version=PriceVersion(currency="EUR"), terms=lent.terms)
    parts = {lent.pk: lending_record.SCALE // 4, 0: lending_record.SCALE * 3 // 4}

    def between(offer: Any, since: datetime, until: datetime) -> lending_record.Record:
        piece = lending_record.Piece(since, until, parts)
        return lending_record.Record([piece], {lent.pk: lent, 0: foreign})

    monkeypatch.setattr(lending_record, "between", between)
    clock.shift(timedelta(minutes=6))
    charging.charge_due(at=timezone.now())
    assert lending.share_due(at=timezone.now(), limit=10) == 1
    assert LendingShare.objects.get().amount_micros == Charge.objects.get().amount_micros // 2 // 4


def test_charges_that_pay_nobody_do_not_hide_those_behind_them(
    spot_runs: Instance, lent: Reservation, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        clock.shift(timedelta(minutes=6))
        charging.charge_due(at=timezone.now())
    charges = list(Charge.objects.order_by("pk"))
    assert len(charges) == 3
    tried: list[int] = []

    def share(*, charge: Charge, **_: Any) -> bool:
        tried.append(charge.pk)
        return charge.pk == charges[-1].pk

    monkeypatch.setattr(lending, "share", share)
    assert lending.share_due(at=timezone.now(), limit=1) == 1
    assert tried == [charge.pk for charge in charges]


def test_what_was_lent_is_noted_for_the_supplier_with_its_hours(
    other_buys: Buyer, spot_runs: Instance, lent: Reservation, clock: Any
) -> None:
    clock.shift(timedelta(minutes=6))
    charging.charge_due(at=timezone.now())
    lending.share_due(at=timezone.now(), limit=10)
    (used,) = LentUse.objects.all()
    charge = Charge.objects.get()
    assert (used.key, used.amount_micros) == (charge.key, LendingShare.objects.get().amount_micros)
    assert used.unit_milliseconds == 8 * 6 * 60_000  # all eight GPUs are lent ones
    assert books.check(at=timezone.now()) == []
