"""Reservations: buy a block by its quote, extend it, cancel it by a quote. Paid ahead, and charged nothing more.

Lock order: the offer's gate (`BlockTerms`), quote, reservation, workflow,
instance, quota, account, node, assignment, capacity.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import transaction
from django.utils.translation import gettext

from billing import holds, prepayments
from billing.errors import HoldClosed
from billing.models import PriceVersion
from billing.prepared import Asking, Steps, together
from billing.prepayments import Paid
from billing.public_ids import new_public_id
from billing.rating import MILLISECOND
from billing.suppliers import accruing
from marketplace import audit, blocks, endings, holdings, paid_ahead, quotes, refunds, rentals, reserved_quotas, spend
from marketplace import reservation_texts as texts
from marketplace.access import Actor
from marketplace.blocks import Window
from marketplace.errors import BadOrder, Conflict
from marketplace.models import (
    BEGUN,
    OVER,
    BlockTerms,
    Project,
    Quote,
    Reservation,
    ReservationState,
    ReservationStrip,
    TokenPurchase,
)
from provisioning import calendar
from provisioning.calendar import HOUR
from provisioning.errors import IllegalMove

log = structlog.get_logger("marketplace.reservations")

State = ReservationState
PAYMENT_LIFE = timedelta(hours=1)
# A payment is taken right after its booking; what is older was interrupted between the two.
SETTLE_AFTER = timedelta(seconds=10)


def lock(reservation_id: int) -> Reservation:
    """Lock a reservation until the caller's transaction ends and return it as it is now, with what its pages show."""
    Reservation.objects.select_for_update(no_key=True).get(pk=reservation_id)
    related = Reservation.objects.select_related("project__organization", "offer__site", "price_version")
    return related.get(pk=reservation_id)


def lock_gate(offer_id: int) -> BlockTerms | None:
    """Lock an offer's gate, behind which hours change hands, until the caller's transaction ends."""
    return BlockTerms.objects.select_for_update().filter(pk=offer_id).first()


def buy(*, actor: Actor, quote: Quote, at: datetime) -> Reservation:
    """Buy what was quoted, once: hold the money, commit the hours, then take the money.

    Booking and payment are two transactions, unless the caller has one around
    both: whoever is interrupted between them leaves a row that
    `settle_payments` finds. Raises QuoteUsed, QuoteExpired, InsufficientFunds,
    QuotaExceeded, PolicyExcludes, NoCapacity or ProjectSuspended with nothing held. A caller's
    transaction ends with the refusal: nothing here has a savepoint.
    """
    rentals.check_open(quote.project)
    with transaction.atomic(savepoint=False):
        reservation = _book(actor, quote, at)
    take_payment(reservation, strips=[_strip_of(quote)], at=at)
    return reservation


def _book(actor: Actor, quote: Quote, at: datetime) -> Reservation:
    """Book in two round trips: what is locked before accounts, then all the rest."""
    project, organization = quote.project, quote.project.organization
    window = Window(quote.offer, quote.gpus, quote.starts_at, quote.ends_at)
    reservation_id = new_public_id("rsv")
    check_budget(actor, project, quote.total_micros, pays_for=[reservation_id], at=at)
    together(quotes.use.steps(quote, kind=Quote.Kind.PURCHASE, at=at), check_use.steps(project, window, at=at))
    if quote.starts_at < at:
        raise BadOrder("quote", gettext("The block that was quoted has begun meanwhile. Ask for a later one."))
    reservation: Reservation
    _, reservation, _, _ = together(
        holds.place.steps(
            key=f"block:{reservation_id}",
            organization=organization,
            amount_micros=quote.total_micros,
            purpose="reservation",
            resource_id=reservation_id,
            expires_at=at + PAYMENT_LIFE,
        ),
        make.steps(
            public_id=reservation_id,
            project=project,
            window=window,
            price_version=quote.price_version,
            terms=quote.terms,
            strips=[_strip_of(quote)],
            at=at,
        ),
        audit.record.steps(
            actor=actor,
            organization=organization,
            verb="reservation.buy",
            subject_id=reservation_id,
            after=_shown(quote),
        ),
        calendar.commit.steps(
            offer_id=quote.offer_id, gpus=quote.gpus, starts_at=quote.starts_at, ends_at=quote.ends_at, at=at
        ),
    )
    return reservation


