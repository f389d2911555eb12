"""Revenue by day, offer, market and supplier. Its days and months are UTC, as those of the books are."""

from datetime import UTC
from typing import Any

from django.http import HttpResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from marketplace.console import revenue
from marketplace.console.door import managers_only
from marketplace.money import shown
from marketplace.portal import cost_filters, spending, stacks
from marketplace.portal.cost_filters import LENGTHS
from marketplace.portal.doors import Visit
from marketplace.portal.words import MARKETS

GROUPS = {"offer": _("Offer"), "market": _("Market"), "supplier": _("Supplier")}


@managers_only()
@timezone.override(UTC)
def page(visit: Visit) -> HttpResponse:
    """Show revenue by day with its table, and the month to date."""
    filters = cost_filters.read(visit, groups=GROUPS)
    month = spending.midnight(visit.at).replace(day=1)
    since, until = filters.edges[0], filters.edges[-1]
    everything = revenue.sold(min(since, month), max(until, spending.month_after(month)))
    found = everything.between(since, until)
    this_month = everything.between(month, spending.month_after(month))
    asked = visit.query("currency")
    currencies = sorted({*found.currencies, *this_month.currencies})
    currency = asked if asked in currencies else (found.currencies or ["USD"])[0]
    names: dict[str, dict[str, Any]] = {
        "offer": {**found.offers, "": _("Storage and what has no offer")},
        "market": {name: str(text) for name, text in MARKETS.items()},
        "supplier": {**found.suppliers, "": _("without a supplier")},
    }
    rows = found.of(currency)
    context = {
        "filters": filters,
        "currency": currency,
        "summed_at": everything.summed_at,
        "currencies": currencies,
        "groups": GROUPS.items(),
        "lengths": LENGTHS.items(),
        "months": cost_filters.months(visit.at),
        "chart": stacks.stacked(rows, filters.days, by=filters.by, names=names[filters.by], currency=currency),
        "month_to_date": [
            (one, shown(sum(row.micros for row in this_month.of(one)), one)) for one in this_month.currencies
        ],
    }
    return visit.page("console/revenue.html", context)


@managers_only()
@timezone.override(UTC)
def csv_file(visit: Visit) -> HttpResponse:
    """Download the same days, one row for each day, offer, market and supplier."""
    filters = cost_filters.read(visit, groups=GROUPS)
    found = revenue.sold(filters.edges[0], filters.edges[-1])
    answer = HttpResponse("".join(revenue.csv_of(found, found.rows)), content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="revenue-{filters.period}.csv"'
    return answer
