"""Hours that are paid ahead, in the words of the till: what an invoice says of them, and where their price is from."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from billing.models import PrepaidItem
from billing.prepayments import Block
from marketplace.models import Offer, Project, Reservation
from provisioning.calendar import HOUR

Kind = PrepaidItem.Kind
Rows = Sequence[tuple[int, int, int]]


class Held(Protocol):
    """GPUs in each hour from a start to an end, and what a GPU-hour of them had cost."""

    @property
    def starts_at(self) -> datetime: ...
    @property
    def ends_at(self) -> datetime: ...
    @property
    def gpus(self) -> int: ...
    @property
    def paid_micros(self) -> int: ...


def rows_of(held: Sequence[Held]) -> Rows:
    """Return GPUs, hours and price of each of these."""
    return [(one.gpus, (one.ends_at - one.starts_at) // HOUR, one.paid_micros) for one in held]


def cost_micros(rows: Rows) -> int:
    """Return what hours had cost."""
    return sum(gpus * hours * micros for gpus, hours, micros in rows)


def block(
    kind: Kind,
    reservation_id: str,
    offer: Offer,
    project: Project,
    *,
    starts_at: datetime,
    ends_at: datetime,
    rows: Rows,
) -> Block:
    """Return hours of an offer that are paid for."""
    return Block(kind, reservation_id, offer.name, project.public_id, starts_at, ends_at, rows)


def given_back(kind: Kind, reservation: Reservation, held: Sequence[Held], *, micros: int) -> Block:
    """Return hours of a reservation for which so much is given back; the rest of what they had cost is kept."""
    rows = rows_of(held)
    return Block(
        kind,
        reservation.public_id,
        reservation.offer.name,
        reservation.project.public_id,
        min((one.starts_at for one in held), default=reservation.starts_at),
        max((one.ends_at for one in held), default=reservation.ends_at),
        rows,
        kept_micros=cost_micros(rows) - micros,
    )


def lost_hour(reservation: Reservation, lost: Sequence[int], *, hour: datetime) -> Block:
    """Return an hour of GPUs that could not be had, from what each had cost."""
    rows = [(gpus, 1, micros) for micros, gpus in sorted(Counter(lost).items(), reverse=True)]
    name, project = reservation.offer.name, reservation.project.public_id
    return Block(Kind.SHORTFALL, reservation.public_id, name, project, hour, hour + HOUR, rows)
