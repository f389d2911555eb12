"""Quotes: what a block, more of it, or its cancellation costs now, in full, good for a few minutes and one use."""

from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext

from billing.prepared import Asking, Steps
from marketplace import blocks, holdings, refunds
from marketplace.blocks import Window
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Project, Quote, Reservation, ReservationState
from provisioning import calendar, placement
from provisioning.errors import IllegalMove, NoCapacity

LIFE = timedelta(minutes=10)
FORGOTTEN_AFTER = timedelta(days=7)
USE = """
UPDATE marketplace_quote SET used_at = %(at)s::timestamptz
WHERE id = %(quote)s AND kind = %(kind)s AND used_at IS NULL AND expires_at > %(at)s::timestamptz RETURNING id
"""
FREE_EXITS = {ReservationState.DELAYED, ReservationState.PARTIALLY_FULFILLED}


class QuoteExpired(Conflict):
    """The quote was good for ten minutes, and they are over."""


class QuoteUsed(Conflict):
    """The quote was used already; each is good for one order."""


def for_purchase(*, project: Project, window: Window, at: datetime) -> Quote:
    """Quote a block. It holds no capacity: whoever buys first has it. Raises BadOrder, PolicyExcludes or NoCapacity."""
    terms = blocks.terms_of(window.offer)
    blocks.check(window, terms, at=at)
    check_policies(project, window, at=at)
    _check_free(window, at=at)
    data = blocks.terms_as_data(terms)
    total, made = _priced(project, window, data, at=at)
    made.terms["cancellation_costs"] = blocks.cancellation_costs(
        data, starts_at=window.starts_at, base_micros=total, at=at
    )
    made.save()
    return made


def for_extension(*, reservation: Reservation, ends_at: datetime, at: datetime) -> Quote:
    """Quote more hours after a reservation's end, with the GPUs of its last hour, on today's terms."""
    if refusal := why_not_extended(reservation, at=at):
        raise IllegalMove(refusal)
    gpus = holdings.held_at(reservation.strips.all(), reservation.ends_at - calendar.HOUR)
    window = Window(reservation.offer, gpus, reservation.ends_at, ends_at)
    if ends_at <= reservation.ends_at:
        raise BadOrder("ends_at", gettext("The new end has to lie after the present one."))
    terms = blocks.terms_of(window.offer)
    blocks.check(window, terms, at=at)
    check_policies(reservation.project, window, at=at)
    _check_free(window, at=at)
    data = blocks.terms_as_data(terms)
    _, made = _priced(reservation.project, window, data, at=at)
    made.kind, made.reservation = Quote.Kind.EXTENSION, reservation
    made.save()
    return made


def for_cancellation(*, reservation: Reservation, at: datetime) -> Quote:
    """Quote what cancelling a reservation keeps and gives back now."""
    if refusal := why_not_cancelled(reservation, at=at):
        raise IllegalMove(refusal)
    kept, refund = cancellation_amounts(reservation, at=at)
    return Quote.objects.create(
        kind=Quote.Kind.CANCELLATION,
        project=reservation.project,
        offer=reservation.offer,
        reservation=reservation,
        price_version=reservation.price_version,
        starts_at=reservation.starts_at,
        ends_at=reservation.ends_at,
        gpus=reservation.gpus,
        per_gpu_hour_micros=0,
        total_micros=kept,
        refund_micros=refund,
        terms={"cancellation_costs": costs_over_time(reservation, at=at), **_own_terms(reservation)},
        created_at=at,
        expires_at=at + LIFE,
    )


def cancellation_amounts(reservation: Reservation, *, at: datetime) -> tuple[int, int]:
    """Return what is kept of a reservation that is cancelled now, and what is given back.

    One that we do not deliver ends free of charge, for what is still to come and what lacks in this hour.
    """
    strips = list(reservation.strips.all())
    if reservation.state in FREE_EXITS:
        to_come = holdings.clipped(strips, calendar.hour_of(at) + calendar.HOUR)
        lost, _ = refunds.lost_in(reservation, reservation.missing_gpus, hour=calendar.hour_of(at))
        return 0, lost + sum(blocks.value_of(strip, micros=strip.paid_micros) for strip in to_come)
    base = blocks.refundable_micros(strips)
    bp = blocks.kept_bp(reservation.terms["cancellation"], until_start=reservation.starts_at - at)
    kept = blocks.kept_micros(base, bp=bp)
    return kept, base - kept


