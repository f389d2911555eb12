"""Waiting for GPUs: orders that start by themselves. What fits instead, and when some come free, says `outlook`.

The rules, which the customer can read (docs/quotas.md):

* One queue for each offer, first come, first served. While the first order
  waits for GPUs, nothing behind it starts, however small: a gang is not starved.
* Where GPUs enough are free and one finds no place by its shape alone, the nodes
  that lack least to be its place are kept for it, and those behind start on
  others, whichever door they come through. What would not fit into an empty fleet is refused.
* What is held up by something of its own (its price, funds, quota, a budget) is
  passed over and keeps its place; so is what outgrew a fleet that has shrunk.
* While others wait, an organization that has `SHARE_MAX_PERCENT` of the offer's
  GPUs is passed over, too.
* A new order from any door gets only what the queue leaves over.

An order starts in the transaction that closes its entry, so a crash at any
moment leaves it waiting or started, and it never starts twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import BooleanField, ExpressionWrapper, F, Q, Sum
from django.db.models.functions import Coalesce
from django.utils.translation import get_language, gettext

from billing.errors import BillingError, InsufficientFunds
from marketplace import access, audit, held, numbers, rentals
from marketplace.access import Actor
from marketplace.errors import BadOrder, BudgetExceeded, IllegalState, MarketError
from marketplace.models import Offer, Organization, Project, WaitingOrder
from marketplace.money import shown
from marketplace.revenue_share import covering
from marketplace.tries import tried
from provisioning import calendar, kept_nodes
from provisioning.errors import NeverFits, NoCapacity, PolicyExcludes, ProvisioningError, QuotaExceeded
from provisioning.models import Capacity, Instance
from provisioning.told import refused
from provisioning.volumes import Use
from provisioning.work import Counters, Work

log = structlog.get_logger("marketplace.waiting")

UNTIL_MAX = timedelta(days=30)
# For how many of a queue nodes are kept at once: each costs a look at all of them.
PLACES_MAX = 10
WAITS_MAX = 20  # of one organization for one offer
SHARE_MAX_PERCENT = 50
ENGLISH = "en"
# What of a kept order names rows, which are looked up again when it starts.
APART = ("volumes", "reservation", "counters", "contract")

State = WaitingOrder.State
Why = WaitingOrder.Why
WAITING = Q(state=State.WAITING)
# What was tried and lacked nothing but GPUs: what new orders and spot leave room for.
LACKING_GPUS = WAITING & Q(why=Why.CAPACITY, tried_at__isnull=False)
# What one refusal means for an order that waits; anything else is a refusal of the order itself.
WHYS: tuple[tuple[type[Exception], Why], ...] = (
    (PolicyExcludes, Why.REFUSED),
    (NeverFits, Why.REFUSED),
    (NoCapacity, Why.CAPACITY),
    (InsufficientFunds, Why.FUNDS),
    (QuotaExceeded, Why.QUOTA),
    (BudgetExceeded, Why.BUDGET),
)

# The capacity's row is locked by a statement before this one: who began to wait meanwhile is then seen.
TELL_CAPACITY = """
UPDATE provisioning_capacity capacity SET waiting = queue.gpus, lets_pass = coalesce(%(lets_pass)s, lets_pass)
FROM (
    SELECT coalesce(sum(gpus * replicas), 0) AS gpus FROM marketplace_waitingorder
    WHERE offer_id = %(offer)s AND state = 'waiting' AND why = 'capacity' AND tried_at IS NOT NULL
) queue WHERE capacity.offer_id = %(offer)s
"""


@transaction.atomic
def wait(
    *, actor: Actor, project: Project, order: rentals.Order, max_micros_per_gpu_hour: int, until: datetime, at: datetime
) -> WaitingOrder:
    """Put an order into the queue of its offer. Nothing is held or charged until it starts.

    Raises BadOrder or NeverFits for what could never start, PolicyExcludes for what a policy
    keeps from starting, ProjectSuspended where nothing may. A policy that is set later, a fleet that
    shrinks or a share of revenue that pays for no more hours lets it wait, and it says so (`told`).
    """
    rentals.check_open(project)
    rentals.check(order)
    rentals.check_possible(project=project, order=order, at=at)
    if order.under is not None:
        covering.check_terms(order.under, offer=order.offer, gpus=order.gpus * order.replicas)
    rentals.price_of(order.offer, currency=project.organization.currency, at=at)
    if max_micros_per_gpu_hour <= 0:
        raise BadOrder("max_price", gettext("Say the most that a GPU-hour may cost, such as 2.50."))
    if not at < until <= at + UNTIL_MAX:
        raise BadOrder(
            "until", gettext("Say until when it is to wait: later than now, and %(days)s days at most.") % {"days": 30}
        )
    mine = WaitingOrder.objects.filter(WAITING, offer=order.offer, project__organization=project.organization)
    if mine.count() >= WAITS_MAX:
        raise BadOrder(
            "offer", gettext("An organization has at most %(most)s orders waiting for an offer.") % {"most": WAITS_MAX}
        )
    entry = WaitingOrder.objects.create(
        project=project,
        offer=order.offer,
        user=actor.user,
        token=actor.token,
        gpus=order.gpus,
        replicas=order.replicas,
        order=_written(order),
        max_micros_per_gpu_hour=max_micros_per_gpu_hour,
        until=until,
        created_at=at,
    )
    after = {"offer": order.offer.slug, "gpus": order.gpus, "replicas": order.replicas, "until": until.isoformat()}
    audit.record_of(entry, "wait.begin", actor=actor, after=after)
    _tell_capacity(order.offer.pk, at=at)
    return entry


@transaction.atomic
def cancel(*, actor: Actor, entry: WaitingOrder, at: datetime) -> None:
    """Take an order out of the queue. Cancelling twice changes nothing; what has started is ended as an instance."""
    locked = WaitingOrder.objects.select_for_update(no_key=True).get(pk=entry.pk)
    if locked.state == State.CANCELLED:
        return
    _move(locked, State.CANCELLED, at=at)
    entry.state, entry.closed_at = locked.state, locked.closed_at
    audit.record_of(entry, "wait.cancel", actor=actor)
    _tell_capacity(entry.offer_id, at=at)


def told(entry: WaitingOrder) -> str:
    """Say why an order still waits, in the reader's language.

    The sweep writes it in English; where it is no text of ours, readers of another
    language get the words for the kind of hindrance, and those of a refusal behind them.
    """
    if entry.tried_at is None:
        return gettext("It is new: whether it can start is found out within seconds.")
    label = entry.get_why_display()
    said = refused(entry.message)
    if said != entry.message or (get_language() or ENGLISH).startswith(ENGLISH):
        return said or label
    return f"{label} ({entry.message})" if entry.why == Why.REFUSED and entry.message else label


def demand(offer: Offer, at: datetime) -> int:
    """Return how many GPUs of an offer are waited for by orders that were tried and lacked nothing else."""
    return gpus_of(WaitingOrder.objects.filter(LACKING_GPUS, offer=offer, until__gt=at))


def positions(entries: Iterable[WaitingOrder]) -> dict[int, int]:
    """Return by primary key at which place of its offer's queue each order stands, from 1. One query."""
    entries = [entry for entry in entries if entry.state == State.WAITING]
    rows = WaitingOrder.objects.filter(WAITING, offer__in={entry.offer_id for entry in entries})
    queues: dict[int, list[int]] = {}
    for offer_id, pk in rows.order_by("pk").values_list("offer_id", "pk"):
        queues.setdefault(offer_id, []).append(pk)
    return {entry.pk: queues[entry.offer_id].index(entry.pk) + 1 for entry in entries if entry.offer_id in queues}


