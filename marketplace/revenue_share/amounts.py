"""What a period of a share of revenue costs: a pure function of its terms, the revenue and the metered cost.

share   = revenue x share_bps / 10,000, rounded half up, no more than the cap
total   = the greatest of share, minimum and (where the terms say so) the metered cost, no more than the cap
true-up = total - share
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from billing.outcomes.words import price_micros


@dataclass(frozen=True, slots=True)
class Due:
    """What is asked for a period: of it the share itself, and what is missing to the least that it costs.

    `is_metered` says that the metered cost is that least, and not the minimum.
    """

    share_micros: int
    total_micros: int
    is_metered: bool = False

    @property
    def missing_micros(self) -> int:
        return self.total_micros - self.share_micros


def due(revenue: Mapping[str, Any], *, revenue_micros: int, metered_micros: int) -> Due:
    """Return what a period costs under the terms' `revenue`."""
    most = revenue["cap_micros"]
    share = price_micros(revenue_micros, 1, bps=revenue["share_bps"])
    floor = metered_micros if revenue["true_up"] == "metered_cost" else 0
    total = max(share, revenue["minimum_micros"], floor)
    if most is not None:
        share, total = min(share, most), min(total, most)
    return Due(share, total, is_metered=floor > revenue["minimum_micros"])


class Step(NamedTuple):
    """One line of the arithmetic: `revenue`, `share`, `minimum`, `metered_cost`, `cap`, `true_up` or `total`."""

    name: str
    micros: int


def steps(revenue: Mapping[str, Any], *, revenue_micros: int, metered_micros: int) -> Iterator[Step]:
    """Yield what a period costs line by line, as it was reckoned."""
    found = due(revenue, revenue_micros=revenue_micros, metered_micros=metered_micros)
    yield Step("revenue", revenue_micros)
    yield Step("share", price_micros(revenue_micros, 1, bps=revenue["share_bps"]))
    yield Step("minimum", revenue["minimum_micros"])
    if revenue["true_up"] == "metered_cost":
        yield Step("metered_cost", metered_micros)
    if revenue["cap_micros"] is not None:
        yield Step("cap", revenue["cap_micros"])
    yield Step("true_up", found.missing_micros)
    yield Step("total", found.total_micros)


class First(NamedTuple):
    """What a period asks when it is due: `rule` is empty where it goes by a statement."""

    rule: str
    revenue_micros: int
    due: Due


def first(
    revenue: Mapping[str, Any], *, said_micros: int | None, last_micros: int | None, metered_micros: int
) -> First:
    """Return what a period asks when it is due: by what was stated of it, else by its terms' rule for overdue ones."""
    rule, micros = "", said_micros or 0
    if said_micros is None:
        rule, micros = estimated_micros(revenue, last_micros=last_micros, metered_micros=metered_micros)
        micros = micros if rule == "last_statement" else 0
    terms = by_rule(revenue, rule)
    return First(rule, micros, due(terms, revenue_micros=micros, metered_micros=metered_micros))


def by_rule(revenue: Mapping[str, Any], rule: str) -> Mapping[str, Any]:
    """An estimate by the metered cost asks at least that, whatever the terms say of statements."""
    return {**revenue, "true_up": "metered_cost"} if rule == "metered_cost" else revenue


def estimated_micros(revenue: Mapping[str, Any], *, last_micros: int | None, metered_micros: int) -> tuple[str, int]:
    """Return by which rule an overdue period is estimated, and the revenue or least cost that it stands for.

    Of `metered_cost` the amount is a cost and no revenue; `last_statement` without one before is the minimum.
    """
    rule = revenue["if_overdue"]
    if rule == "last_statement" and last_micros is not None:
        return "last_statement", last_micros
    if rule == "metered_cost":
        return "metered_cost", metered_micros
    return "minimum", 0
