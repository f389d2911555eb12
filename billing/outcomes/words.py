"""What a result is to the till: how its price comes about, and who has which part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.accounts import Organization
from billing.errors import BadOutcome

BPS = 10_000


@dataclass(frozen=True, slots=True)
class Share:
    """A part of what results bring: a supplier's, or with None the platform's, in basis points."""

    supplier: Organization | None
    bps: int


@dataclass(frozen=True, slots=True)
class Item:
    """What a buyer pays for: `quantity` units at `micros_per_unit` for every `per` of them, `bps` of that.

    `version` is the contract's, `subject` what is paid for once. The name stands on the invoice.
    """

    name: str
    project: str
    quantity: int
    unit: str
    micros_per_unit: int
    version: str
    subject: str
    per: int = 1
    bps: int = BPS

    @property
    def asked_micros(self) -> int:
        """Return the price by its arithmetic alone, rounded half up once; a cap may lower it."""
        return price_micros(self.quantity, self.micros_per_unit, per=self.per, bps=self.bps)

    def check(self) -> None:
        """Raise BadOutcome for what cannot be counted."""
        if self.quantity < 0 or self.micros_per_unit < 0 or self.per < 1 or not 0 <= self.bps <= BPS:
            raise BadOutcome("units, their price and its part are not negative, and a price is for at least one unit")


def price_micros(quantity: int, micros_per_unit: int, *, per: int = 1, bps: int = BPS) -> int:
    """Return what units cost at a price for `per` of them, `bps` of it, rounded half up once."""
    whole = per * BPS
    return (2 * quantity * micros_per_unit * bps + whole) // (2 * whole)


def checked(shares: Sequence[Share]) -> list[tuple[int | None, int]]:
    """Return shares as they are written down, or raise BadOutcome where they are not the whole."""
    rows = [(share.supplier.pk if share.supplier else None, share.bps) for share in shares]
    if any(bps < 0 for _, bps in rows) or sum(bps for _, bps in rows) != BPS:
        raise BadOutcome("shares add up to 10,000 basis points, and none is negative")
    if len({owner for owner, _ in rows}) != len(rows):
        raise BadOutcome("each has one share")
    return rows