def costs_over_time(reservation: Reservation, *, at: datetime) -> list[dict[str, Any]]:
    """Return until when cancelling costs how much; of what we do not deliver, until this hour is over."""
    if reservation.state in FREE_EXITS:
        _, refund = cancellation_amounts(reservation, at=at)
        until = calendar.hour_of(at) + calendar.HOUR
        return [{"until": until.isoformat(), "kept_bp": 0, "kept_micros": 0, "refund_micros": refund}]
    base = blocks.refundable_micros(list(reservation.strips.all()))
    return blocks.cancellation_costs(reservation.terms, starts_at=reservation.starts_at, base_micros=base, at=at)


def why_not_extended(reservation: Reservation, *, at: datetime) -> str:
    """Return why no hours can be added now, empty where they can."""
    may = {ReservationState.SCHEDULED, ReservationState.LOCKED, ReservationState.ACTIVE, ReservationState.ENDING}
    if reservation.state not in may:
        return gettext("Only what is scheduled or active can be extended; this is: %(state)s.") % {
            "state": reservation.get_state_display()
        }
    if at >= reservation.ends_at - blocks.DRAIN:
        return gettext("Its instances are being ended; from %(minutes)s minutes before the end on it is too late.") % {
            "minutes": blocks.DRAIN // timedelta(minutes=1)
        }
    return ""


def why_not_cancelled(reservation: Reservation, *, at: datetime) -> str:
    """Return why a reservation cannot be cancelled now, empty where it can."""
    if reservation.state in FREE_EXITS:
        return ""
    if reservation.state != ReservationState.SCHEDULED or at >= reservation.locks_at:
        return gettext("It can be cancelled until %(minutes)s minutes before its start; this is: %(state)s.") % {
            "minutes": reservation.terms["lock_minutes"],
            "state": reservation.get_state_display(),
        }
    return ""


@Asking
def use(quote: Quote, *, kind: Quote.Kind, at: datetime) -> Steps[None]:
    """Use a quote up, once, or raise QuoteUsed or QuoteExpired. The caller's transaction undoes it on a refusal."""
    if (yield USE, {"quote": quote.pk, "kind": kind, "at": at}):
        return
    quote.refresh_from_db(fields=["used_at"])
    if quote.kind != kind:
        raise BadOrder("quote", gettext("This is the quote of something else: %(kind)s.") % {"kind": quote.kind})
    if quote.used_at is not None:
        raise QuoteUsed(gettext("This quote was used already. Ask for a new one to order once more."))
    raise QuoteExpired(gettext("This quote was good until %(until)s UTC. Ask for a new one.") % {
        "until": f"{quote.expires_at:%Y-%m-%d %H:%M:%S}"
    })  # fmt: skip


def forget(*, at: datetime, limit: int) -> int:
    """Forget quotes that nobody used, the oldest first; return how many."""
    old = Quote.objects.filter(used_at=None, expires_at__lt=at - FORGOTTEN_AFTER).order_by("expires_at")
    return Quote.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:limit])).delete()[0]


def _own_terms(reservation: Reservation) -> dict[str, Any]:
    return {name: value for name, value in reservation.terms.items() if name != "cancellation_costs"}


def check_policies(project: Project, window: Window, *, at: datetime) -> None:
    """Raise PolicyExcludes for hours that a policy lets nothing of the project use."""
    placement.check_order(project_id=project.pk, offer_id=window.offer.pk, gpus=window.gpus, at=at)


def _check_free(window: Window, *, at: datetime) -> None:
    free = calendar.free_now(offer_id=window.offer.pk, starts_at=window.starts_at, ends_at=window.ends_at, at=at)
    if free < window.gpus:
        raise NoCapacity(
            gettext("%(gpus)s GPUs are not free in every hour of that window; at its fullest, %(free)s are.")
            % {"gpus": window.gpus, "free": free}
        )


def _priced(project: Project, window: Window, terms: dict[str, Any], *, at: datetime) -> tuple[int, Quote]:
    price = blocks.price_of(window.offer, currency=project.organization.currency, at=at)
    discount = blocks.discount_bp(terms["discounts"], hours=window.hours)
    each = blocks.per_gpu_hour_micros(price, discount=discount)
    total = each * window.gpu_hours
    return total, Quote(
        project=project,
        offer=window.offer,
        price_version=price,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        gpus=window.gpus,
        discount_bp=discount,
        per_gpu_hour_micros=each,
        total_micros=total,
        terms=terms,
        created_at=at,
        expires_at=at + LIFE,
    )
