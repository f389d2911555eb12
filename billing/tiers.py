"""From a month of use to money: tiers, minimums and commitments as pure functions over whole numbers.

Use is unit-milliseconds, and an exact amount is a product of units, micros per
unit-hour and milliseconds, which `rating.rounded_micros` rounds once. What is
posted is always the whole of a month until now less what was posted before, so
the total does not depend on how often anybody looks.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from billing.errors import BadTiers
from billing.models import PriceListItem, PriceModel, PriceVersion
from billing.rating import MILLISECONDS_PER_HOUR, rounded_micros

TIERS_MAX = 20
MICROS_MAX = 10**15  # a billion of the currency for an hour
HOURS_MAX = 10**12


@dataclass(frozen=True, slots=True)
class Terms:
    """What a price version says. `tiers` are pairs of the unit-hours from which they hold, and micros; none if flat."""

    model: str
    micros_per_unit_hour: int
    tiers: tuple[tuple[int, int], ...] = ()
    minimum_micros: int = 0


def terms(row: PriceVersion | PriceListItem) -> Terms:
    """Return what a price version, or an item of a list, says."""
    return Terms(
        model=row.model,
        micros_per_unit_hour=row.micros_per_unit_hour,
        tiers=tuple((hours, micros) for hours, micros in row.tiers),
        minimum_micros=row.minimum_micros,
    )


def tiers_of(rows: Sequence[tuple[int, int | None, int]]) -> list[list[int]]:
    """Return tiers as they are stored, from rows of (from, up to, micros per unit-hour); the last has no end.

    Raises BadTiers where they leave a gap, overlap, begin above zero or end, or where a price is not positive.
    """
    if not 1 <= len(rows) <= TIERS_MAX:
        raise BadTiers("count", f"there are 1 to {TIERS_MAX} tiers")
    expected: int | None = 0
    for begin, end, micros in rows:
        if expected is None:
            raise BadTiers("overlap", "only the last tier has no end")
        if begin > expected:
            raise BadTiers("gap", f"nothing is said of {expected} to {begin} hours")
        if begin < expected:
            raise BadTiers("overlap", f"two tiers hold at {begin} hours")
        if end is not None and not begin < end <= HOURS_MAX:
            raise BadTiers("order", f"a tier from {begin} cannot end at {end} hours")
        if not 0 < micros <= MICROS_MAX:
            raise BadTiers("price", "a price is more than nothing and at most a billion")
        expected = end
    if expected is not None:
        raise BadTiers("gap", f"nothing is said of more than {expected} hours")
    return [[begin, micros] for begin, _, micros in rows]


def product(said: Terms, unit_ms: int) -> int:
    """Return the exact price of a month's use. A volume tier holds up to and including the hour at which it ends."""
    assert unit_ms >= 0
    if said.model == PriceModel.FLAT:
        return said.micros_per_unit_hour * unit_ms
    starts = [hours * MILLISECONDS_PER_HOUR for hours, _ in said.tiers]
    rates = [micros for _, micros in said.tiers]
    if said.model == PriceModel.VOLUME:
        reached = max((place for place, start in enumerate(starts) if start < unit_ms), default=0)
        return rates[reached] * unit_ms
    ends = [*starts[1:], max(unit_ms, starts[-1])]
    return sum(
        rate * (min(unit_ms, end) - start)
        for rate, start, end in zip(rates, starts, ends, strict=True)
        if unit_ms > start
    )


@dataclass(frozen=True, slots=True)
class Use:
    """What an organization used at one price version in one month, and what charges take for it."""

    price_version_id: int
    sku: str
    effective_from: datetime
    terms: Terms
    month: datetime
    is_over: bool
    unit_ms: int
    base_micros: int


@dataclass(frozen=True, slots=True)
class Promise:
    """A commitment as far as arithmetic needs it; `before` is what months before these uses drew, in exact terms.

    `size` and what is drawn of it count exact micros (spend) or unit-milliseconds (hours).
    """

    key: int
    is_spend: bool
    size: int
    prices: Mapping[str, int]
    starts_at: datetime
    ends_at: datetime
    committed_micros: int
    unit_ms_before: int = 0
    product_before: int = 0

    def covers(self, use: Use) -> bool:
        return use.sku in self.prices and self.starts_at <= use.month < self.ends_at


@dataclass(slots=True)
class Rated:
    """What a `Use` costs: what a commitment covers at its price, the rest by the terms, at least the minimum."""

    use: Use
    promise_key: int | None = None
    covered_unit_ms: int = 0
    committed_micros: int = 0
    listed_micros: int = 0
    minimum_micros: int = 0

    @property
    def rated_micros(self) -> int:
        return self.listed_micros + self.committed_micros + self.minimum_micros

    @property
    def amount_micros(self) -> int:
        return self.rated_micros - self.use.base_micros


@dataclass(slots=True)
class Drawn:
    """What was drawn of a commitment after all uses: never more than it has."""

    unit_ms: int
    product: int
    rated: list[Rated] = field(default_factory=list)


def rate(uses: Iterable[Use], promises: Sequence[Promise]) -> tuple[list[Rated], dict[int, Drawn]]:
    """Return what an organization's uses cost, and what they drew of its commitments by their keys.

    Commitments are drawn month by month, in a month in the order of price versions. Of one thing at a time there is
    one. What they cover counts for no tier.
    """
    found = [Rated(use) for use in sorted(uses, key=lambda use: (use.month, use.price_version_id))]
    drawn = {each.key: Drawn(each.unit_ms_before, each.product_before) for each in promises}
    for rated in found:
        promise = next((each for each in promises if each.covers(rated.use)), None)
        if promise is not None:
            _draw(rated, promise, drawn[promise.key])
        rest_ms = rated.use.unit_ms - rated.covered_unit_ms
        rated.listed_micros = rounded_micros(product(rated.use.terms, rest_ms))
    _raise_to_minimum(found)
    return found, drawn


def _draw(rated: Rated, promise: Promise, drawn: Drawn) -> None:
    price = promise.prices[rated.use.sku]
    left = promise.size - (drawn.product if promise.is_spend else drawn.unit_ms)
    rated.promise_key = promise.key
    rated.covered_unit_ms = min(rated.use.unit_ms, left // price if promise.is_spend else left)
    before = rounded_micros(drawn.product)
    drawn.unit_ms += rated.covered_unit_ms
    drawn.product += price * rated.covered_unit_ms
    drawn.rated.append(rated)
    # The commitment is rounded as a whole: its parts add up to what it is worth.
    rated.committed_micros = rounded_micros(drawn.product) - before


def _raise_to_minimum(found: Sequence[Rated]) -> None:
    """Let the latest version used of a thing in a month that is over ask what is missing to its minimum."""
    by_month: dict[tuple[str, datetime], list[Rated]] = defaultdict(list)
    for rated in found:
        if rated.use.is_over and rated.use.unit_ms:
            by_month[rated.use.sku, rated.use.month].append(rated)
    for each in by_month.values():
        last = max(each, key=lambda rated: (rated.use.effective_from, rated.use.price_version_id))
        costs = sum(rated.rated_micros for rated in each)
        last.minimum_micros = max(0, last.use.terms.minimum_micros - costs)
