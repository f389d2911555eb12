"""What an invoice will say: lines, promotional credit, tax, what is paid. Pure arithmetic over what was read."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from billing.accounts import CustomerAccounts
from billing.invoicing import prepaid as ahead
from billing.invoicing import sellers, taxes
from billing.invoicing.adjusted import Adjusted
from billing.invoicing.pieces import Piece
from billing.invoicing.rounding import half_up, minor_unit_micros, shared_out
from billing.invoicing.taxes import Party, Tax
from billing.models import BillingDetails, PrepaidItem
from billing.months import month_of


@dataclass(slots=True)
class Line:
    """The pieces of one resource, meter, price version and market; those of an earlier period stand apart.

    Or what tiers or a commitment change, or what was paid ahead, which has no pieces; results of one resource at one
    price are one line.
    """

    key: str
    pieces: list[Piece]
    is_late: bool
    exact_micros: int
    amount_micros: int
    adjustment: Adjusted | None = None
    prepaid: list[PrepaidItem] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """An invoice without a number. `moves_micros` is what the ledger still has to take: tax, and the rounding."""

    payer: CustomerAccounts
    organization_id: int
    lines: list[Line]
    marked: list[Piece]
    period_start: datetime
    period_end: datetime
    seller: dict[str, Any]
    customer: dict[str, Any]
    language: str
    tax: Tax
    exact_micros: int
    exact_promo_micros: int
    subtotal_micros: int
    promo_micros: int
    tax_micros: int
    uninvoiced_micros: int

    @property
    def net_micros(self) -> int:
        return self.subtotal_micros - self.promo_micros

    @property
    def total_micros(self) -> int:
        return self.net_micros + self.tax_micros

    @property
    def rounding_micros(self) -> int:
        """What the invoice asks beyond what was taken for the use: less than a minor unit, of either sign."""
        return self.net_micros - (self.exact_micros - self.exact_promo_micros)


def drafted(
    *,
    payer: CustomerAccounts,
    found: list[Piece],
    adjusted: list[Adjusted],
    prepaid: list[PrepaidItem],
    promo_left_micros: int,
    last_end: datetime | None,
    cutoff: datetime,
    seller: BillingDetails,
    details: BillingDetails | None,
    name: str,
) -> Draft | None:
    """Return an organization's next invoice; None where it would ask for nothing or less: that waits for the next.

    `promo_left_micros` is the promotional credit that has paid for use and was
    on no invoice. It is a reduction of the price, so it comes off before the
    tax, and counts for the oldest use first. Of what was paid ahead each item
    says itself how much credit paid.
    """
    currency = payer.cash.currency
    unit = minor_unit_micros(currency)
    paid = [item for item in prepaid if item.at < cutoff]
    start = period_start(found, paid, last_end=last_end, cutoff=cutoff)
    before_cutoff = [piece for piece in found if piece.started_at < cutoff]
    counted = [piece for piece in before_cutoff if piece.adds_something]
    changed = [each for each in adjusted if each.month < cutoff]
    lines = lines_of(counted, changed, paid, start=start, unit=unit)
    exact, subtotal = sum(line.exact_micros for line in lines), sum(line.amount_micros for line in lines)
    promo_of_use = min(max(0, exact - sum(item.amount_micros for item in paid)), promo_left_micros)
    exact_promo = promo_of_use + sum(item.promo_micros for item in paid)
    promo = half_up(exact_promo, unit)
    # The sum of the lines may be below zero where what credit had paid was given back, and cash paid for use beside it.
    if subtotal <= promo:
        return None
    country = seller.country
    customer = sellers.snapshot(details, name=name, country=country)
    tax = taxes.decide(
        seller=Party(country, seller.tax_id),
        customer=Party(customer["country"], customer["tax_id"]),
        on=(cutoff - timedelta(milliseconds=1)).date(),
    )
    assert payer.cash.organization_id is not None
    return Draft(
        payer=payer,
        organization_id=payer.cash.organization_id,
        lines=lines,
        marked=before_cutoff,
        period_start=start,
        period_end=cutoff,
        seller=sellers.snapshot(seller, name="", country=country),
        customer=customer,
        language=details.language if details else BillingDetails.Language.ENGLISH,
        tax=tax,
        exact_micros=exact,
        exact_promo_micros=exact_promo,
        subtotal_micros=subtotal,
        promo_micros=promo,
        tax_micros=tax.micros(subtotal - promo, unit),
        uninvoiced_micros=max(
            0, _taken_after(found, adjusted, prepaid, cutoff=cutoff) - (promo_left_micros - promo_of_use)
        ),
    )


def _taken_after(found: list[Piece], adjusted: list[Adjusted], prepaid: list[PrepaidItem], *, cutoff: datetime) -> int:
    """Return what was taken and comes on a later invoice; of what was paid ahead, what credit did not pay."""
    taken = sum(piece.charged_micros for piece in found)
    taken -= sum(piece.whole_micros for piece in found if piece.started_at < cutoff)
    taken += sum(each.amount_micros for each in adjusted if each.month >= cutoff)
    return taken + sum(item.amount_micros - item.promo_micros for item in prepaid if item.at >= cutoff)


def period_start(
    found: list[Piece], paid: list[PrepaidItem], *, last_end: datetime | None, cutoff: datetime
) -> datetime:
    """Return where the period begins: with the month of the first thing that is not late, after the last invoice."""
    begins = [
        piece.since for piece in found if piece.since < piece.through and (not last_end or piece.since >= last_end)
    ]
    begins += [item.at for item in paid if not last_end or item.at >= last_end]
    month = month_of(min(begins, default=cutoff - timedelta(milliseconds=1)))
    return max(month, last_end) if last_end else month


def lines_of(
    found: list[Piece], adjusted: list[Adjusted], paid: list[PrepaidItem], *, start: datetime, unit: int
) -> list[Line]:
    """Return pieces gathered to lines, adjustments, and what was paid ahead, rounded as `rounding.shared_out` says."""
    gathered: dict[str, list[Piece]] = {}
    for piece in found:
        late = "/late" if piece.since < start or piece.through < piece.since else ""
        covered = f"/{piece.covered_by}" if piece.covered_by else ""
        key = f"{piece.resource_id}/{piece.meter}/{piece.price_public_id}/{piece.market}{covered}{late}"
        gathered.setdefault(key, []).append(piece)
    by_key = {each.public_id + ("/late" if each.ends <= start else ""): each for each in adjusted}
    exact = {key: sum(piece.amount_micros for piece in each) for key, each in gathered.items()}
    exact |= {key: each.amount_micros for key, each in by_key.items()}
    items: dict[str, list[PrepaidItem]] = {}
    for item in paid:
        items.setdefault(ahead.line_key(item) + ("/late" if item.at < start else ""), []).append(item)
    exact |= {key: sum(item.amount_micros for item in each) for key, each in items.items()}
    amounts = shared_out(exact, unit)
    return [
        Line(
            key=key,
            pieces=gathered.get(key, []),
            is_late=key.endswith("/late"),
            exact_micros=exact[key],
            amount_micros=amounts[key],
            adjustment=by_key.get(key),
            prepaid=items.get(key, []),
        )
        for key in exact
    ]
