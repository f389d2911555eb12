"""Blocks in a replay: who reserves, when their job goes in, and that it ends there."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import transaction
from django.utils import timezone

from marketplace import quotes, rentals, reservations, windows
from marketplace.blocks import NOTICE
from marketplace.errors import MarketError
from marketplace.models import Offer, Reservation
from provisioning.errors import NoCapacity
from tests.bench.trace import RESERVED_MICROS, Job
from tests.blocks import sell_blocks

if TYPE_CHECKING:
    from tests.bench.played import Replay

HOUR = timedelta(hours=1)
# How long a tenant looks ahead for a free window; one that finds none rents on demand.
LOOKS_AHEAD = timedelta(days=3)


def sell(offer: Offer) -> None:
    """Sell blocks of an offer, with discounts for a day and for a week."""
    sell_blocks(offer, price_micros=RESERVED_MICROS, max_gpus=4096)


def book(replay: "Replay", job: Job, *, at: datetime) -> bool:
    """Reserve the cheapest window that holds a job, and go in when it begins; False where there is none.

    It is an hour longer than the notice before its end takes, so that the job is done by then.
    """
    project, actor = replay.projects[job.tenant], replay.actors[job.tenant]
    hours = -(-(job.duration + NOTICE) // HOUR)
    wish = windows.Wish(gpus=job.gpus, hours=hours, latest_end=at + LOOKS_AHEAD + hours * HOUR)
    try:
        found = windows.search(organization=project.organization, offers=[replay.offer], wish=wish, at=at)
        if not found:
            replay.ends["found no window"] += 1
            return False
        quote = quotes.for_purchase(project=project, window=found[0].window, at=at)
        with transaction.atomic():
            job.block = reservations.buy(actor=actor, quote=quote, at=at)
    except (MarketError, NoCapacity) as refusal:
        replay.ends[f"no block: {type(refusal).__name__}"] += 1
        return False
    if job.is_lent:
        reservations.lend(actor=actor, reservation=job.block, is_lent=True, at=at)
    replay.ends["reserved"] += 1
    replay.plan(job.block.starts_at, "enter", job)
    return True


def enter(replay: "Replay", job: Job, *, at: datetime) -> None:
    """Launch a job inside its block, which has begun."""
    replicas, gpus = job.shape
    assert job.block is not None
    block = Reservation.objects.select_related("project__organization", "offer").get(pk=job.block.pk)
    order = rentals.Order(offer=replay.offer, command=["train"], gpus=gpus, replicas=replicas, reservation=block)
    try:
        with transaction.atomic():
            instance = rentals.rent(
                actor=replay.actors[job.tenant], project=replay.projects[job.tenant], order=order, at=timezone.now()
            )
    except (MarketError, NoCapacity) as refusal:
        replay.ends[f"refused inside: {type(refusal).__name__}"] += 1
        return
    replay.entering[instance.pk] = at
    replay.watch(job, instance)