@Asking
def make(
    *,
    public_id: str,
    project: Project,
    window: Window,
    price_version: PriceVersion,
    terms: dict[str, Any],
    strips: list[ReservationStrip],
    at: datetime,
) -> Steps[Reservation]:
    """Write a new reservation whose payment is pending, with its strips and first event. One statement."""
    reservation = Reservation(
        public_id=public_id,
        project=project,
        offer=window.offer,
        price_version=price_version,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        gpus=window.gpus,
        locks_at=window.starts_at - timedelta(minutes=terms["lock_minutes"]),
        state_since=at,
        terms={name: value for name, value in terms.items() if name != "cancellation_costs"},
        earned_through=window.starts_at,
        created_at=at,
    )
    yield from reservation.book(strips)
    return reservation


def check_budget(actor: Actor, project: Project, total_micros: int, *, pays_for: Iterable[str], at: datetime) -> None:
    """Raise BudgetExceeded where paying so much ahead would pass a budget. It burns nothing by the hour.

    What a token pays for is noted, as the keys of its transfers name it, so that its budget sees the payment.
    """
    spend.check(project=project, token=actor.token, worst_case_micros=total_micros, hourly_micros=0, at=at)
    if actor.token is not None:
        TokenPurchase.objects.bulk_create(TokenPurchase(resource_id=one, token=actor.token) for one in pays_for)


@Asking
def check_use(project: Project, window: Window, *, at: datetime) -> Steps[None]:
    """Raise QuotaExceeded as `reserved_quotas.reserve` does, or PolicyExcludes."""
    if (yield from reserved_quotas.reserve.steps(project, window)):
        quotes.check_policies(project, window, at=at)


@transaction.atomic(savepoint=False)
def take_payment(reservation: Reservation, *, strips: Sequence[ReservationStrip], at: datetime) -> None:
    """Take the money that was held for a booking; where it is not there any more, give its hours back."""
    organization = reservation.project.organization
    reason = f"Reservation {reservation.public_id}"
    block = paid_ahead.block(
        paid_ahead.Kind.RESERVATION, reservation.public_id, reservation.offer, reservation.project,
        starts_at=reservation.starts_at, ends_at=reservation.ends_at, rows=paid_ahead.rows_of(strips),
    )  # fmt: skip
    resource_id = reservation.public_id
    try:
        together(
            prepayments.collect.steps(
                organization=organization, resource_id=resource_id, block=block, reason=reason, at=at
            ),
            reservation.schedule(payment=prepayments.payment_key(resource_id), at=at),
        )
    except HoldClosed:
        reservation.move_to(State.PAYMENT_FAILED, at=at, message=texts.PAYMENT_GONE())
        release_hours(reservation, since=reservation.starts_at, at=at)


def settle_payments(*, at: datetime, limit: int) -> int:
    """Take payments whose purchase was interrupted after its booking; return how many were settled."""
    waiting = Reservation.objects.filter(state=State.PAYMENT_PENDING, created_at__lte=at - SETTLE_AFTER)
    settled = 0
    for reservation_id in list(waiting.order_by("pk").values_list("pk", flat=True)[:limit]):
        with transaction.atomic():
            reservation = lock(reservation_id)
            if reservation.state == State.PAYMENT_PENDING:
                take_payment(reservation, strips=list(reservation.strips.all()), at=at)
                settled += 1
    return settled


@transaction.atomic
def extend(*, actor: Actor, reservation: Reservation, quote: Quote, at: datetime) -> Reservation:
    """Add the hours that were quoted to a reservation's end, paid now: all of them, or nothing is changed."""
    rentals.check_open(reservation.project)
    lock_gate(reservation.offer_id)
    quotes.use(quote, kind=Quote.Kind.EXTENSION, at=at)
    reservation = _quoted(lock(reservation.pk), quote)
    if refusal := quotes.why_not_extended(reservation, at=at):
        raise IllegalMove(refusal)
    if quote.starts_at != reservation.ends_at:
        raise Conflict(gettext("The reservation's end has changed since this was quoted. Ask for a new quote."))
    running = endings.locked(endings.inside(reservation))
    check_budget(actor, reservation.project, quote.total_micros, pays_for=[quote.public_id], at=at)
    check_use(reservation.project, Window(quote.offer, quote.gpus, quote.starts_at, quote.ends_at), at=at)
    holds.place(
        key=f"block:{quote.public_id}",
        organization=reservation.project.organization,
        amount_micros=quote.total_micros,
        purpose="extension",
        resource_id=quote.public_id,
        expires_at=at + PAYMENT_LIFE,
    )
    paid = prepayments.collect(
        organization=reservation.project.organization,
        resource_id=quote.public_id,
        block=paid_ahead.block(
            paid_ahead.Kind.EXTENSION,
            reservation.public_id,
            quote.offer,
            reservation.project,
            starts_at=quote.starts_at,
            ends_at=quote.ends_at,
            rows=paid_ahead.rows_of([_strip_of(quote)]),
        ),
        reason=f"Extension of {reservation.public_id}",
        at=at,
    )
    holdings.add(reservation, [_strip_of(quote)])
    holdings.refit(reservation)
    _add_payment(reservation, paid)
    news = texts.EXTENDED(until=f"{quote.ends_at:%Y-%m-%d %H:%M}")
    if reservation.state == State.ENDING:
        reservation.move_to(State.ACTIVE, at=at, message=news)
    else:
        reservation.note(news, at=at)
    endings.take_back(reservation, running, at=at)
    audit.record_of(reservation, "reservation.extend", actor=actor, after=_shown(quote))
    calendar.commit(offer_id=quote.offer_id, gpus=quote.gpus, starts_at=quote.starts_at, ends_at=quote.ends_at, at=at)
    return reservation


