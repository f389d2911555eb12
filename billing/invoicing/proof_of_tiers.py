"""How a line of tiers, a minimum or a commitment comes about, worked out a second time from what it was issued with.

Like `proof` it shares nothing with what issued it. Whether those quantities are
what the spans say is for `billing.recomputing`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from billing.models import CommitmentPrice, InvoiceAdjustment, PriceVersion

HOUR_MS = 3_600_000
HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class TierStep:
    """The part of a month's use that is in one tier; up to None is without end. `exact` is in micros."""

    from_unit_hours: int
    up_to_unit_hours: int | None
    unit_milliseconds: int
    micros_per_unit_hour: int

    @property
    def exact(self) -> Fraction:
        return Fraction(self.micros_per_unit_hour * self.unit_milliseconds, HOUR_MS)


@dataclass(frozen=True, slots=True)
class AdjustmentProof:
    """amount = what the tiers ask + what the commitment asks + what was missing to the minimum
    - what the charges took - what earlier invoices had."""

    written: InvoiceAdjustment
    steps: list[TierStep]
    committed_rate_micros: int | None

    @property
    def listed_micros(self) -> int:
        """What the use beyond a commitment costs by its tiers, rounded half up once."""
        return floor(sum((step.exact for step in self.steps), Fraction()) + HALF)

    @property
    def is_breakage(self) -> bool:
        return self.written.adjustment.price_version_id is None

    @property
    def rated_micros(self) -> int:
        left_over = self.written.rated_micros if self.is_breakage else self.listed_micros
        return left_over + self.written.committed_micros + self.written.minimum_micros

    @property
    def amount_micros(self) -> int:
        return self.rated_micros - self.written.base_micros - self.written.before_micros

    @property
    def agrees(self) -> bool:
        return self.amount_micros == self.written.amount_micros and self._commitment_agrees

    @property
    def _commitment_agrees(self) -> bool:
        """A commitment is rounded as a whole, so a part of it is less than a micro beside its own price."""
        if self.is_breakage:
            commitment = self.written.adjustment.commitment
            return commitment is not None and 0 <= self.written.rated_micros <= commitment.committed_micros
        covered = self.written.covered_unit_milliseconds
        if not covered:
            return self.written.committed_micros == 0
        exact = Fraction((self.committed_rate_micros or 0) * covered, HOUR_MS)
        return abs(exact - self.written.committed_micros) < 1


def of_lines(line_ids: Collection[int]) -> dict[int, AdjustmentProof]:
    """Return the proof of each of these lines that is of an adjustment; two queries."""
    rows = InvoiceAdjustment.objects.filter(line__in=line_ids)
    found = list(rows.select_related("adjustment__price_version", "adjustment__commitment"))
    agreed: dict[tuple[int, str], int] = {}
    if found:
        prices = CommitmentPrice.objects.filter(commitment__in=[row.adjustment.commitment_id for row in found])
        agreed = {(row.commitment_id, row.sku): row.micros_per_unit_hour for row in prices}
    return {row.line_id: _prove(row, agreed) for row in found}


def _prove(row: InvoiceAdjustment, agreed: dict[tuple[int, str], int]) -> AdjustmentProof:
    version = row.adjustment.price_version
    if version is None:
        return AdjustmentProof(row, [], None)
    rate = agreed.get((row.adjustment.commitment_id or 0, version.sku))
    return AdjustmentProof(row, _steps(version, row.unit_milliseconds - row.covered_unit_milliseconds), rate)


def _steps(version: PriceVersion, unit_ms: int) -> list[TierStep]:
    tiers = version.tiers or [[0, version.micros_per_unit_hour]]
    bounds = [hours for hours, _ in tiers[1:]] + [None]
    steps = [TierStep(0, None, 0, tiers[0][1])]
    if version.model == "volume":
        for (begin, micros), end in zip(tiers, bounds, strict=True):
            if unit_ms > begin * HOUR_MS:
                steps = [TierStep(begin, end, unit_ms, micros)]
        return steps
    found = []
    for (begin, micros), end in zip(tiers, bounds, strict=True):
        upto = unit_ms if end is None else min(unit_ms, end * HOUR_MS)
        if upto > begin * HOUR_MS:
            found.append(TierStep(begin, end, upto - begin * HOUR_MS, micros))
    return found or steps
