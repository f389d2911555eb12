"""What reserved hours cost whoever ran in them: a part of what was paid ahead, less what was given back of it."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import floor

from django.db.models import Q

from billing.models import UsageSpan
from billing.sla import availability
from billing.sla.availability import Stretch
from marketplace import holdings
from marketplace.models import ReservationState, ReservationStrip, Shortfall
from provisioning.calendar import HOUR, hour_of
from provisioning.models import Instance

HOUR_MS = 3_600_000
# Who lies down in a reservation ran in it no longer ago than this, or is not down any more.
LOOKED_BACK = timedelta(days=31)


@dataclass(frozen=True)
class Use:
    """An instance of a reservation: when it ran in it or should have, and when it did not although it should have.

    It is told by what was measured, so an instance that has left the reservation since counts as long as it was there.
    """

    instance: Instance
    reservation: str
    within: tuple[Stretch, ...]
    down: tuple[Stretch, ...]


@dataclass(frozen=True)
class Priced:
    """GPUs that a reservation has paid for and kept, and what an hour of one costs on average."""

    starts_at: datetime
    ends_at: datetime
    gpus: int
    micros: Fraction


# Of each reservation by its public id: what could not be had, by its hour.
Lost = Mapping[str, Mapping[datetime, Shortfall]]


def lost(reservations: Collection[str], begins: datetime, ends: datetime) -> Lost:
    """Return the hours of which these reservations had money given back. One query, or none."""
    found: dict[str, dict[datetime, Shortfall]] = defaultdict(dict)
    if reservations:
        rows = Shortfall.objects.filter(
            reservation__public_id__in=reservations, hour__gt=begins - HOUR, hour__lt=ends
        ).select_related("reservation")
        for row in rows:
            found[row.reservation.public_id][row.hour] = row
    return found


def beside(instances: Sequence[Instance], lost: Lost, begins: datetime, ends: datetime) -> list[Instance]:
    """Return who else was in the reservations that lost hours, since whose these were follows from all of them."""
    if not lost:
        return []
    there = UsageSpan.objects.filter(
        Q(ended_at=None) | Q(ended_at__gt=begins - LOOKED_BACK), covered_by__in=list(lost), started_at__lt=ends
    )
    others = Instance.objects.filter(public_id__in=there.values("resource_id"))
    others = others.exclude(pk__in=[one.pk for one in instances])
    return list(others.select_related("project__organization", "offer").order_by("pk"))


def paid_micros(uses: Iterable[Use], lost: Lost, begins: datetime, ends: datetime) -> dict[int, int]:
    """Return what each of these instances cost between two moments, by its primary key. One query, or none."""
    inside = [use for use in uses if use.within]
    strips = _strips({use.reservation for use in inside}, begins, ends)
    priced = {key: _priced(found, lost.get(key, {})) for key, found in strips.items()}
    missing = _missing(inside, lost)
    paid: dict[int, Fraction] = defaultdict(Fraction)
    for use in inside:
        found = priced.get(use.reservation, [])
        paid[use.instance.pk] += sum((_cost(use, part, missing) for part in found), Fraction(0))
    return {key: floor(micros) for key, micros in paid.items()}


# How many GPUs an instance lacked of a reservation in an hour that was given back.
Missing = Mapping[tuple[str, int, datetime], int]


def _cost(use: Use, part: Priced, missing: Missing) -> Fraction:
    """Its GPUs at what one costs then. It has none that were given back."""
    lasted = availability.total_ms(availability.within(use.within, part.starts_at, part.ends_at))
    gpus = use.instance.gpus - missing.get((use.reservation, use.instance.pk, hour_of(part.starts_at)), 0)
    return min(gpus, part.gpus) * part.micros * lasted / HOUR_MS


def _priced(strips: Sequence[ReservationStrip], lost: Mapping[datetime, Shortfall]) -> list[Priced]:
    """Cut what a reservation holds where its price changes, and at each hour of which something was given back.

    Hours of several prices count with their average, as nobody can tell which GPU is whose.
    """
    edges = {edge for one in strips for edge in (one.starts_at, one.ends_at)}
    inner = {edge for hour in lost for edge in (hour, hour + HOUR) if min(edges) < edge < max(edges)}
    found = []
    for begin, end in pairwise(sorted(edges | inner)):
        here = [one for one in strips if one.starts_at <= begin < one.ends_at]
        gpus, micros = sum(one.gpus for one in here), sum(one.gpus * one.paid_micros for one in here)
        if (gone := lost.get(hour_of(begin))) is not None:
            gpus, micros = gpus - gone.gpus, max(0, micros - gone.refund_micros)
        if gpus > 0:
            found.append(Priced(begin, end, gpus, Fraction(micros, gpus)))
    return found


def _missing(uses: Sequence[Use], lost: Lost) -> Missing:
    """Return how many GPUs each instance lacked in each hour that was given back: who was down longest comes first."""
    by_reservation: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_reservation[use.reservation].append(use)
    found = {}
    for reservation, hours in lost.items():
        for hour, gone in hours.items():
            left = gone.gpus
            for lasted, use in sorted(((_down_ms(use, hour), use) for use in by_reservation[reservation]), key=_turn):
                if lasted and left:
                    taken = min(left, use.instance.gpus)
                    found[reservation, use.instance.pk, hour] = taken
                    left -= taken
    return found


def _turn(waited: tuple[int, Use]) -> tuple[int, int]:
    lasted, use = waited
    return -lasted, use.instance.pk


def _down_ms(use: Use, hour: datetime) -> int:
    return availability.total_ms(availability.within(use.down, hour, hour + HOUR))


def _strips(reservations: Collection[str], begins: datetime, ends: datetime) -> dict[str, list[ReservationStrip]]:
    """Return the hours that these reservations hold, cut to the time that is asked for.

    One that was left because it was not delivered keeps its strips, but what came after that hour was given back.
    """
    found: dict[str, list[ReservationStrip]] = defaultdict(list)
    if reservations:
        strips = ReservationStrip.objects.filter(
            reservation__public_id__in=reservations, starts_at__lt=ends, ends_at__gt=begins
        )
        for strip in strips.select_related("reservation"):
            kept = strip.reservation
            until = hour_of(kept.state_since) + HOUR if kept.state == ReservationState.CANCELLED else ends
            found[kept.public_id] += holdings.clipped([strip], begins, min(until, ends))
    return found
