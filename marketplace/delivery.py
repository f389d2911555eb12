"""What becomes of a reservation by itself: it locks, begins, is looked after, ends, and is earned hour by hour.

Every part is a bounded sweep that takes each reservation in a transaction of
its own, by what is so and not by what happened: a sweep that was missed is
made up for by the next one.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import structlog
from django.db import transaction
from django.db.models import Count, Exists, F, Q, QuerySet

from marketplace import (
    coverage,
    endings,
    holdings,
    lending,
    quotes,
    refunds,
    resale,
    reservations,
    reserved_quotas,
    whole_nodes,
)
from marketplace import reservation_texts as texts
from marketplace.blocks import DRAIN, NOTICE
from marketplace.models import BEGUN, Reservation, ReservationState, ReservationStrip
from marketplace.tries import tried
from provisioning import room
from provisioning.calendar import HOUR, hour_of, spot_gpus
from provisioning.errors import ProvisioningError
from provisioning.health.wipes import LIVE_HOLD
from provisioning.models import Gpu, Instance, Node

log = structlog.get_logger("marketplace.delivery")

State = ReservationState
# How far into an hour GPUs may be missing before the hour counts as not delivered.
GRACE = timedelta(minutes=10)
UNDER_WAY = [State.ACTIVE, State.DELAYED, State.PARTIALLY_FULFILLED, State.ENDING]


class Missing(NamedTuple):
    """How many GPUs of a reservation are not to be had, and whether they only are not since it shares no host."""

    gpus: int = 0
    is_of_hosts: bool = False


NOTHING = Missing()


def advance(*, at: datetime, limit: int) -> int:
    """Do for every reservation what is due, in the order of a reservation's life; return how many things were done."""
    parts = (
        reservations.settle_payments,
        resale.expire_due,
        _lock_due,
        whole_nodes.keep,
        _begin_due,
        _look,
        _announce_due,
        _drain_due,
        _end_due,
        _earn_due,
        lending.share_due,
        quotes.forget,
        _recount_quotas,
    )
    return sum(tried(partial(part, at=at, limit=limit), log, "not advanced", part=part.__name__) for part in parts)


def _each(found: QuerySet[Reservation], act: Callable[[Reservation], bool], *, limit: int | None) -> int:
    """Do something to each of these reservations, locked; what is refused is tried again by the next sweep.

    A limit is for what is not found again once it is done: else the first ones would keep the rest from their turn.
    """

    def one(reservation_id: int) -> int:
        try:
            with transaction.atomic():
                return act(reservations.lock(reservation_id))
        except ProvisioningError:
            log.warning("not advanced", reservation=reservation_id, exc_info=True)
            return 0

    due = list(found.order_by("pk").values_list("pk", flat=True)[:limit])
    return sum(tried(partial(one, pk), log, "not advanced", reservation=pk) for pk in due)


def _lock_due(*, at: datetime, limit: int) -> int:
    """From the lock time on nothing is changed any more: the hours are as good as begun."""

    def act(reservation: Reservation) -> bool:
        if reservation.state != State.SCHEDULED or reservation.locks_at > at:
            return False
        reservation.move_to(State.LOCKED, at=at)
        return True

    return _each(Reservation.objects.filter(state=State.SCHEDULED, locks_at__lte=at), act, limit=limit)


def _begin_due(*, at: datetime, limit: int) -> int:
    """Begin what is due: with all of its GPUs, some, or none yet, as they are to be had now."""

    def act(reservation: Reservation) -> bool:
        if reservation.state != State.LOCKED or reservation.starts_at > at:
            return False
        missing = missing_gpus(reservation.offer_id, at=at).get(reservation.pk, NOTHING)
        _stand(reservation, missing, at=at)
        _give_back_missed(reservation, at=at)
        return True

    return _each(Reservation.objects.filter(state=State.LOCKED, starts_at__lte=at), act, limit=limit)


def _look(*, at: datetime, limit: int) -> int:
    """Look whether everybody can have their GPUs; who cannot is told, and gets the hour's money back."""
    under_way = Reservation.objects.filter(state__in=UNDER_WAY, starts_at__lte=at, ends_at__gt=at)

    def look(offer_id: int) -> int:
        missing = missing_gpus(offer_id, at=at)

        def act(reservation: Reservation) -> bool:
            return _look_after(reservation, missing.get(reservation.pk, NOTHING), at=at)

        concerned = Q(missing_gpus__gt=0) | Q(pk__in=[pk for pk, one in missing.items() if one.gpus])
        stuck = _give_back_stuck(offer_id, at=at)
        return stuck + _each(under_way.filter(concerned, offer=offer_id), act, limit=None)

    offers = list(under_way.order_by("offer").values_list("offer", flat=True).distinct())
    return sum(tried(partial(look, offer_id), log, "not looked after", offer=offer_id) for offer_id in offers)


