"""Whole nodes for blocks of tenants who share no host: kept free from shortly before they begin until they are over."""

from collections import defaultdict
from datetime import datetime
from functools import partial

import structlog
from django.db.models import Q

from marketplace import holdings
from marketplace.blocks import NOTICE
from marketplace.models import BEGUN, Reservation, ReservationState, ReservationStrip
from marketplace.tries import tried
from provisioning import kept_nodes, policies

log = structlog.get_logger("marketplace.whole_nodes")

State = ReservationState
TO_COME = {State.SCHEDULED, State.LOCKED}


def keep(*, at: datetime, limit: int) -> int:
    """Keep as many nodes of each offer as its blocks need that have begun or are about to; return for how many offers.

    What runs there meanwhile goes on. What a block leaves free is kept in the transaction that frees it
    (`placement.recount`); `limit` is nothing to this: who is not looked at would be served last. What cannot be kept
    is tried again by the next sweep.
    """
    wanted = _wanted(at)
    offers = {*wanted, *kept_nodes.offers_with_any(kept_nodes.Kept.BLOCK)}
    return sum(
        tried(partial(kept_nodes.for_blocks, offer_id=one, gpus=wanted.get(one, {})), log, "not kept", offer=one)
        for one in sorted(offers)
    )


def _wanted(at: datetime) -> dict[int, dict[int, int]]:
    """Return by offer and tenant how many GPUs its blocks have now, or shortly, in whole nodes."""
    near = Q(state__in=[*TO_COME, *BEGUN, State.PARTIALLY_FULFILLED], starts_at__lte=at + NOTICE, ends_at__gt=at)
    strips = ReservationStrip.objects.filter(
        reservation__in=Reservation.objects.filter(near, policies.ALONE), starts_at__lte=at + NOTICE, ends_at__gt=at
    ).select_related("reservation__project")
    by_tenant: dict[tuple[int, int], list[ReservationStrip]] = defaultdict(list)
    for strip in strips:
        by_tenant[strip.reservation.offer_id, strip.reservation.project.organization_id].append(strip)
    wanted: dict[int, dict[int, int]] = defaultdict(dict)
    for (offer_id, tenant_id), found in by_tenant.items():
        wanted[offer_id][tenant_id] = max(holdings.held_at(found, moment) for moment in (at, at + NOTICE))
    return wanted


def missing(offer_id: int, found: list[Reservation], idle: dict[int, int]) -> dict[int, int]:
    """Return how many of the idle GPUs of each reservation have no whole node, for those that are to have them so.

    In the order of `found`: the first go short first.
    """
    alone = policies.alone({one.project_id for one in found})
    concerned = {one.pk: idle[one.pk] for one in found if one.project_id in alone and idle[one.pk]}
    return shared_out(sum(concerned.values()) - kept_nodes.whole_gpus(offer_id), concerned) if concerned else {}


def shared_out(short: int, idle: dict[int, int]) -> dict[int, int]:
    """Return how many of the idle GPUs of each reservation are missing where so many are short: the first go short."""
    lack = {}
    for number, gpus in idle.items():
        lack[number] = max(0, min(gpus, short))
        short -= lack[number]
    return lack
