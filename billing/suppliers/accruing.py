"""What suppliers are owed: worked out for every span at once, from what was charged for it.

A span is cut where a month or another rate card begins. Of each piece everything
is worked out whole, as if for the first time, and what is new against the row
of the piece is what moves. So it may be repeated, may come late, and a
correction of use is a correction here without a rule of its own.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from django.db import connection, transaction

from billing import accounts, ledger, rating
from billing.models import Account, Charge, Delivery, Earning, LentUse, Transfer, UsageSpan
from billing.public_ids import new_public_id
from billing.suppliers import purses
from billing.suppliers.purses import Purse
from billing.suppliers.queries import ACCRUE

ONE_CLOSE_AT_A_TIME = 7_220_001  # the key of an advisory lock

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Supplied:
    """Whose GPUs were delivered, of which offer, and how many GPU-milliseconds between two moments."""

    supplier_id: int
    offer: str
    starts_at: datetime
    ends_at: datetime
    unit_milliseconds: int


def note_delivery(*, key: str, currency: str, amount_micros: int, supplied: Supplied) -> None:
    """Remember whose GPUs earned what was paid ahead, once; key and amount are those of `prepayments.earn`."""
    if amount_micros:
        Delivery.objects.get_or_create(
            key=key,
            defaults={
                "currency": currency,
                "amount_micros": amount_micros,
                "supplier_id": supplied.supplier_id,
                "offer": supplied.offer,
                "starts_at": supplied.starts_at,
                "ends_at": supplied.ends_at,
                "unit_milliseconds": supplied.unit_milliseconds,
            },
        )


@transaction.atomic
def note_lent(*, charge: Charge, amount_micros: int, share: Fraction) -> None:
    """Remember that this share of a charge was for lent GPUs, whose holders were paid so much of it. Once per charge.

    The next close leaves both out of what the supplier of the span gets.
    """
    before = Charge.objects.filter(span=charge.span, through__lt=charge.through).order_by("-through").first()
    since = before.through if before else charge.span.started_at
    used = rating.unit_milliseconds(quantity=charge.span.quantity, start=since, end=charge.through)
    LentUse.objects.get_or_create(
        key=charge.key,
        defaults={
            "span": charge.span,
            "through": charge.through,
            "unit_milliseconds": used * share.numerator // share.denominator,
            "amount_micros": amount_micros,
        },
    )
    UsageSpan.objects.filter(pk=charge.span_id).update(is_accrued=False)


@transaction.atomic
def accrue(*, at: datetime) -> list[Earning]:
    """Bring what suppliers are owed up to what customers were charged; return what that added, per supplier.

    One at a time; repeating it adds nothing. Money goes from the revenue, where charges put it: the supplier's part to
    what can be paid out and to the reserve, the rest to the platform's fees.
    """
    wait_for_turn()
    with connection.cursor() as cursor:
        cursor.execute(ACCRUE)
        rows = cursor.fetchall()
    earnings = [_earning(row, at=at) for row in rows]
    if earnings:
        Earning.objects.bulk_create(earnings)
        _move(earnings)
        log.info("what %s suppliers are owed has grown", len(earnings))
    return earnings


def wait_for_turn() -> None:
    """Wait until nobody else works out or states what suppliers are owed; nobody else does in this transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ONE_CLOSE_AT_A_TIME])


def release_due(*, at: datetime, limit: int = 500) -> int:
    """Let reserves that were held long enough be paid out; return how many earnings that was.

    Of each what service credits and corrections took of it stays away, see `purses.take_reserve`.
    """
    released = 0
    due = Earning.objects.filter(released_at=None, reserve_micros__gt=0, release_at__lte=at)
    for earning in due.order_by("release_at", "pk")[:limit]:
        released += _release(earning, at=at)
    return released


@transaction.atomic
def _release(earning: Earning, *, at: datetime) -> bool:
    pair = (earning.supplier_id, earning.currency)
    purse = purses.lock([pair])[pair]
    earning.refresh_from_db(fields=["taken_micros"])
    micros = earning.reserve_micros - earning.taken_micros
    if not Earning.objects.filter(pk=earning.pk, released_at=None).update(released_at=at, released_micros=micros):
        return False
    if micros:
        ledger.transfer(
            key=f"release:{earning.public_id}",
            source=purse.reserve,
            target=purse.payable,
            amount_micros=micros,
            reason="Reserve released",
            at=at,
        )
    return True


def _earning(row: Sequence[Any], *, at: datetime) -> Earning:
    supplier_id, currency, reserve_days, ms, charge, payout, reserve = row
    return Earning(
        public_id=new_public_id("ern"),
        supplier_id=supplier_id,
        currency=currency,
        at=at,
        unit_milliseconds=ms,
        charge_micros=charge,
        payout_micros=payout,
        reserve_micros=reserve,
        fee_micros=charge - payout - reserve,
        release_at=at + timedelta(days=reserve_days),
    )


def _move(earnings: Sequence[Earning]) -> None:
    """Move the money of all, in two statements."""
    owned = purses.lock((earning.supplier_id, earning.currency) for earning in earnings)
    moves = []
    for earning in earnings:
        revenue = accounts.platform(Account.Kind.REVENUE, earning.currency)
        for target, part, micros in _parts(earning, owned[earning.supplier_id, earning.currency]):
            source, goal = (revenue, target) if micros > 0 else (target, revenue)
            moves.append(
                Transfer(
                    key=f"accrue:{earning.public_id}:{part}",
                    source=source,
                    target=goal,
                    amount_micros=abs(micros),
                    reason="Use of a supplier's GPUs",
                    effective_at=earning.at,
                )
            )
    ledger.move_all(moves)


def _parts(earning: Earning, purse: Purse) -> Iterator[tuple[Account, str, int]]:
    """Tell what goes where. A correction takes from the reserve no more than is there, and the rest of what is owed."""
    reserve = max(earning.reserve_micros, -purse.reserve.balance_micros)
    purse.reserve.balance_micros += reserve
    if reserve < 0:
        purses.take_reserve(earning.supplier_id, earning.currency, -reserve)
    fees = accounts.platform(Account.Kind.FEES, earning.currency)
    parts = (
        (purse.payable, "payable", earning.payout_micros + earning.reserve_micros - reserve),
        (purse.reserve, "reserve", reserve),
        (fees, "fees", earning.fee_micros),
    )
    return (part for part in parts if part[2])
