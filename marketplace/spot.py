"""Selling by auction: bidding, holding the auctions, and what follows for those who win and lose.

One auction for each offer and tick. It is held under an advisory lock, in one
transaction with everything that it decides, so it is held once or not at all;
whoever loses GPUs is only planned to be interrupted there, and told by a sweep
(`provisioning/interruptions.py`). Setting a price waits for an auction that is
being held, so a raise comes before it or after it, never between.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from django.db import connection, transaction
from django.utils.translation import gettext

from billing import accounts, floating, prices, rating
from billing.errors import BillingError
from billing.prepared import ask
from billing.public_ids import new_public_id
from marketplace import auction, audit, bids, instance_texts, numbers, rentals, risk, spot_capacity, spot_places
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, MarketError
from marketplace.models import Auction, Bid, Project, SpotTerms
from marketplace.spot_book import Entry, entries
from provisioning import advisories, calendar, engine, instances, interruptions, prospects, room, volumes
from provisioning.errors import IllegalMove, NoCapacity, ProvisioningError, StaleInterruption
from provisioning.models import (
    AT_REST,
    CHARGED_PHASES,
    Instance,
    Interruption,
    Phase,
    Reason,
)

log = structlog.get_logger("marketplace.spot")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The sweep of workflows finds the rest within a second.
NUDGES_MAX = 20
AGAIN_AFTER = timedelta(seconds=30)
# Only these follow from an auction; whoever is interrupted for another reason takes part in none.
MARKET_REASONS = (Interruption.Reason.OUTBID, Interruption.Reason.CAPACITY)

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"
# Workflows before instances, each in the order of their ids, as everywhere.
LOCK_ROWS = (
    "SELECT FROM provisioning_workflow WHERE instance_id = ANY (%s) ORDER BY instance_id FOR UPDATE",
    "SELECT FROM provisioning_instance WHERE id = ANY (%s) ORDER BY id FOR NO KEY UPDATE",
)
# As lists in one parameter: there may be tens of thousands.
LET_OUT = """
UPDATE provisioning_instance SET admitted_at = NULL WHERE id = ANY (%(instances)s::bigint[]) AND phase = 'queued'
"""
LET_IN = """
WITH due AS (
    UPDATE provisioning_workflow SET due_at = %(at)s, step_since = %(at)s, failures = 0
    WHERE instance_id = ANY (%(instances)s::bigint[]) AND step = 'place'
)
UPDATE provisioning_instance SET admitted_at = %(at)s
WHERE id = ANY (%(instances)s::bigint[]) AND phase = 'queued' AND desired = 'running'
"""
ALLOCATE = """
INSERT INTO marketplace_allocation (auction_id, bid_id, gpus)
SELECT %s, * FROM unnest(%s::bigint[], %s::int[])
"""


# Bidding


def bid(*, actor: Actor, project: Project, order: rentals.Order, max_price_micros: int, at: datetime) -> Bid:
    """Bid for an instance: it queues without GPUs until an auction gives it some, however long that takes.

    Takes quota and holds the bid's funds, or raises BadOrder, ProjectSuspended,
    QuotaExceeded, InsufficientFunds, PolicyExcludes, NeverFits or Conflict with nothing made.
    """
    rentals.check_open(project)
    rentals.check(order)
    terms = bids.terms_of(order.offer, currency=project.organization.currency)
    bids.check_price(terms, max_price_micros, at=at)
    check_capacity(terms, order.gpus * order.replicas)
    with rentals.name_in_use(order.name), transaction.atomic(savepoint=False):
        return _bid(actor, project, order, terms=terms, max_price_micros=max_price_micros, at=at)


def check_capacity(terms: SpotTerms, gpus: int) -> None:
    """Raise BadOrder for more GPUs than any auction of this offer could give, by what placement takes for its nodes."""
    there = calendar.gpus_of_offer(terms.offer_id) - terms.buffer_gpus
    if gpus > there or terms.cap_bp:
        there = prospects.gpus_ever(terms.offer_id) - terms.buffer_gpus  # Also of nodes that rest now.
    if gpus > there:
        raise BadOrder(
            "gpus",
            gettext("%(offer)s has %(there)s GPUs that an auction could ever give; you asked for %(gpus)s.")
            % {"offer": terms.offer.name, "there": max(0, there), "gpus": gpus},
        )
    if terms.cap_bp and gpus > (most := auction.share_gpus(there, cap_bp=terms.cap_bp)):
        raise BadOrder(
            "gpus",
            gettext("No organization wins more than %(most)s GPUs of %(offer)s by auction; you asked for %(gpus)s.")
            % {"offer": terms.offer.name, "most": most, "gpus": gpus},
        )


def _bid(
    actor: Actor, project: Project, order: rentals.Order, *, terms: SpotTerms, max_price_micros: int, at: datetime
) -> Bid:
    if order.uses:
        volumes.lock([use.volume for use in order.uses])
    instance_id = new_public_id("ins")
    bids.hold(
        project=project,
        terms=terms,
        resource_id=instance_id,
        key=f"{instance_id}:1:1",
        price_micros=max_price_micros,
        gpus=order.gpus * order.replicas,
        token=actor.token,
        is_paid=bool(order.work.paid_by),
        at=at,
    )
    rentals.check_possible(project=project, order=order, at=at)
    instance = rentals.make(
        order, actor=actor, project=project, public_id=instance_id, price_version=bids.series_of(terms, at=at), at=at,
        market=Instance.Market.SPOT, claims=False,
    )  # fmt: skip
    placed = Bid.objects.create(
        instance=instance, project=project, offer=order.offer, price_micros=max_price_micros, placed_at=at
    )
    if spot_places.was_left_out(placed):
        _try_again(placed, terms, at=at)
    after = {"name": instance.name, "offer": order.offer.slug, "gpus": instance.gpus, "max_price": max_price_micros}
    audit.record_of(placed, "bid.place", actor=actor, after=after)
    return placed


@dataclass(frozen=True)
class Quote:
    """What a bid would hold now, and the most that an hour of it could cost."""

    terms: SpotTerms
    held_micros: int
    worst_hour_micros: int


def rehearse(*, actor: Actor, project: Project, order: rentals.Order, max_price_micros: int, at: datetime) -> Quote:
    """Do everything that `bid` does, then undo it."""
    try:
        with transaction.atomic():
            placed = bid(actor=actor, project=project, order=order, max_price_micros=max_price_micros, at=at)
            transaction.set_rollback(True)
    except NoCapacity as refusal:
        # No decision is kept of what was only tried.
        refusal.decision = None
        raise
    terms = bids.terms_of(order.offer, currency=project.organization.currency)
    gpus = placed.instance.gpus
    return Quote(
        terms=terms,
        held_micros=bids.funds_micros(terms, price_micros=max_price_micros, gpus=gpus),
        worst_hour_micros=gpus * max_price_micros,
    )


@transaction.atomic
def change(
    *,
    actor: Actor,
    bid: Bid,
    max_price_micros: int,
    at: datetime,
    expected_micros: int | None = None,
    interruption_id: str = "",
) -> Bid:
    """Set the most that a bid pays, if it still is `expected_micros`, and hold the funds for that.

    Where its instance was told of an interruption and the new price would win
    now, and is not below what GPUs cost until the next auction, that is called
    off, exactly once; with an `interruption_id` it is that one or a Conflict,
    with nothing changed. What is left out of the book takes part again only
    where it would win now and find a place (`_try_again`). What is charged now keeps its bid at or above what it
    pays, or BadOrder.
    """
    terms = bids.terms_of(bid.offer, currency=bid.project.organization.currency)
    bids.check_price(terms, max_price_micros, at=at)
    lock_offer(bid.offer_id, is_shared=True)
    (instance,) = instances.lock([bid.instance_id])
    bid.refresh_from_db(fields=["price_micros", "revision", "left_out_at"])
    if instance.desired == Instance.Desired.TERMINATED:
        raise IllegalMove(f"{instance.name} has ended, and its bid with it.")
    before = bid.price_micros
    if expected_micros is not None and expected_micros != before:
        raise Conflict(gettext("The bid was changed meanwhile; look at it again."))
    bids.check_covers(instance, max_price_micros, terms, at=at)
    told = interruptions.open_of(instance)
    if interruption_id and (told is None or told.public_id != interruption_id):
        raise StaleInterruption(f"{interruption_id} is not open any more.")
    bid.price_micros, bid.revision = max_price_micros, bid.revision + 1
    bid.save(update_fields=["price_micros", "revision"])
    if instance.phase not in AT_REST:
        bids.hold_for_run(instance, token=actor.token, at=at)
        if bid.left_out_at is not None:
            _try_again(bid, terms, at=at)
    audit.record_of(bid, "bid.change", actor=actor, before={"max_price": before}, after={"max_price": max_price_micros})
    if not risk.is_near(max_price_micros, risk.last_of(bid.offer_id)):
        advisories.call_off(instance=instance, at=at)
    if told is not None:
        _call_off_if_it_wins(bid, told, terms, must=bool(interruption_id), at=at)
    return bid


def _try_again(bid: Bid, terms: SpotTerms, *, at: datetime) -> None:
    """Let a bid that found no place take part if it would win now, and have a place once those are gone who would lose.

    Else it stays left out: so nobody is driven out again for GPUs that it could not use, however often it tries.
    """
    Bid.objects.filter(pk=bid.pk).update(left_out_at=None)
    standing = entries(offer_id=bid.offer_id, at=at)
    rules = _rules(terms, tick_at=at, last_charged_micros=None, at=at)
    winners = set(auction.clear(rules, [entry.bid for entry in standing]).winners)
    losers = [entry.instance_id for entry in standing if entry.holds_gpus and entry.bid.id not in winners]
    is_left_out = bid.public_id not in winners or not room.has_place(bid.instance, candidates=losers)
    bid.left_out_at = (bid.left_out_at or at) if is_left_out else None
    Bid.objects.filter(pk=bid.pk).update(left_out_at=bid.left_out_at)


def _call_off_if_it_wins(bid: Bid, told: Interruption, terms: SpotTerms, *, must: bool, at: datetime) -> None:
    can = told.state in {Interruption.State.PLANNED, Interruption.State.NOTIFIED} and told.reason in MARKET_REASONS
    pays_micros = floating.price_now(bids.series_of(terms, at=at), at=at)
    if can and pays_micros <= bid.price_micros and _would_win(bid, terms, at=at):
        interruptions.call_off(interruption=told, at=at, message=instance_texts.BID_RAISED())
    elif must:
        raise Conflict(gettext("That is not enough to call off the interruption; nothing was changed."))


def _would_win(bid: Bid, terms: SpotTerms, *, at: datetime) -> bool:
    """Return whether it would if the auction were held now, with all bids as they stand and this one as running."""
    standing = [
        entry.bid._replace(is_incumbent=entry.bid.is_incumbent or entry.bid_id == bid.pk)
        for entry in entries(offer_id=bid.offer_id, at=at)
    ]
    rules = _rules(terms, tick_at=at, last_charged_micros=None, at=at)
    return bid.public_id in auction.clear(rules, standing).winners


@transaction.atomic
def withdraw(*, actor: Actor, bid: Bid, at: datetime) -> None:
    """Take a bid back that has no GPUs: its instance ends. Withdrawing twice changes nothing."""
    (instance,) = instances.lock([bid.instance_id])
    if instance.desired == Instance.Desired.TERMINATED:
        return
    if instance.phase not in {Phase.QUEUED, *AT_REST}:
        raise IllegalMove(gettext("%(name)s has GPUs; stop or terminate it instead.") % {"name": instance.name})
    instances.terminate(instance=instance, at=at, message=instance_texts.BID_WITHDRAWN(who=actor.name))
    audit.record_of(bid, "bid.withdraw", actor=actor)


@transaction.atomic
def simulate_interruption(*, actor: Actor, instance: Instance, at: datetime) -> Interruption:
    """Interrupt an instance as an auction would: the same notice and ladder, and it queues again. It earns nothing."""
    terms = SpotTerms.objects.select_related("offer").filter(offer=instance.offer_id).first()
    if instance.market != Instance.Market.SPOT or terms is None:
        raise IllegalMove(gettext("Only what bids by auction can be interrupted; this never is."))
    (locked,) = instances.lock([instance.pk])
    if locked.phase != Phase.RUNNING or interruptions.open_of(locked) is not None:
        raise IllegalMove(
            gettext("Only what runs can be interrupted; this is: %(phase)s.") % {"phase": locked.get_phase_display()}
        )
    plan([instance.pk], Interruption.Reason.SIMULATED, terms, since=at)
    (told,) = Interruption.objects.filter(instance=instance, state=Interruption.State.PLANNED)
    interruptions.announce(told.pk, at=at)
    audit.record_of(instance, "instance.simulate_interruption", actor=actor)
    told.refresh_from_db()
    return told


# Holding auctions


def tick_of(terms: SpotTerms, at: datetime) -> datetime:
    """Return the last time before `at` for which an auction is due: ticks count from 1970."""
    interval = timedelta(seconds=terms.interval_s)
    return EPOCH + (at - EPOCH) // interval * interval


def due(*, at: datetime) -> list[int]:
    """Return the offers whose next auction is due."""
    return list(SpotTerms.objects.filter(next_tick_at__lte=at).order_by("next_tick_at").values_list("pk", flat=True))


def clear(*, offer_id: int, at: datetime) -> Auction:
    """Hold the auction of an offer's current tick, or return it where it was held already.

    Its GPUs are counted before, in a transaction of their own: a count locks what everybody locks last.
    """
    calendar.count(at=at, offer_id=offer_id)
    spot_places.look(offer_id=offer_id, at=at)
    return _clear(offer_id=offer_id, at=at)


@transaction.atomic
def _clear(*, offer_id: int, at: datetime) -> Auction:
    lock_offer(offer_id)
    # Locked, so that a manager who changes them at this moment changes what the next auction follows.
    terms = SpotTerms.objects.select_for_update(of=("self",), no_key=True).select_related("offer").get(pk=offer_id)
    tick_at = tick_of(terms, at)
    next_at = tick_at + timedelta(seconds=terms.interval_s)
    held = Auction.objects.filter(offer=offer_id, tick_at=tick_at).first()
    if held is not None:
        SpotTerms.objects.filter(pk=offer_id, next_tick_at__lt=next_at).update(next_tick_at=next_at)
        return held
    found = entries(offer_id=offer_id, at=at)
    last = Auction.objects.filter(offer=offer_id).order_by("-tick_at").first()
    last_micros = last.charged_micros if last is not None and last.currency == terms.currency else None
    rules = _rules(terms, tick_at=tick_at, last_charged_micros=last_micros, at=at)
    sealed = [entry.bid for entry in found]
    outcome = auction.clear(rules, sealed)
    held = _store(terms, tick_at, rules, sealed, outcome, at=at)
    won = set(outcome.winners)
    _allocate(held, [entry for entry in found if entry.bid.id in won])
    _carry_out(held, terms, found, won, at=at)
    is_over = not terms.is_enabled and not any(entry.is_admitted for entry in found)
    SpotTerms.objects.filter(pk=offer_id).update(next_tick_at=None if is_over else next_at)
    calendar.limit_spot(offer_id=offer_id, gpus=held.capacity_gpus)
    log.info("auction", auction=held.public_id, offer=offer_id, bids=outcome.bids, price=outcome.price_micros)
    return held


@transaction.atomic
def advise(*, offer_id: int, at: datetime) -> int:
    """Tell whoever the next auction may outbid, and take back what is not so any more; return for how many.

    Its own transaction, since it locks nodes: where it is missed, the one after the next auction makes up for it.
    """
    lock_offer(offer_id)
    terms = SpotTerms.objects.get(pk=offer_id)
    at_risk = risk.near(offer_id, risk.last_of(offer_id))
    return advisories.stand(offer_id=offer_id, at_risk=at_risk, min_notice_s=terms.min_notice_s, at=at)


def _rules(terms: SpotTerms, *, tick_at: datetime, last_charged_micros: int | None, at: datetime) -> auction.Rules:
    return auction.Rules(
        offer=terms.offer.public_id,
        tick=tick_at.isoformat(),
        currency=terms.currency,
        capacity_gpus=spot_capacity.free_gpus(terms, at=at),
        reserve_micros=terms.reserve_micros,
        hysteresis_bp=terms.hysteresis_bp,
        rise_bp=terms.rise_bp,
        last_charged_micros=last_charged_micros,
        curve_bids_min=auction.CURVE_BIDS_MIN,
        cap_bp=terms.cap_bp,
    )


def _store(
    terms: SpotTerms,
    tick_at: datetime,
    rules: auction.Rules,
    sealed: Sequence[auction.Bid],
    outcome: auction.Outcome,
    *,
    at: datetime,
) -> Auction:
    book = auction.book(rules, sealed)
    return Auction.objects.create(
        offer_id=terms.offer_id,
        tick_at=tick_at,
        held_at=at,
        currency=terms.currency,
        capacity_gpus=rules.capacity_gpus,
        reserve_micros=rules.reserve_micros,
        price_micros=outcome.price_micros,
        charged_micros=outcome.charged_micros,
        published=outcome.published().decode(),
        book=zlib.compress(book, 1),
        book_sha256=auction.digest(book),
    )


def _allocate(held: Auction, won: Sequence[Entry]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(ALLOCATE, [held.pk, [entry.bid_id for entry in won], [entry.bid.gpus for entry in won]])


def _carry_out(held: Auction, terms: SpotTerms, found: Sequence[Entry], won: set[str], *, at: datetime) -> None:
    """Let winners in, plan to interrupt losers, call off what is not needed any more, and let the price move."""
    let_in = [entry.instance_id for entry in found if entry.bid.id in won and not entry.is_admitted]
    lost = [entry.instance_id for entry in found if entry.bid.id not in won and entry.is_admitted and not entry.told_id]
    stays = [entry for entry in found if entry.bid.id in won and entry.told_id]
    # What won before and takes no part any more, for want of funds or by a policy, is not waited for.
    queued = Instance.objects.filter(phase=Phase.QUEUED)
    outside = set(queued.filter(bid__offer=held.offer_id, admitted_at__isnull=False).values_list("pk", flat=True))
    gone = outside.difference(entry.instance_id for entry in found)
    with connection.cursor() as cursor:
        for statement in LOCK_ROWS:
            cursor.execute(statement, [[*let_in, *lost, *gone, *(entry.instance_id for entry in stays)]])
    ask(LET_OUT, {"instances": [*lost, *gone]})
    ask(LET_IN, {"instances": let_in, "at": at})
    for instance_id in let_in[:NUDGES_MAX]:
        engine.nudge(instance_id)
    # Everybody's accounts at once and before any node, in the order in which everybody locks them.
    accounts.lock_many(_payers(terms.offer_id))
    series = bids.series_of(terms, at=at)
    old_micros = floating.price_now(series, at=at)
    point = floating.append(series=series, micros_per_unit_hour=held.charged_micros, at=at)
    for told in Interruption.objects.filter(pk__in=[entry.told_id for entry in stays]).order_by("instance"):
        interruptions.call_off(interruption=told, at=at, message=instance_texts.BID_WON())
    if lost:
        reason = Interruption.Reason.OUTBID if let_in else Interruption.Reason.CAPACITY
        new, going = set(let_in), set(lost)
        outbidders = {entry.bid.owner for entry in found if entry.instance_id in new}
        own = {entry.instance_id for entry in found if entry.instance_id in going and entry.bid.owner in outbidders}
        plan(lost, reason, terms, since=max(point.starts_at, at), micros=old_micros, own=own)


def _payers(offer_id: int) -> list[int]:
    """Return the organizations that pay for GPUs of an offer by auction now, those in their notice among them."""
    paying = Instance.objects.filter(offer=offer_id, market=Instance.Market.SPOT, phase__in=CHARGED_PHASES)
    return list(paying.order_by().values_list("project__organization", flat=True).distinct())


def plan(
    instance_ids: Sequence[int],
    reason: Interruption.Reason,
    terms: SpotTerms,
    *,
    since: datetime,
    micros: int | None = None,
    own: Collection[int] = (),
) -> None:
    """Plan interruptions at the price that held until the millisecond of `since`, from which on no other does.

    What was outbid by its `own` organization is not free, however young: two bids in turn would never pay.
    """
    since = rating.whole_millisecond(since)
    series = bids.series_of(terms, at=since)
    still = prices.publish(
        sku=terms.offer.spot_notice_sku,
        currency=terms.currency,
        micros_per_unit_hour=floating.price_now(series, at=since) if micros is None else micros,
        effective_from=since,
        by=bids.BY,
        at=since,
    )
    others = [instance_id for instance_id in instance_ids if instance_id not in own]
    for going, free_before_s in ((others, terms.interval_s), (own, 0)):
        if going:
            interruptions.plan(
                instance_ids=going,
                reason=reason,
                min_notice_s=terms.min_notice_s,
                free_before_s=free_before_s,
                price_version=still,
                since=since,
            )


def resume(*, at: datetime, limit: int) -> int:
    """Let what was interrupted queue again as a new run, the longest waiting first; return how many do."""
    resting = Instance.objects.filter(phase=Phase.INTERRUPTED, restart_at__lte=at, quota_held=0)
    queued = 0
    for instance_id in list(resting.order_by("restart_at", "pk").values_list("pk", flat=True)[:limit]):
        try:
            _resume(instance_id, at=at)
            queued += 1
        except (BillingError, MarketError, ProvisioningError) as refusal:
            message = instance_texts.BIDS_NOT_YET(refusal=numbers.said(refusal))
            still = Instance.objects.filter(pk=instance_id, phase=Phase.INTERRUPTED)
            still.update(restart_at=at + AGAIN_AFTER, message=message)
    return queued


@transaction.atomic
def _resume(instance_id: int, *, at: datetime) -> None:
    related = Instance.objects.select_related("project__organization", "offer", "price_version")
    instance = related.get(pk=instance_id)
    rentals.check_open(instance.project)
    was = Reason(instance.reason)
    message = instance_texts.BIDS_AGAIN()
    rentals.start_run(
        instance, price=instance.price_version, token=instance.ordered_with, at=at, reason=was, message=message
    )


def lock_offer(offer_id: int, *, is_shared: bool = False) -> None:
    """Let no auction of an offer be held until the caller's transaction ends; `is_shared` lets others do that too."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK_SHARED if is_shared else LOCK, [f"spot:{offer_id}"])
