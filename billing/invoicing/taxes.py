"""Which tax an invoice carries: a pure function of seller, customer and day over the table in `taxes.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from billing.models import Invoice

EU = frozenset(
    "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split()  # noqa: SIM905
)
BPS = 10_000
TABLE: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("taxes.toml").read_text(encoding="utf-8"))

COUNTRIES = frozenset(TABLE["countries"].split())

Treatment = Invoice.Treatment


@dataclass(frozen=True)
class Party:
    """A seller or customer as taxes see them; `tax_id` is one that has the form of its country, or empty."""

    country: str
    tax_id: str = ""


@dataclass(frozen=True)
class Tax:
    """What is asked for: where, under which name, and how much in basis points."""

    treatment: Treatment
    country: str = ""
    name: str = ""
    rate_bps: int = 0

    def micros(self, net_micros: int, unit: int) -> int:
        """Return the tax on an invoice's net amount: rounded half up once, for the rate as a whole."""
        assert net_micros >= 0
        return (2 * net_micros * self.rate_bps + BPS * unit) // (2 * BPS * unit) * unit


def rate_bps(country: str, on: date) -> int:
    """Return a country's standard rate on a day; 0 where the table has none."""
    began = [row for row in TABLE["rates"].get(country, ()) if row["from"] <= on]
    return max(began, key=lambda row: row["from"])["bps"] if began else 0


def decide(*, seller: Party, customer: Party, on: date) -> Tax:
    """Return the tax on a service that is delivered electronically.

    * Seller without such a tax at home (US): none. Customer's country without: outside of the scope.
    * Both in one country: its rate.
    * A customer with a tax id elsewhere: reverse charge (in the EU: article 196 of directive 2006/112/EC).
    * A customer without one, both in the EU: the rate of the customer's country (one-stop shop).
    * Any other customer abroad: outside of the scope of the seller's tax.
    """
    at_home, abroad = rate_bps(seller.country, on), rate_bps(customer.country, on)
    if not at_home:
        return Tax(Treatment.OUTSIDE)
    if seller.country == customer.country:
        return Tax(Treatment.DOMESTIC, seller.country, name_of(seller.country), at_home)
    if not abroad:
        return Tax(Treatment.OUTSIDE)
    if customer.tax_id:
        return Tax(Treatment.REVERSE_CHARGE, customer.country, name_of(customer.country))
    if {seller.country, customer.country} <= EU:
        return Tax(Treatment.DESTINATION, customer.country, name_of(customer.country), abroad)
    return Tax(Treatment.OUTSIDE)


def name_of(country: str) -> str:
    """Return what a country's tax is called."""
    return str(TABLE["taxes"].get(country, {}).get("name", "VAT"))
