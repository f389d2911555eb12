"""How a line of what was paid ahead comes about, worked out a second time from its hours.

Whether its money moved is for `billing.prepaid_audit`.
"""

from collections.abc import Collection
from dataclasses import dataclass

from billing.models import InvoicePrepaid, PrepaidItem


@dataclass(frozen=True, slots=True)
class HoursStep:
    """GPUs for whole hours at one price."""

    gpus: int
    hours: int
    micros_per_gpu_hour: int


@dataclass(frozen=True, slots=True)
class PrepaidProof:
    """A purchase is GPUs x hours x price; what is given back is that less what is kept, below zero."""

    written: PrepaidItem
    steps: list[HoursStep]

    @property
    def hours_micros(self) -> int:
        cost = 0
        for step in self.steps:
            cost += step.gpus * step.hours * step.micros_per_gpu_hour
        return cost

    @property
    def is_given_back(self) -> bool:
        return self.written.amount_micros < 0

    @property
    def amount_micros(self) -> int:
        """What its hours say; of one from before they were kept, what was written down."""
        if not self.steps:
            return self.written.amount_micros
        return self.written.kept_micros - self.hours_micros if self.is_given_back else self.hours_micros

    @property
    def agrees(self) -> bool:
        return self.amount_micros == self.written.amount_micros


def of_lines(line_ids: Collection[int]) -> dict[int, PrepaidProof]:
    """Return the proof of each of these lines that is of something paid ahead; one query."""
    rows = InvoicePrepaid.objects.filter(line__in=line_ids, item__outcome=None).select_related("item")
    return {row.line_id: PrepaidProof(row.item, [HoursStep(*step) for step in row.item.hours]) for row in rows}