def missing_gpus(offer_id: int, *, at: datetime) -> dict[int, Missing]:
    """Return how many GPUs each reservation of this hour holds that are not to be had, by its primary key.

    To be had are those that its instances have on nodes we reach, and of the others as many
    as stand free in good order or being cleaned, or are lent. What is free on a node that a tenant has alone
    is there for that tenant's reservations only, and who shares no host has of the others whole nodes only.
    Who bought last goes short first.
    """
    begun = Q(state__in=UNDER_WAY) | Q(state=State.LOCKED)
    found = list(
        Reservation.objects.select_related("project")
        .filter(begun, offer=offer_id, starts_at__lte=at, ends_at__gt=at)
        .order_by("-pk")
    )
    strips = _strips_of(found)
    used = coverage.delivered_gpus(found)
    free = _free(offer_id)
    idle = {}
    for one in found:
        wanted, tenant = max(0, holdings.held_at(strips[one.pk], at) - used[one.pk]), one.project.organization_id
        own = min(wanted, free[tenant])
        idle[one.pk], free[tenant] = wanted - own, free[tenant] - own
    lent = sum(idle[one.pk] for one in found if one.is_lent)
    short = sum(idle.values()) - free[None] - min(lent, spot_gpus(offer_id))
    return _missing(idle, short, whole_nodes.missing(offer_id, found, idle))


def _missing(idle: dict[int, int], short: int, of_hosts: dict[int, int]) -> dict[int, Missing]:
    """Add to what has no whole node what is short besides.

    Hosts are to blame for what would not be missing if they were shared, and not where GPUs have failed.
    """
    of_hosts = dict.fromkeys(idle, 0) | of_hosts
    shared = whole_nodes.shared_out(short, idle)
    rest = {pk: gpus - of_hosts[pk] for pk, gpus in idle.items()}
    more = whole_nodes.shared_out(short - sum(of_hosts.values()), rest)
    return {pk: Missing(gpus + more[pk], not more[pk] and gpus > shared[pk]) for pk, gpus in of_hosts.items()}


def _give_back_stuck(offer_id: int, *, at: datetime) -> int:
    """Give back this hour of GPUs for which a start has waited too long, since the free ones are no place for it.

    They are there by count and so not missing; who asks for what no empty offer could place has not waited for us.
    """
    if at < hour_of(at) + GRACE:
        return 0
    late = [one for one in room.waiting(offer_id) if one.phase_since <= at - GRACE]
    if not late:
        return 0
    spot = Instance.objects.filter(offer=offer_id, market=Instance.Market.SPOT, quota_held__gt=0)
    found = room.make(offer_id=offer_id, wanted=late, candidates=list(spot.values_list("pk", flat=True)))
    gpus: dict[int, int] = {}
    for one in found.stuck:
        if one.reservation_id is not None:
            gpus[one.reservation_id] = gpus.get(one.reservation_id, 0) + one.gpus

    def act(reservation: Reservation) -> bool:
        if reservation.state not in UNDER_WAY or at >= reservation.ends_at:
            return False
        stuck = min(gpus[reservation.pk], holdings.held_at(reservation.strips.all(), at))
        lost = max(stuck, reservation.missing_gpus)
        return refunds.give_back_hour(reservation, lost, hour=hour_of(at), at=at) > 0

    return _each(Reservation.objects.filter(pk__in=list(gpus)), act, limit=None)


def _free(offer_id: int) -> Counter[int | None]:
    """Return how many GPUs nobody holds that are in good order, or will be once they are cleaned.

    By the tenant who alone may have them; None for everybody's.
    """
    good = Gpu.objects.filter(node__offer=offer_id, healthy=True).exclude(state=Gpu.State.QUARANTINED)
    reached = [Node.Reachability.ONLINE, Node.Reachability.SUSPECT]
    good = good.filter(node__state=Node.State.AVAILABLE, node__is_held=False, node__reachability__in=reached)
    rows = good.filter(~Exists(LIVE_HOLD)).values_list("node__exclusive_to").order_by().annotate(gpus=Count("pk"))
    return Counter(dict(rows))


def _strips_of(found: Iterable[Reservation]) -> dict[int, list[ReservationStrip]]:
    strips: dict[int, list[ReservationStrip]] = {one.pk: [] for one in found}
    for strip in ReservationStrip.objects.filter(reservation__in=list(strips)):
        strips[strip.reservation_id].append(strip)
    return strips