@transaction.atomic
def cancel(*, actor: Actor, reservation: Reservation, quote: Quote, at: datetime) -> Reservation:
    """Cancel a reservation at what was quoted: its hours become free, its money goes back but for what is kept."""
    lock_gate(reservation.offer_id)
    quotes.use(quote, kind=Quote.Kind.CANCELLATION, at=at)
    reservation = _quoted(lock(reservation.pk), quote)
    if refusal := quotes.why_not_cancelled(reservation, at=at):
        raise IllegalMove(refusal)
    has_begun = reservation.state in BEGUN
    refund = _leave(reservation, at=at) if has_begun else _give_up(reservation, quote, at=at)
    endings.withdraw_listings(reservation, at=at)
    news = texts.CANCELLED(who=actor.name)
    since = calendar.hour_of(at) if has_begun else reservation.starts_at
    reservation.move_to(State.CANCELLED, at=at, message=news, is_lent=False)
    audit.record_of(reservation, "reservation.cancel", actor=actor, after={"refund_micros": refund})
    release_hours(reservation, since=since, at=at)
    return reservation


def _give_up(reservation: Reservation, quote: Quote, *, at: datetime) -> int:
    """Give back what the quote says, keep the rest, and return what was given back."""
    if (quote.total_micros, quote.refund_micros) != quotes.cancellation_amounts(reservation, at=quote.created_at):
        raise Conflict(gettext("The reservation has changed since this was quoted. Ask for a new quote."))
    strips = list(reservation.strips.all())
    worth = holdings.worth_micros(strips, reservation.starts_at, reservation.ends_at)
    refund = quote.refund_micros
    block = paid_ahead.given_back(paid_ahead.Kind.CANCELLED, reservation, strips, micros=refund)
    refunds.give_back(reservation, micros=refund, deferred_micros=refund, block=block, cause="cancelled", at=at)
    prepayments.earn(
        key=f"{reservation.public_id}:cancelled",
        currency=reservation.currency,
        amount_micros=worth - refund,
        reason=f"Cancellation of {reservation.public_id}",
        at=at,
    )
    return refund


def _leave(reservation: Reservation, *, at: datetime) -> int:
    """End one that we do not deliver, free of charge: what is still to come is given back, and what lacks in this hour.

    Returns how much was given back.
    """
    if reservation.instances.filter(quota_held__gt=0).exists():
        raise Conflict(gettext("Instances run in it. Stop them first, then cancel it."))
    since = calendar.hour_of(at) + calendar.HOUR
    lost = refunds.give_back_hour(reservation, reservation.missing_gpus, hour=calendar.hour_of(at), at=at)
    earn_until(reservation, until=min(since, reservation.ends_at), at=at)
    to_come = holdings.clipped(reservation.strips.all(), since)
    paid = sum(blocks.value_of(strip, micros=strip.paid_micros) for strip in to_come)
    worth = sum(blocks.value_of(strip, micros=strip.worth_micros) for strip in to_come)
    kept = min(paid, worth)
    block = paid_ahead.given_back(paid_ahead.Kind.CANCELLED, reservation, to_come, micros=paid)
    refunds.give_back(reservation, micros=paid, deferred_micros=kept, block=block, cause="left", at=at)
    prepayments.earn(
        key=f"{reservation.public_id}:left",
        currency=reservation.currency,
        amount_micros=worth - kept,
        reason=f"Rest of {reservation.public_id}",
        at=at,
    )
    return lost + paid