def start_due(*, at: datetime, limit: int) -> int:
    """Expire what waited too long and start what can start, each queue from its head; return how many started.

    `limit` bounds, in each queue, how many are tried of those that something of
    their own held up, and how many of the others. Safe to run twice at once: an
    entry is locked while it starts.
    """
    _expire(at=at, limit=limit)
    started = 0
    queues = WaitingOrder.objects.filter(WAITING).values_list("offer", flat=True)
    # Also of those that are over: nobody waits there for what is left to them.
    over = Capacity.objects.filter(waiting__gt=0).values_list("pk", flat=True)
    for offer_id in sorted({*queues, *over, *kept_nodes.offers_with_any(kept_nodes.Kept.QUEUE)}):
        started += tried(partial(_serve, offer_id, at=at, limit=limit), log, "not served", offer=offer_id)
    return started


def _serve(offer_id: int, *, at: datetime, limit: int) -> int:
    calendar.count(at=at, offer_id=offer_id)  # A share is one of what is there.
    started, kept, lets_pass = _start_some(offer_id, at=at, limit=limit)
    kept_nodes.for_queue(offer_id=offer_id, node_ids=kept)
    _tell_capacity(offer_id, at=at, lets_pass=lets_pass)
    return started


def _start_some(offer_id: int, *, at: datetime, limit: int) -> tuple[int, frozenset[int], bool]:
    """Start what can start of one queue; return how many, the nodes that are to be the places of others, and whether
    those behind may have the rest.

    Nobody passes who waits for GPUs, but on nodes that are not to be their places.
    """
    started, places, kept = 0, 0, frozenset[int]()
    for pk in _turn(offer_id, at=at, limit=limit):
        why, message = _try(pk, at=at, spares=kept)
        started += why is None
        if why != Why.CAPACITY:
            continue
        nodes = _kept_for(pk, spares=kept) if places < PLACES_MAX else None
        if nodes is None:
            return started, kept, False
        if not nodes:
            nowhere = gettext("It has no place in service now, even if all GPUs there were free.")
            _say(pk, Why.REFUSED, f"{message} {nowhere}", at=at)
        places, kept = places + bool(nodes), kept | nodes
    return started, kept, True


