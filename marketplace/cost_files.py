"""Costs for spreadsheets and programs: the same rows from every door."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from marketplace import breakdown
from marketplace.breakdown import Cost
from marketplace.invoices.export import Echo, harmless
from marketplace.models import Organization
from marketplace.money import decimal_string


def document(
    organization: Organization, costs: Sequence[Cost], by: Sequence[str], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the sums by these dimensions, the names of projects beside their ids, and the sum of all."""
    return {
        "organization": {"id": organization.public_id, "name": organization.name},
        "currency": organization.currency,
        "by": list(by),
        "total": decimal_string(sum(cost.micros for cost in costs)),
        "data": [
            {name: _written(name, value, names) for name, value in zip(by, key, strict=True)}
            | {"amount": decimal_string(micros)}
            for key, micros in breakdown.summed(costs, by).items()
        ],
    }


def csv_of(
    organization: Organization, costs: Iterable[Cost], by: Sequence[str], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield the sums as CSV (RFC 4180), the names of the columns first; a project has its id and its name."""
    writer = csv.writer(Echo())
    columns = [column for name in by for column in ((name, "project_name") if name == "project" else (name,))]
    yield writer.writerow([*columns, "amount", "currency"])
    for key, micros in breakdown.summed(costs, by).items():
        cells: list[str] = []
        for name, value in zip(by, key, strict=True):
            cells += [value, harmless(names.get(value, ""))] if name == "project" else [_plain(name, value)]
        yield writer.writerow([*cells, decimal_string(micros), organization.currency])


def _written(name: str, value: Any, names: Mapping[str, str]) -> Any:
    return {"id": value, "name": names.get(value, "")} if name == "project" else _plain(name, value)


def _plain(name: str, value: Any) -> str:
    return f"{value:%Y-%m-%d}" if name == "day" else str(value)