def earn_until(reservation: Reservation, *, until: datetime, at: datetime) -> None:
    """Take what was delivered in hours before `until` as revenue: their worth, less what was given back for them."""
    if until <= reservation.earned_through:
        return
    worth = holdings.worth_micros(list(reservation.strips.all()), reservation.earned_through, until)
    short = reservation.shortfalls.filter(hour__gte=reservation.earned_through, hour__lt=until)
    worth -= sum(short.values_list("worth_micros", flat=True))
    key = f"{reservation.public_id}:{until:%Y%m%dT%H}"
    prepayments.earn(
        key=key,
        currency=reservation.currency,
        amount_micros=worth,
        reason=f"Delivery of {reservation.public_id}",
        at=at,
    )
    begun = reservation.earned_through
    supplied = accruing.Supplied(
        supplier_id=reservation.offer.supplier_id,
        offer=reservation.offer.public_id,
        starts_at=begun,
        ends_at=until,
        unit_milliseconds=holdings.gpu_milliseconds(list(reservation.strips.all()), begun, until)
        - sum(short.values_list("gpus", flat=True)) * (HOUR // MILLISECOND),
    )
    accruing.note_delivery(key=key, currency=reservation.currency, amount_micros=worth, supplied=supplied)
    Reservation.objects.filter(pk=reservation.pk).update(earned_through=until)
    reservation.earned_through = until


def release_hours(reservation: Reservation, *, since: datetime, at: datetime) -> None:
    """Take the hours from `since` on out of the calendar. Last in its transaction, as everything there."""
    for step in holdings.steps(holdings.clipped(reservation.strips.all(), since)):
        calendar.release(
            offer_id=reservation.offer_id, gpus=step.gpus, starts_at=step.starts_at, ends_at=step.ends_at, at=at
        )


@transaction.atomic
def lend(*, actor: Actor, reservation: Reservation, is_lent: bool, at: datetime) -> Reservation:
    """Lend what stands idle to spot, or stop lending it. Asking for what is so changes nothing."""
    reservation = lock(reservation.pk)
    if refusal := _why_not_lent(reservation):
        raise IllegalMove(refusal)
    if reservation.is_lent != is_lent:
        reservation.set_lent(is_lent, at=at)
        verb = "reservation.lend" if is_lent else "reservation.recall"
        reservation.note(texts.LENT() if is_lent else texts.NOT_LENT(), at=at)
        audit.record_of(reservation, verb, actor=actor)
    return reservation


def actions(reservation: Reservation, *, at: datetime) -> dict[str, str]:
    """Return what may be asked now: each verb with a sentence why not, empty when it may."""
    return {
        "extend": quotes.why_not_extended(reservation, at=at),
        "cancel": quotes.why_not_cancelled(reservation, at=at),
        "resell": endings.why_not_resold(reservation, at=at),
        "lend": _why_not_lent(reservation),
    }


def _why_not_lent(reservation: Reservation) -> str:
    if reservation.state in OVER:
        return gettext("It is over: %(state)s.") % {"state": reservation.get_state_display()}
    return ""


def _add_payment(reservation: Reservation, paid: Paid) -> None:
    changes = {
        "promo_micros": reservation.promo_micros + paid.promo_micros,
        "cash_micros": reservation.cash_micros + paid.cash_micros,
    }
    Reservation.objects.filter(pk=reservation.pk).update(**changes)
    for name, value in changes.items():
        setattr(reservation, name, value)


def _quoted(reservation: Reservation, quote: Quote) -> Reservation:
    if quote.reservation_id != reservation.pk:
        raise BadOrder("quote", gettext("This quote is for another reservation."))
    return reservation


def _strip_of(quote: Quote) -> ReservationStrip:
    return ReservationStrip(
        starts_at=quote.starts_at,
        ends_at=quote.ends_at,
        gpus=quote.gpus,
        paid_micros=quote.per_gpu_hour_micros,
        worth_micros=quote.per_gpu_hour_micros,
    )


def _shown(quote: Quote) -> dict[str, object]:
    return {
        "quote": quote.public_id,
        "offer": quote.offer.slug,
        "gpus": quote.gpus,
        "starts_at": quote.starts_at.isoformat(),
        "ends_at": quote.ends_at.isoformat(),
        "total_micros": quote.total_micros,
    }