def _turn(offer_id: int, *, at: datetime, limit: int) -> list[int]:
    """Return by primary key whom to try now, in the order of the queue; nobody whose time is over.

    Of those that something of their own held up the longest untried, so that
    each has its turn; first those ahead of the first that waits for GPUs,
    since that one lets nobody behind it start.
    """
    queue = WaitingOrder.objects.filter(WAITING, offer=offer_id, until__gt=at)
    others = list(queue.filter(why=Why.CAPACITY).order_by("pk").values_list("pk", flat=True)[:limit])
    is_behind = ExpressionWrapper(Q(pk__gt=others[0] if others else 0), output_field=BooleanField())
    held_up = queue.exclude(why=Why.CAPACITY).annotate(is_behind=is_behind).order_by("is_behind", "tried_at", "pk")
    return sorted([*others, *held_up.values_list("pk", flat=True)[:limit]])


def _expire(*, at: datetime, limit: int) -> None:
    late = WaitingOrder.objects.filter(WAITING, until__lte=at).order_by("pk").values_list("pk", flat=True)
    for pk in list(late[:limit]):
        tried(partial(_expire_one, pk, at=at), log, "not expired", waiting=pk)


@transaction.atomic
def _expire_one(pk: int, *, at: datetime) -> bool:
    entry = _locked(pk)
    if entry is None:
        return False
    _move(entry, State.EXPIRED, at=at)
    _record_own(entry, "wait.expire", {"until": entry.until.isoformat()})
    return True


