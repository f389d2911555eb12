"""Bidding in the launch form: whether an offer is sold by auction, what a bid means, and whether it would be taken."""

from dataclasses import dataclass, replace

from django.utils.translation import gettext as _

from billing import accounts
from marketplace import bids, spot, spot_market
from marketplace.errors import BadOrder
from marketplace.models import Offer
from marketplace.money import plain, shown, typed_micros
from marketplace.portal.doors import Visit

MARKET = "spot"


@dataclass(frozen=True)
class Bidding:
    """An offer's auctions beside its price on demand, and what a bid for it would mean. Amounts in micros."""

    found: spot_market.Spot
    is_chosen: bool
    price_micros: int | None
    gpus: int

    @property
    def currency(self) -> str:
        return self.found.terms.currency

    @property
    def suggestion(self) -> str:
        """What to bid where nothing is typed: the price on demand, which wins first and pays what the auction gives."""
        micros = self.found.ceiling_micros or self.found.terms.reserve_micros
        return plain(micros - micros % self.found.terms.grid_micros)

    @property
    def worst_hour_micros(self) -> int:
        return self.gpus * (self.price_micros or 0)

    @property
    def now_hour_micros(self) -> int:
        return self.gpus * self.found.price_micros

    @property
    def held_micros(self) -> int:
        return bids.funds_micros(self.found.terms, price_micros=self.price_micros or 0, gpus=self.gpus)


def bidding(visit: Visit, offer: Offer, *, currency: str, market: str, typed: str, gpus: int) -> Bidding | None:
    """Return what bidding for an offer would mean, or None where it is not sold by auction in this currency."""
    terms = spot_market.sold_by_auction([offer], currency=currency).get(offer.pk)
    if terms is None:
        return None
    found = Bidding(
        found=spot_market.spot_for(offer, at=visit.at),
        is_chosen=market == MARKET,
        price_micros=micros_of(typed),
        gpus=gpus,
    )
    # Before anything is typed, what the form suggests counts.
    return found if typed else replace(found, price_micros=micros_of(found.suggestion))


def micros_of(typed: str) -> int | None:
    """Return an amount that was typed, or None for what is none; a comma is as good as a point."""
    return typed_micros(typed.replace(",", "."))


def amount_error() -> str:
    return _("Type an amount, such as 1.25.")


def price_problem(one: Bidding, visit: Visit) -> str:
    """Return why a bid of this price would be refused, or nothing."""
    if one.price_micros is None:
        return amount_error()
    try:
        bids.check_price(one.found.terms, one.price_micros, at=visit.at)
        spot.check_capacity(one.found.terms, one.gpus)
    except BadOrder as error:
        return str(error)
    return ""


def funds_text(one: Bidding, wallet: accounts.Wallet) -> tuple[bool, str]:
    """Return whether the bid's funds are there, and say what is set aside."""
    texts = {
        "free": shown(wallet.available_micros, wallet.currency),
        "held": shown(one.held_micros, wallet.currency, exact=True),
    }
    if one.held_micros <= wallet.available_micros:
        return True, _("%(free)s of credit is free; the bid sets %(held)s aside.") % texts
    return False, _("The bid sets %(held)s aside; %(free)s of credit is free.") % texts
