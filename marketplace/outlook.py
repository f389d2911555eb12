"""What can be said of an order that does not fit now: what fits instead, and when GPUs come free."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import F, Sum
from django.db.models.functions import Coalesce

from billing.models import PriceVersion
from marketplace import offers, rentals, waiting
from marketplace.errors import BadOrder
from marketplace.models import Offer, Project, WaitingOrder
from provisioning import calendar, policies, prospects
from provisioning.models import Instance, Phase
from provisioning.placing import policy

ESTIMATED_FROM = timedelta(hours=24)
NEAREST_MAX = 3

State = WaitingOrder.State
Why = WaitingOrder.Why


@dataclass(frozen=True)
class Nearest:
    """Something of the same GPU model that could start now."""

    offer: Offer
    price: PriceVersion
    gpus: int
    replicas: int


@dataclass(frozen=True)
class Outlook:
    """How it stands with an order of this size: now, instead, and later.

    `next_window` is when reservations leave room, as far as they are known;
    `estimate` is a guess from how fast GPUs came free in the last day. Both are
    None where nothing can be said.
    """

    fits_now: bool
    nearest: list[Nearest]
    next_window: datetime | None
    ahead: int
    gpus_ahead: int
    estimate: datetime | None
    as_of: datetime


def look(*, project: Project, offer: Offer, gpus: int, replicas: int, at: datetime) -> Outlook:
    """Return what can be said of an order for this offer now. Nothing is held and nothing promised."""
    rentals.check_size(rentals.Order(offer=offer, command=[], gpus=gpus, replicas=replicas))
    ahead = WaitingOrder.objects.filter(waiting.WAITING, offer=offer, why=Why.CAPACITY)
    gpus_ahead = waiting.gpus_of(ahead)
    wanted = gpus * replicas
    next_window = calendar.next_open(offer_id=offer.pk, gpus=wanted, at=at)
    return Outlook(
        fits_now=not policies.exclusions([(project.pk, offer.pk)])
        and not gpus_ahead
        and prospects.room(project_id=project.pk, offer_id=offer.pk, gpus=gpus).together >= replicas
        and next_window == at,
        nearest=_nearest(project, offer, gpus, replicas, at),
        next_window=next_window,
        ahead=ahead.count(),
        gpus_ahead=gpus_ahead,
        estimate=_guess(gpus_ahead + wanted, _came_free(offer, at), at),
        as_of=at,
    )


def estimates(entries: Iterable[WaitingOrder], *, at: datetime) -> dict[int, datetime]:
    """Return by primary key a guess when each order starts, from how fast its offer's GPUs came free in the last day.

    Those of which nothing can be guessed are left out. Two queries for each queue.
    """
    found: dict[int, datetime] = {}
    waits = [entry for entry in entries if entry.state == State.WAITING and entry.why == Why.CAPACITY]
    for offer in {entry.offer for entry in waits}:
        queue = WaitingOrder.objects.filter(waiting.WAITING, offer=offer, why=Why.CAPACITY).order_by("pk")
        guesses, before = {}, 0
        pace = _came_free(offer, at)
        for pk, gpus in queue.annotate(wanted=F("gpus") * F("replicas")).values_list("pk", "wanted"):
            before += gpus
            guesses[pk] = _guess(before, pace, at)
        found |= {entry.pk: guess for entry in waits if entry.offer == offer and (guess := guesses.get(entry.pk))}
    return found


def _nearest(project: Project, offer: Offer, gpus: int, replicas: int, at: datetime) -> list[Nearest]:
    """Return what could start now: less of this offer, then as much of others of its model, the cheapest first."""
    same = Offer.objects.filter(gpu_model=offer.gpu_model, is_listed=True).select_related("site")
    listings = offers.listings(same, currency=project.organization.currency, at=at)
    kept = [policies.of(project_id=project.pk), policies.of(organization_id=project.organization_id)]
    documents = [row.document for row in kept if row is not None]
    found = []
    for listing in sorted(listings, key=lambda one: one.price.micros_per_unit_hour):
        if policy.broken_by(documents, policies.facts_of(listing.offer.pk)):
            continue
        for fewer in _shapes(project, listing.offer, gpus, replicas):
            if (listing.offer != offer) != (fewer == (gpus, replicas)):
                continue  # Less of this offer, or all of it from another.
            if _is_sold(listing.offer, *fewer):
                found.append(Nearest(listing.offer, listing.price, *fewer))
                break
    return sorted(found, key=lambda one: one.offer != offer)[:NEAREST_MAX]


def _shapes(project: Project, offer: Offer, gpus: int, replicas: int) -> list[tuple[int, int]]:
    """Return what of a shape fits now, the largest first: fewer replicas, else fewer GPUs on one node."""
    room = prospects.room(project_id=project.pk, offer_id=offer.pk, gpus=gpus)
    fewer = min(replicas, room.together)
    return ([(gpus, fewer)] if fewer else []) + ([(room.largest, 1)] if 0 < room.largest < gpus else [])


def _is_sold(offer: Offer, gpus: int, replicas: int) -> bool:
    try:
        rentals.check_size(rentals.Order(offer=offer, command=[], gpus=gpus, replicas=replicas))
    except BadOrder:
        return False
    return True


def _came_free(offer: Offer, at: datetime) -> int:
    """Return how many GPUs instances of an offer gave back in the last day."""
    ended = Instance.objects.filter(offer=offer, phase__in=[Phase.STOPPED, Phase.TERMINATED, Phase.FAILED])
    freed = ended.filter(phase_since__gt=at - ESTIMATED_FROM, ready_at__isnull=False)
    gpus: int = freed.aggregate(gpus=Coalesce(Sum(F("gpus_per_replica") * F("replicas")), 0))["gpus"]
    return gpus


def _guess(wanted: int, came_free: int, at: datetime) -> datetime | None:
    return at + ESTIMATED_FROM * wanted / came_free if came_free else None