def _kept_for(pk: int, *, spares: frozenset[int]) -> frozenset[int] | None:
    """Return the nodes to keep for an order that waits: all (None), or none where it has no place in service."""
    entry = WaitingOrder.objects.select_related("project", "offer").filter(WAITING, pk=pk).first()
    try:
        if entry is None:
            return frozenset()
        return rentals.kept_for(project=entry.project, order=_read(entry), spares=spares)
    except (MarketError, ProvisioningError):
        return None  # A volume of it is gone this moment: the next try says so, and lets the others pass.


def _try(pk: int, *, at: datetime, spares: frozenset[int]) -> tuple[Why | None, str]:
    """Start an order, not on nodes that it `spares`; say why it waits: None if it started or somebody else has it."""
    is_strict = False
    try:
        with transaction.atomic():
            entry = _locked(pk)
            if entry is None:
                return None, ""
            is_strict = _is_strict(entry.order)
            hindrance = _hindrance(entry, at=at)
            if hindrance is None:
                _start(entry, at=at, spares=spares)
                return None, ""
    except (BillingError, MarketError, ProvisioningError) as refusal:
        hindrance = _why(refusal, is_strict=is_strict), numbers.said(refusal)
    except (SoftTimeLimitExceeded, OperationalError, InterfaceError):
        raise  # Nothing that this order did: it keeps its turn.
    except Exception:  # one order that fails must not keep those behind it from their turn
        log.exception("not started", waiting=pk)
        hindrance = Why.REFUSED, gettext("Something went wrong on our side")
    _say(pk, *hindrance, at=at)
    return hindrance


def _say(pk: int, why: Why, message: str, *, at: datetime) -> None:
    """Write down why an order waits. It may have been cancelled meanwhile: then there is nothing to tell."""
    WaitingOrder.objects.filter(WAITING, pk=pk).update(why=why, message=message, tried_at=at)


def _start(entry: WaitingOrder, *, at: datetime, spares: frozenset[int]) -> None:
    instance = rentals.rent(
        actor=Actor(user=entry.user, token=entry.token), project=entry.project, order=_read(entry), at=at,
        spares=spares,
    )  # fmt: skip
    _move(entry, State.STARTED, at=at, instance=instance)
    _record_own(entry, "wait.start", {"instance": instance.public_id})
    log.info("started", waiting=entry.public_id, instance=instance.public_id, waited_s=(at - entry.created_at).seconds)


def _hindrance(entry: WaitingOrder, *, at: datetime) -> tuple[Why, str] | None:
    """Return what speaks against a start before anything is taken, and the same in words."""
    organization = entry.project.organization
    actor = Actor(user=entry.user, token=entry.token)
    gone = entry.token is not None and (entry.token.revoked_at is not None or entry.token.expires_at <= at)
    if gone or not entry.user.is_active or not access.may(actor, organization, "wait.change"):
        return Why.REFUSED, gettext("Whoever ordered it may not rent here any more.")
    price = rentals.price_of(entry.offer, currency=organization.currency, at=at)
    if price.micros_per_unit_hour > entry.max_micros_per_gpu_hour:
        return Why.PRICE, gettext("A GPU-hour costs %(price)s now; it may cost %(most)s.") % {
            "price": shown(price.micros_per_unit_hour, price.currency, exact=True),
            "most": shown(entry.max_micros_per_gpu_hour, price.currency, exact=True),
        }
    return _over_its_share(entry, organization)


def _over_its_share(entry: WaitingOrder, organization: Organization) -> tuple[Why, str] | None:
    others = WaitingOrder.objects.filter(WAITING, offer=entry.offer).exclude(project__organization=organization)
    if not others.exists():
        return None
    all_gpus = calendar.gpus_of_offer(entry.offer_id)
    has: int = Instance.objects.filter(offer=entry.offer, project__organization=organization).aggregate(
        gpus=Coalesce(Sum("quota_held"), 0)
    )["gpus"]
    # Who has none yet may always have one order, however large.
    if not has or (has + entry.all_gpus) * 100 <= all_gpus * SHARE_MAX_PERCENT:
        return None
    return Why.SHARE, gettext("The organization has %(has)s of %(all)s GPUs, and others wait.") % {
        "has": has, "all": all_gpus,
    }  # fmt: skip


