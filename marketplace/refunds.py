"""Giving back what was paid for a reservation: by the payment's own proportion, and for GPUs that could not be had."""

from datetime import datetime

import structlog
from django.utils.translation import gettext

from billing import prepayments
from billing.prepayments import Block, Paid
from marketplace import holdings, paid_ahead
from marketplace.models import Reservation, Shortfall
from provisioning.calendar import HOUR

log = structlog.get_logger("marketplace.refunds")


def give_back(
    reservation: Reservation, *, micros: int, deferred_micros: int, block: Block, cause: str, at: datetime
) -> None:
    """Give part of what was paid back to where it came from, credit and cash in the proportion of the payment."""
    if not micros:
        return
    prepayments.give_back(
        organization=reservation.project.organization,
        key=f"{reservation.public_id}:{cause}",
        back=split(reservation, micros),
        deferred_micros=deferred_micros,
        block=block,
        reason=f"Refund for {reservation.public_id}",
        at=at,
    )


def split(reservation: Reservation, micros: int) -> Paid:
    """Return how much of a sum is credit: in the proportion of the payment, rounded so that it never becomes cash."""
    if not reservation.paid_micros:
        return Paid(promo_micros=micros)
    promo = min(micros, -(-micros * reservation.promo_micros // reservation.paid_micros))
    return Paid(promo_micros=promo, cash_micros=micros - promo)


def lost_in(reservation: Reservation, missing: int, *, hour: datetime) -> tuple[int, int]:
    """Return what an hour of the missing GPUs cost and was worth, the dearest first; what is given back is left out."""
    lost = _lost_in(reservation, missing, hour=hour)
    return sum(paid for paid, _ in lost), sum(min(pair) for pair in lost)


def _lost_in(reservation: Reservation, missing: int, *, hour: datetime) -> list[tuple[int, int]]:
    known = next((one.gpus for one in reservation.shortfalls.all() if one.hour == hour), 0)
    here = holdings.clipped(reservation.strips.all(), hour, hour + HOUR)
    each = [(one.paid_micros, one.worth_micros) for one in here for _ in range(one.gpus)]
    return sorted(each, reverse=True)[known:missing]


def give_back_hour(reservation: Reservation, missing: int, *, hour: datetime, at: datetime) -> int:
    """Give back what an hour of the missing GPUs had cost, once for each; keep the evidence, and return how much."""
    before = Shortfall.objects.filter(reservation=reservation, hour=hour).first()
    if missing <= (before.gpus if before else 0):
        return 0
    lost = _lost_in(reservation, missing, hour=hour)
    refund, worth = sum(paid for paid, _ in lost), sum(min(pair) for pair in lost)
    block = paid_ahead.lost_hour(reservation, [paid for paid, _ in lost], hour=hour)
    cause = f"{hour:%Y%m%dT%H}:{missing}"
    give_back(reservation, micros=refund, deferred_micros=worth, block=block, cause=cause, at=at)
    text = gettext("%(gpus)s GPUs could not be had in the hour from %(hour)s UTC; what they cost was given back.")
    message = text % {"gpus": missing, "hour": f"{hour:%Y-%m-%d %H:%M}"}
    Shortfall.objects.update_or_create(
        reservation=reservation,
        hour=hour,
        defaults={
            "gpus": missing,
            "refund_micros": refund + (before.refund_micros if before else 0),
            "worth_micros": worth + (before.worth_micros if before else 0),
            "message": message,
            "seen_at": at,
        },
    )
    reservation.note(message, at=at)
    log.warning("not delivered", reservation=reservation.public_id, hour=hour, gpus=missing, refund=refund)
    return refund
