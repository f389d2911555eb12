"""How a line of results comes about, worked out a second time from units and prices.

Whether its money moved is for `billing.outcomes.audit`.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import NamedTuple

from billing.models import InvoicePrepaid, Outcome

HALF = Fraction(1, 2)


class OutcomeStep(NamedTuple):
    """Results that cost the same: units at a price for so many of them, the part of it that counts, and the amount.

    `unpaid_micros` is what a cap left out. Of what was given back there is the amount alone, below zero.
    """

    quantity: int
    unit: str
    micros_per_unit: int
    per: int
    bps: int
    unpaid_micros: int
    amount_micros: int


@dataclass(slots=True)
class OutcomeProof:
    """amount = the sum of count x (quantity x price x part / per, rounded half up, less what a cap left out)."""

    kind: str
    steps: Counter[OutcomeStep] = field(default_factory=Counter)
    written_micros: int = 0
    subjects: int = 0

    @property
    def rows(self) -> list[tuple[int, OutcomeStep]]:
        """How many results cost the same, and how; the most first."""
        return [(count, step) for step, count in self.steps.most_common()]

    @property
    def amount_micros(self) -> int:
        return sum(count * _amount(self.kind, step) for step, count in self.steps.items())

    @property
    def agrees(self) -> bool:
        return self.amount_micros == self.written_micros


def of_lines(line_ids: Collection[int]) -> dict[int, OutcomeProof]:
    """Return the proof of each of these lines that is of results; one query."""
    rows = InvoicePrepaid.objects.filter(line__in=line_ids, item__outcome__isnull=False)
    return _gathered(rows.select_related("item__outcome"))


def _gathered(rows: Iterable[InvoicePrepaid]) -> dict[int, OutcomeProof]:
    found: dict[int, OutcomeProof] = {}
    for row in rows:
        one = row.item.outcome
        assert one is not None
        proof = found.setdefault(row.line_id, OutcomeProof(one.kind))
        back = one.kind == Outcome.Kind.REVERSED
        step = OutcomeStep(
            one.quantity, one.unit, one.micros_per_unit, one.per, one.bps,
            0 if back else one.asked_micros - one.amount_micros, row.item.amount_micros,
        )  # fmt: skip
        proof.steps[step] += 1
        proof.written_micros += row.item.amount_micros
        proof.subjects += 1
    return found


def _amount(kind: str, step: OutcomeStep) -> int:
    if kind == Outcome.Kind.REVERSED:
        return step.amount_micros
    price = Fraction(step.quantity * step.micros_per_unit * step.bps, step.per * 10_000)
    return floor(price + HALF) - step.unpaid_micros