def _why(refusal: Exception, *, is_strict: bool) -> Why:
    why = next((why for kind, why in WHYS if isinstance(refusal, kind)), Why.REFUSED)
    # What starts only inside a reservation waits for that one's GPUs, not for the queue's.
    return Why.REFUSED if is_strict and why == Why.CAPACITY else why


def _is_strict(kept: Mapping[str, Any]) -> bool:
    return kept.get("attach") == Instance.Attach.STRICT or bool(kept.get("reservation"))


def _locked(pk: int) -> WaitingOrder | None:
    """Lock an order that still waits; None where it does not, or where somebody else has it this moment."""
    rows = WaitingOrder.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
    rows = rows.select_related("project__organization", "offer__site", "user", "token__membership__organization")
    return rows.filter(WAITING, pk=pk).first()


def _move(entry: WaitingOrder, state: State, *, at: datetime, instance: Instance | None = None) -> None:
    """Change state if the map allows it. The caller holds the row's lock."""
    if state not in WaitingOrder.MOVES[entry.state]:
        raise IllegalState(
            gettext("This order does not wait any more: it is %(state)s.") % {"state": entry.get_state_display()}
        )
    changed = {"state": state, "closed_at": at, "instance": instance}
    if not WaitingOrder.objects.filter(pk=entry.pk, state=entry.state).update(**changed):
        raise IllegalState(gettext("Somebody else was faster; look again."))
    entry.state, entry.closed_at, entry.instance = state, at, instance


def _record_own(entry: WaitingOrder, verb: str, after: dict[str, Any]) -> None:
    audit.record_own(
        organization=entry.project.organization, verb=verb, subject_id=entry.public_id,
        before={"state": State.WAITING}, after=after,
    )  # fmt: skip


def _written(order: rentals.Order) -> dict[str, Any]:
    return {
        "command": list(order.command), "name": order.name, "env": dict(order.env or {}), "image": order.image,
        "ports": list(order.ports), "lease": order.lease, "on_failure": order.on_failure, "attach": order.attach,
        "wish": dict(order.wish or {}), "reservation": order.reservation.public_id if order.reservation else "",
        "volumes": [
            {"volume": use.volume.public_id, "path": use.path, "read_only": use.read_only} for use in order.uses
        ],
        "counters": asdict(order.work.counters) if order.work.counters else None,
        "contract": order.under.version.public_id if order.under else "",
    }  # fmt: skip


def _read(entry: WaitingOrder) -> rentals.Order:
    kept: Mapping[str, Any] = entry.order
    uses = [
        Use(access.volume_of(entry.project, one["volume"]), one["path"], one["read_only"]) for one in kept["volumes"]
    ]
    named, contract = kept.get("reservation"), kept.get("contract")
    inside = held.reservation_of(entry.project, named) if named else None
    under = covering.agreement(entry.project.organization, contract) if contract else None
    fields = {name: value for name, value in kept.items() if name not in APART}
    return rentals.Order(
        offer=entry.offer, gpus=entry.gpus, replicas=entry.replicas, uses=uses, reservation=inside, under=under,
        work=Work(counters=Counters.of(kept.get("counters"))), **fields,
    )  # fmt: skip


def gpus_of(entries: Any) -> int:
    """Return how many GPUs orders ask for together."""
    wanted: int = entries.aggregate(gpus=Coalesce(Sum(F("gpus") * F("replicas")), 0))["gpus"]
    return wanted


def _tell_capacity(offer_id: int, *, at: datetime, lets_pass: bool | None = None) -> None:
    """Let new orders leave to the queue what it waits for, or all that is free. The last lock of a transaction."""
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        calendar.lock(offer_id=offer_id, at=at)
        cursor.execute(TELL_CAPACITY, {"offer": offer_id, "lets_pass": lets_pass})