def _look_after(reservation: Reservation, missing: Missing, *, at: datetime) -> bool:
    if reservation.state not in UNDER_WAY or not reservation.starts_at <= at < reservation.ends_at:
        return False
    if reservation.state != State.ENDING:
        _stand(reservation, missing, at=at)
    if missing.gpus and at >= hour_of(at) + GRACE:
        refunds.give_back_hour(reservation, missing.gpus, hour=hour_of(at), at=at)
    return True


def _stand(reservation: Reservation, lack: Missing, *, at: datetime) -> None:
    """Bring the state in line with how many GPUs are missing."""
    missing = lack.gpus
    held = holdings.held_at(reservation.strips.all(), at)
    if not missing:
        state, message = State.ACTIVE, texts.ALL_THERE() if reservation.missing_gpus else ""
    else:
        state = State.DELAYED if missing >= held else State.PARTIALLY_FULFILLED
        why = texts.NO_HOST if lack.is_of_hosts else texts.MISSING
        message = why(missing=missing, held=held)
    if reservation.state != state:
        reservation.move_to(state, at=at, message=message, missing_gpus=missing)
    elif reservation.missing_gpus != missing:
        Reservation.objects.filter(pk=reservation.pk).update(missing_gpus=missing, message=message)
        reservation.missing_gpus = missing
        reservation.note(message, at=at)


def _give_back_missed(reservation: Reservation, *, at: datetime) -> None:
    """Give back whole hours that went by before it was begun: that was late by our own fault."""
    strips = list(reservation.strips.all())
    hour = reservation.starts_at
    while hour < min(hour_of(at), reservation.ends_at):
        refunds.give_back_hour(reservation, holdings.held_at(strips, hour), hour=hour, at=at)
        hour += HOUR


def _announce_due(*, at: datetime, limit: int) -> int:
    """Announce the end 40 minutes before it, and before each hour that has fewer GPUs than are used."""
    if hour_of(at + NOTICE) == hour_of(at):
        return 0

    def act(reservation: Reservation) -> bool:
        if reservation.state not in BEGUN:
            return False
        told = endings.announce(reservation, at=at)
        if reservation.ends_at <= hour_of(at) + HOUR and reservation.state != State.ENDING:
            message = texts.ENDS(end=f"{reservation.ends_at:%H:%M}", drain=f"{reservation.ends_at - DRAIN:%H:%M}")
            reservation.move_to(State.ENDING, at=at, message=message)
            return True
        return told > 0

    return _each(_giving_up(at).filter(starts_at__lt=at), act, limit=None)


def _drain_due(*, at: datetime, limit: int) -> int:
    """Ask what is announced to stop, 30 minutes before its end."""
    if hour_of(at + DRAIN) == hour_of(at):
        return 0
    holding = Instance.objects.filter(quota_held__gt=0, reservation__isnull=False).values("reservation")
    return _each(_giving_up(at).filter(pk__in=holding), lambda one: endings.drain(one, at=at) > 0, limit=None)


def _end_due(*, at: datetime, limit: int) -> int:
    """End what is over. What still runs in it is asked to stop at the latest now."""

    def act(reservation: Reservation) -> bool:
        if reservation.state not in BEGUN or reservation.ends_at > at:
            return False
        endings.drain(reservation, at=at, is_over=True)
        if reservation.state != State.ENDING:
            reservation.move_to(State.ENDING, at=at)
        reservation.move_to(State.EXPIRED, at=at, missing_gpus=0, is_lent=False)
        return True

    return _each(_begun().filter(ends_at__lte=at), act, limit=limit)


def _earn_due(*, at: datetime, limit: int) -> int:
    """Earn the hours that are over: of what is under way, and the last ones of what has ended."""

    def act(reservation: Reservation) -> bool:
        until = min(hour_of(at), reservation.ends_at)
        if until <= reservation.earned_through:
            return False
        reservations.earn_until(reservation, until=until, at=at)
        return True

    begun = Reservation.objects.filter(state__in=[*UNDER_WAY, State.EXPIRED], earned_through__lt=F("ends_at"))
    return _each(begun.filter(earned_through__lt=hour_of(at)), act, limit=limit)


def _recount_quotas(*, at: datetime, limit: int) -> int:
    """Let quotas forget hours that are over, sold or given up."""
    return reserved_quotas.recount(at=at, limit=limit)


def _begun() -> QuerySet[Reservation]:
    return Reservation.objects.filter(state__in=UNDER_WAY)


def _giving_up(at: datetime) -> QuerySet[Reservation]:
    """Return what gives up GPUs with this hour, or has with an earlier one."""
    over = ReservationStrip.objects.filter(ends_at__lte=hour_of(at) + HOUR)
    return _begun().filter(pk__in=over.values("reservation"))
