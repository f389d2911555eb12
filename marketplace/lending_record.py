"""How much of what spot ran on was lent, at every moment of a stretch, and by whom: worked out from stored rows.

What ran is in its meters (spans), what was reserved in the calendar, what each
holder had in strips, and when they lent in spells. So a charge is shared by
what was so while it ran, whenever it is shared. How many GPUs the offer has,
and how many of a reservation are missing, is kept as it is now alone.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from django.db.models import Q

from billing.models import UsageSpan
from billing.rating import MILLISECOND
from marketplace import coverage, holdings
from marketplace.blocks import NOTICE
from marketplace.models import LendingSpell, Offer, Reservation, ReservationStrip
from provisioning import calendar
from provisioning.calendar import HOUR, hour_of
from provisioning.models import Instance

# Of all that spot ran on, one part in so many.
SCALE = 10**9

Stretch = tuple[datetime, datetime | None, int]


@dataclass(frozen=True)
class Piece:
    """A stretch in which nothing changed: which part of spot's GPUs each reservation lent, by its primary key."""

    starts_at: datetime
    ends_at: datetime
    parts: dict[int, int]


@dataclass(frozen=True)
class Record:
    """Pieces without gaps, in order, and the reservations that lent."""

    pieces: Sequence[Piece]
    lenders: dict[int, Reservation]

    def weights(self, since: datetime, until: datetime) -> dict[int, int]:
        """Return for each lender its part of spot's GPUs, summed over the milliseconds of a stretch."""
        found: dict[int, int] = {}
        first = bisect_left(self.pieces, since, key=lambda piece: piece.ends_at)
        for piece in self.pieces[first:]:
            if piece.starts_at >= until:
                break
            milliseconds = (min(piece.ends_at, until) - max(piece.starts_at, since)) // MILLISECOND
            for pk, part in piece.parts.items():
                found[pk] = found.get(pk, 0) + part * milliseconds
        return found


@dataclass(frozen=True)
class _Lender:
    """One reservation that lent: its strips, when it lent, and what ran inside it."""

    reservation: Reservation
    strips: Sequence[ReservationStrip]
    spells: Sequence[Stretch]
    used: Sequence[Stretch]

    @property
    def edges(self) -> set[datetime]:
        strips = {edge for strip in self.strips for edge in (strip.starts_at, strip.ends_at, strip.ends_at - NOTICE)}
        return strips | _edges([*self.spells, *self.used])

    def idle(self, at: datetime) -> int:
        """Return how many GPUs it lent and did not use at a moment; none that it gave up within a notice."""
        if not _sum(self.spells, at):
            return 0
        held = min(holdings.held_at(self.strips, at), holdings.held_at(self.strips, at + NOTICE))
        return max(0, held - self.reservation.missing_gpus - _sum(self.used, at))


def between(offer: Offer, since: datetime, until: datetime) -> Record:
    """Return the record of an offer from `since` to `until`. Nine queries at most."""
    lenders = _lenders(offer, since, until)
    spans = _spans(offer, since, until)
    spot = [span for market, span in spans if market == Instance.Market.SPOT]
    open_ended = [span for market, span in spans if market == Instance.Market.ON_DEMAND]
    gpus = calendar.gpus_of_offer(offer.pk) + coverage.uncounted_gpus(offer_id=offer.pk, starts_at=since, ends_at=until)
    committed = calendar.committed(offer_ids=[offer.pk], starts_at=since, ends_at=until)[offer.pk]
    edges = {since, until} | _edges([*spot, *open_ended]) | {edge for lender in lenders for edge in lender.edges}
    edges |= set(committed) | {hour + HOUR for hour in committed}
    pieces = []
    for begin, end in pairwise(sorted(edge for edge in edges if since <= edge <= until)):
        free = max(0, gpus - _sum(open_ended, begin) - committed.get(hour_of(begin), 0))
        pieces.append(Piece(begin, end, _parts(lenders, spot=_sum(spot, begin), free=free, at=begin)))
    return Record(pieces, {lender.reservation.pk: lender.reservation for lender in lenders})


def _parts(lenders: Sequence[_Lender], *, spot: int, free: int, at: datetime) -> dict[int, int]:
    """Return which part of spot's GPUs each lent: spot takes what is promised to nobody first, then what is lent."""
    idle = {lender.reservation.pk: gpus for lender in lenders if (gpus := lender.idle(at))}
    everything = sum(idle.values())
    lent = min(max(0, spot - free), everything)
    return {pk: SCALE * lent * gpus // (spot * everything) for pk, gpus in idle.items()} if lent else {}


def _lenders(offer: Offer, since: datetime, until: datetime) -> list[_Lender]:
    overlap = Q(ends_at=None) | Q(ends_at__gt=since)
    rows = LendingSpell.objects.filter(overlap, reservation__offer=offer, starts_at__lt=until)
    spells: dict[int, list[Stretch]] = {}
    for pk, begin, end in rows.values_list("reservation", "starts_at", "ends_at"):
        spells.setdefault(pk, []).append((begin, end, 1))
    related = Reservation.objects.select_related("project__organization", "price_version").prefetch_related("strips")
    found = list(related.filter(pk__in=list(spells)).order_by("pk"))
    used: dict[str, list[Stretch]] = {one.public_id: [] for one in found}
    covered = UsageSpan.objects.filter(covered_by__in=list(used), resource_id__in=_lately(offer, since))
    for name, begin, end, gpus in covered.values_list("covered_by", "started_at", "ended_at", "quantity"):
        used[name].append((begin, end, gpus))
    return [_Lender(one, list(one.strips.all()), spells[one.pk], used[one.public_id]) for one in found]


def _spans(offer: Offer, since: datetime, until: datetime) -> list[tuple[str, Stretch]]:
    overlap = Q(ended_at=None) | Q(ended_at__gt=since)
    rows = UsageSpan.objects.filter(overlap, resource_id__in=_lately(offer, since), started_at__lt=until)
    return [
        (market, (begin, end, gpus))
        for market, begin, end, gpus in rows.values_list("labels__market", "started_at", "ended_at", "quantity")
    ]


def _lately(offer: Offer, since: datetime) -> list[str]:
    """Return what has GPUs of an offer now, or had some since a moment."""
    ran = Instance.objects.filter(offer=offer, ready_at__isnull=False)
    recent = ran.filter(phase_since__gte=since) | ran.filter(quota_held__gt=0)
    return list(recent.values_list("public_id", flat=True))


def _edges(stretches: Sequence[Stretch]) -> set[datetime]:
    return {edge for begin, end, _ in stretches for edge in (begin, end) if edge is not None}


def _sum(stretches: Sequence[Stretch], at: datetime) -> int:
    return sum(gpus for begin, end, gpus in stretches if begin <= at and (end is None or at < end))
