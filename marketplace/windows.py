"""Free windows: when and where so many GPUs can be had for so long, and how full the hours to come are.

Each search is a fixed number of queries for all offers together and one pass over their hours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.utils.translation import gettext

from marketplace import blocks, matching, trades
from marketplace.blocks import Window
from marketplace.errors import BadOrder
from marketplace.matching import OFFER
from marketplace.models import Offer, Organization, Project
from provisioning import calendar, policies
from provisioning.calendar import HOUR

SEARCH_HOURS_MAX = 24 * 366


@dataclass(frozen=True)
class Wish:
    """So many GPUs for so many hours, within a stretch of time; `earliest` is the next full hour where it is None."""

    gpus: int
    hours: int
    latest_end: datetime
    earliest: datetime | None = None


@dataclass(frozen=True)
class Found:
    """The cheapest window of an offer. From the offer alone it is quoted; with resold hours in it, it is traded."""

    window: Window
    currency: str
    total_micros: int
    resold_gpu_hours: int
    dearest_micros: int


def search(*, organization: Organization, offers: Sequence[Offer], wish: Wish, at: datetime) -> list[Found]:
    """Return the cheapest window in each of these offers that has one, the cheapest first, then the earliest."""
    first, hours = _stretch(wish, at=at)
    terms = blocks.sold_ahead(offers)
    chosen = [offer for offer in offers if offer.pk in terms]
    supply = trades.supply_of(
        organization, chosen, terms, wish.gpus, wish.hours, starts_at=first, ends_at=first + hours * HOUR, at=at
    )
    found = []
    for offer in chosen:
        by_hour = supply[offer.pk]
        costs = [matching.cost_micros(by_hour.get(first + n * HOUR, ()), wish.gpus) for n in range(hours)]
        best = matching.cheapest_start(costs, hours=wish.hours)
        if best is None:
            continue
        start = first + best[0] * HOUR
        legs = matching.fill(by_hour, starts_at=start, ends_at=start + wish.hours * HOUR, gpus=wish.gpus)
        found.append(
            Found(
                window=Window(offer, wish.gpus, start, start + wish.hours * HOUR),
                currency=organization.currency,
                total_micros=best[1],
                resold_gpu_hours=sum(leg.gpus * leg.hours for leg in legs if leg.source != OFFER),
                dearest_micros=max(leg.price_micros for leg in legs),
            )
        )
    return sorted(found, key=lambda one: (one.total_micros, one.window.starts_at, one.window.offer.pk))


def allowed(*, offers: Iterable[Offer], projects: Iterable[Project]) -> list[Offer]:
    """Return the offers that policies let one of these projects use at least. Two queries at most.

    What nobody of those who ask could buy there is neither found nor free for them.
    """
    chosen, askers = list(offers), [project.pk for project in projects]
    excluded = policies.exclusions((project, offer.pk) for project in askers for offer in chosen)
    kept_out = {offer.pk for offer in chosen if askers and all((one, offer.pk) in excluded for one in askers)}
    return [offer for offer in chosen if offer.pk not in kept_out]


def _stretch(wish: Wish, *, at: datetime) -> tuple[datetime, int]:
    """Return the first hour of a search and how many there are, or raise BadOrder where it makes no sense."""
    if wish.gpus < 1:
        raise BadOrder("gpus", gettext("Ask for at least 1 GPU."))
    if wish.hours < 1:
        raise BadOrder("hours", gettext("Ask for at least 1 hour."))
    coming = calendar.hour_of(at) + HOUR
    first = max(coming, calendar.hour_of(wish.earliest)) if wish.earliest else coming
    hours = (wish.latest_end - first) // HOUR
    if hours < wish.hours:
        raise BadOrder(
            "before",
            gettext("%(hours)s hours do not fit between %(first)s and %(last)s UTC.")
            % {"hours": wish.hours, "first": f"{first:%Y-%m-%d %H:%M}", "last": f"{wish.latest_end:%Y-%m-%d %H:%M}"},
        )
    if hours > SEARCH_HOURS_MAX:
        raise BadOrder("before", gettext("Search at most %(days)s days ahead.") % {"days": SEARCH_HOURS_MAX // 24})
    return first, hours


@dataclass(frozen=True)
class Cell:
    """One hour of an offer: how many of its GPUs are still free, and of how many."""

    starts_at: datetime
    free: int
    gpus: int

    @property
    def used_percent(self) -> int:
        """How full it is; an offer without GPUs is full."""
        return 100 if not self.gpus else 100 - 100 * self.free // self.gpus

    @property
    def level(self) -> int:
        """A step from 0, all free, to 4, nothing free; a colour for each, whose word stands beside it."""
        if not self.free:
            return 4
        return min(3, self.used_percent // 25)


def heat(*, offers: Sequence[Offer], starts_at: datetime, hours: int) -> dict[int, list[Cell]]:
    """Return by offer how full each hour is from a start on, as last counted. Three queries."""
    free = calendar.free_by_hour(offer_ids=[offer.pk for offer in offers], starts_at=starts_at, hours=hours)
    gpus = calendar.gpus_of(offer_ids=list(free))
    return {
        pk: [Cell(starts_at + number * HOUR, left, gpus.get(pk, 0)) for number, left in enumerate(cells)]
        for pk, cells in free.items()
    }
