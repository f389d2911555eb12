"""A draft as a table that is typed: one row for each thing, its tiers line by line, errors beside what was typed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django.utils.translation import gettext as _

from billing import price_lists
from billing.errors import BadPrice
from billing.models import PriceListItem, PriceModel
from billing.price_lists import Item
from marketplace import money
from marketplace.console.pricing import problem
from marketplace.wares import Ware

# 2.50, or 0-100 2.50, or 100- 2.25
LINE = re.compile(r"(?:(?P<begin>[0-9]{1,12})\s*[-–—]\s*(?P<end>[0-9]{1,12})?\s*[:=]?\s)?\s*(?P<price>\S+)", re.ASCII)


@dataclass(slots=True)
class Row:
    """One thing as it is typed; without a price it is not in the list."""

    ware: Ware
    model: str = PriceModel.FLAT
    prices: str = ""
    minimum: str = ""
    errors: list[str] = field(default_factory=list)
    item: Item | None = None

    @property
    def lines(self) -> int:
        """How tall its field is."""
        return max(1, min(8, self.prices.count("\n") + 1))


def rows_of(items: Iterable[PriceListItem], wares: Iterable[Ware]) -> list[Row]:
    """Return the table of a draft: what it names, then what it could name."""
    known = {ware.sku: ware for ware in wares}
    rows = []
    for item in items:
        ware = known.pop(item.sku, None) or Ware(item.sku, item.name, item.unit)
        rows.append(
            Row(
                ware=ware,
                model=item.model,
                prices=_written(item),
                minimum=money.plain(item.minimum_micros) if item.minimum_micros else "",
            )
        )
    return rows + [Row(ware) for ware in known.values()]


def read(rows: list[Row], typed: Mapping[str, str], *, currency: str) -> bool:
    """Take over what was typed into a table, with what is wrong beside each row; return whether nothing is."""
    for number, row in enumerate(rows):
        row.model = typed.get(f"model-{number}", row.model)
        row.prices = typed.get(f"prices-{number}", "").strip()
        row.minimum = typed.get(f"minimum-{number}", "").strip()
        if row.prices:
            _read(row, currency)
        elif row.minimum:
            row.errors.append(_("A minimum needs a price."))
    return not any(row.errors for row in rows)


def _read(row: Row, currency: str) -> None:
    tiers = _tiers(row)
    minimum = money.typed_micros(row.minimum) if row.minimum else 0
    if minimum is None:
        row.errors.append(_("Write a minimum such as 100 or 99.50: digits, six decimal places at most."))
    if row.errors or minimum is None:
        return
    item = Item(
        sku=row.ware.sku,
        name=row.ware.name,
        unit=row.ware.unit,
        model=row.model,
        rows=tuple(tiers),
        minimum_micros=minimum,
    )
    try:
        price_lists.checked(item, currency=currency)
    except BadPrice as error:
        row.errors.append(problem(error))
        return
    row.item = item


def _tiers(row: Row) -> list[tuple[int, int | None, int]]:
    found = []
    for line in filter(str.strip, row.prices.splitlines()):
        read = LINE.fullmatch(line.strip())
        micros = money.typed_micros(read["price"]) if read else None
        if read is None or micros is None:
            row.errors.append(
                _("“%(line)s” is no price: write 2.50, or hours and a price such as 0-100 2.50, with six decimal"
                  " places at most.") % {"line": line.strip()[:60]}
            )  # fmt: skip
            continue
        begin = int(read["begin"]) if read["begin"] else 0
        found.append((begin, int(read["end"]) if read["end"] else None, micros))
    return found


def _written(item: PriceListItem) -> str:
    if not item.tiers:
        return money.plain(item.micros_per_unit_hour)
    ends = [str(hours) for hours, _micros in item.tiers[1:]] + [""]
    return "\n".join(
        f"{begin}-{end} {money.plain(micros)}" for (begin, micros), end in zip(item.tiers, ends, strict=True)
    )
