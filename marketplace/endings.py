"""How a reservation's hours end for what runs in them: announced 40 minutes before, asked to stop 30 minutes before.

An hour in which a reservation holds fewer GPUs than the one before ends part
of what runs in it, in the same way: the newest instances first.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.utils.translation import gettext

from marketplace import blocks, holdings, instance_texts
from marketplace.models import BEGUN, Listing, Reservation, ReservationState
from provisioning import instances, interruptions
from provisioning.calendar import HOUR, hour_of
from provisioning.models import Instance, Interruption, Phase, Reason

# These give their GPUs back already.
GOING = {Phase.DRAINING, Phase.INTERRUPTED, Phase.STOPPING, Phase.TERMINATING, Phase.FAILED}
# Of an interruption: nothing was asked to stop yet.
NOT_BEGUN = {Interruption.State.PLANNED, Interruption.State.NOTIFIED}
# How long the ladder may be late before an end is asked for without it.
PATIENCE = timedelta(minutes=5)


def inside(reservation: Reservation) -> list[Instance]:
    """Return what holds GPUs inside a reservation: what is told of its end already, then the newest."""
    found = Instance.objects.filter(reservation=reservation, quota_held__gt=0)
    alive = list(found.select_related("project__organization", "offer", "price_version").order_by("-pk"))
    return sorted(alive, key=lambda instance: instance.reason != Reason.RESERVATION_END)


def leaving(reservation: Reservation, *, at: datetime) -> list[Instance]:
    """Return what has to end at the next full hour, because the reservation then holds less than is used."""
    held = holdings.held_at(reservation.strips.all(), hour_of(at) + HOUR)
    ending: list[Instance] = []
    alive = inside(reservation)
    used = sum(instance.quota_held for instance in alive)
    for instance in alive:
        if used <= held:
            break
        ending.append(instance)
        used -= instance.quota_held
    return ending


def announce(reservation: Reservation, *, at: datetime) -> int:
    """Plan the end of instances whose hours end with this one; return how many are told.

    The ladder of interruptions announces it, holds to it, and ends them half an hour before the hour does. One that
    comes late gives as many minutes more as it is late, up to a whole notice, but never beyond the hour.
    """
    ending = leaving(reservation, at=at)
    interruptions.plan(
        instance_ids=[instance.pk for instance in ending if instance.phase != Phase.QUEUED],
        reason=Interruption.Reason.RESERVATION_END,
        min_notice_s=_notice(at) // timedelta(seconds=1),
        since=at,
    )
    return len(ending)


def _notice(at: datetime) -> timedelta:
    """Return how long what is announced now goes on: until half an hour before the hour's end, if it is in time."""
    end = hour_of(at) + HOUR
    missed = min(at - (end - blocks.NOTICE), blocks.NOTICE - blocks.DRAIN)
    return min(max(end - blocks.DRAIN - at, missed), end - at)


def drain(reservation: Reservation, *, at: datetime, is_over: bool = False) -> int:
    """Stop what should be ending with its hours and is not: what still waits for GPUs, or was missed by the ladder."""
    late = is_over or at >= hour_of(at) + HOUR - blocks.DRAIN + PATIENCE
    ending = [one for one in locked(leaving(reservation, at=at)) if Phase(one.phase) not in GOING]
    told = {} if is_over else interruptions.open_for(ending)
    ending = [one for one in ending if one.phase == Phase.QUEUED or (late and not _has_time(told.get(one.pk), at))]
    message = instance_texts.RESERVATION_ENDS()
    for instance in ending:
        instances.stop(instance=instance, at=at, reason=Reason.RESERVATION_END, message=message)
    return len(ending)


def _has_time(told: Interruption | None, at: datetime) -> bool:
    """Return whether the ladder is still in time with the end of an hour that it was asked for."""
    if told is None or told.reason != Interruption.Reason.RESERVATION_END:
        return False
    return at < (told.deadline_at or told.since + timedelta(seconds=told.min_notice_s)) + PATIENCE


def take_back(reservation: Reservation, inside_now: Iterable[Instance], *, at: datetime) -> None:
    """Let instances that were told of their end go on where the reservation, as it is now, has room for them.

    The caller has locked them. What was asked to stop already is not called back.
    """
    still_leaving = {instance.pk for instance in leaving(reservation, at=at)}
    for instance in inside_now:
        found = None if instance.pk in still_leaving else interruptions.open_of(instance)
        if found is None or found.state not in NOT_BEGUN:
            continue
        if found.reason == Interruption.Reason.RESERVATION_END:
            message = instance_texts.RESERVATION_EXTENDED()
            interruptions.call_off(interruption=found, at=at, message=message)


def locked(found: Sequence[Instance]) -> list[Instance]:
    """Lock instances, all at once and before any account, and return them as they are now."""
    return instances.lock([instance.pk for instance in found]) if found else []


def withdraw_listings(reservation: Reservation, *, at: datetime) -> None:
    """Take everything of a reservation off the resale market. The caller holds the offer's gate."""
    for listing in Listing.objects.filter(reservation=reservation, state=Listing.State.OPEN):
        listing.close(Listing.State.WITHDRAWN, at=at)


def why_not_resold(reservation: Reservation, *, at: datetime) -> str:
    """Return why none of its hours can be listed, empty where some can: those that are still far enough ahead."""
    may = BEGUN | {ReservationState.SCHEDULED, ReservationState.LOCKED}
    if reservation.state not in may:
        return gettext("It has no hours to sell: %(state)s.") % {"state": reservation.get_state_display()}
    cutoff = timedelta(minutes=reservation.terms["resale_cutoff_minutes"])
    if reservation.ends_at - HOUR < at + cutoff:
        return gettext("Hours are sold until %(minutes)s minutes before they begin; all of its hours are closer.") % {
            "minutes": cutoff // timedelta(minutes=1)
        }
    return ""
