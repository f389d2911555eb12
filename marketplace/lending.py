"""Lending: GPUs of reservations that stand idle may run spot work, which pays their holders a share.

The holder's own use comes first. What they start counts as used at once, so
that what spot may have shrinks, and spot gives back what it needs (`recalls`),
within the offer's notice; until then the holder's instance waits in its queue. What spot
was charged is shared by what ran when (`lending_record`), not by what is so now.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

import structlog
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, Subquery, Sum

from billing import accounts, prepayments
from billing.models import Account, Charge, UsageSpan
from billing.rating import MILLISECOND
from billing.suppliers import accruing
from billing.suppliers.shares import largest_remainder
from marketplace import coverage, holdings, lending_record, refunds
from marketplace.blocks import BP, NOTICE
from marketplace.lending_record import SCALE, Record
from marketplace.models import USABLE, LendingShare, LendingSpell, Offer, Reservation, SpotTerms
from provisioning import calendar
from provisioning.models import Capacity, Instance, Interruption

log = structlog.get_logger("marketplace.lending")

# Charges are shared soon after they are made; one that is older than this was seen by an earlier sweep.
SHARED_WITHIN = timedelta(hours=1)


@dataclass(frozen=True)
class Idle:
    """How many GPUs a reservation could lend now."""

    reservation: Reservation
    gpus: int


def idle(*, offer_id: int, at: datetime) -> list[Idle]:
    """Return what each reservation that lends has idle now, the oldest first. Three queries.

    GPUs that it gives up within a notice are not lent any more: they would be recalled at once.
    """
    found = Reservation.objects.filter(offer=offer_id, is_lent=True, state__in=USABLE).prefetch_related("strips")
    lenders = list(found.select_related("project__organization", "price_version").order_by("pk"))
    used = coverage.used_gpus(lenders)
    spare = []
    for one in lenders:
        strips = list(one.strips.all())
        held = min(holdings.held_at(strips, at), holdings.held_at(strips, at + NOTICE))
        gpus = held - one.missing_gpus - used[one.pk]
        if gpus > 0:
            spare.append(Idle(one, gpus))
    return spare


def lent_gpus(*, offer_id: int, at: datetime) -> int:
    """Return how many GPUs of an offer spot may have beyond what is promised to nobody: those lent and idle now."""
    return sum(one.gpus for one in idle(offer_id=offer_id, at=at))


def in_use(*, offer_id: int, at: datetime) -> int:
    """Return how many of the GPUs that spot holds are lent ones: those beyond what is promised to nobody."""
    held = calendar.spot_gpus(offer_id)
    capacity = Capacity.objects.filter(pk=offer_id).first()
    if not held or capacity is None:
        return 0
    hour = calendar.hour_of(at)
    committed = calendar.peak_within(offer_id=offer_id, starts_at=hour, ends_at=hour + calendar.HOUR)
    uncounted = coverage.uncounted_gpus(offer_id=offer_id, starts_at=at, ends_at=hour + calendar.HOUR)
    free = capacity.gpus + uncounted - capacity.open_ended - committed
    return min(max(0, held - max(0, free)), lent_gpus(offer_id=offer_id, at=at))


def share_due(*, at: datetime, limit: int) -> int:
    """Pay holders their share of what spot was charged for GPUs of theirs; return how many charges were shared."""
    since = at - SHARED_WITHIN
    lending = LendingSpell.objects.filter(Q(ends_at=None) | Q(ends_at__gt=since - SHARED_WITHIN), starts_at__lt=at)
    offers = Offer.objects.filter(pk__in=lending.values("reservation__offer"))
    shared = 0
    for offer in offers.order_by("pk"):
        last = 0
        while page := _charges(offer, after=last, limit=limit, at=at):
            ran = lending_record.between(
                offer, min(since for _, since in page), max(charge.through for charge, _ in page)
            )
            for charge, begun in page:
                shared += share(charge=charge, since=begun, ran=ran, at=at)
                if shared >= limit:
                    return shared
            last = page[-1][0].pk
    return shared


def _charges(offer: Offer, *, after: int, limit: int, at: datetime) -> list[tuple[Charge, datetime]]:
    """Return the next of what spot of an offer was charged lately and that was not shared yet, each since when.

    It goes on after a key: charges of which nobody is paid anything stay, and must not hide those behind them.
    """
    spot = Instance.objects.filter(offer=offer, market=Instance.Market.SPOT, ready_at__isnull=False)
    recent = spot.filter(phase_since__gte=at - SHARED_WITHIN) | spot.filter(quota_held__gt=0)
    spans = UsageSpan.objects.filter(resource_id__in=recent.values("public_id"), labels__market=Instance.Market.SPOT)
    found = Charge.objects.filter(span__in=spans, amount_micros__gt=0, through__gte=at - SHARED_WITHIN)
    found = found.exclude(key__in=LendingShare.objects.values("cause")).exclude(_may_be_free(offer, at=at))
    earlier = Charge.objects.filter(span=OuterRef("span"), through__lt=OuterRef("through"), amount_micros__gt=0)
    before = Subquery(earlier.order_by("-through").values("through")[:1])
    rows = found.filter(pk__gt=after).select_related("span__price_version").annotate(before=before).order_by("pk")
    return [(charge, charge.before or charge.span.started_at) for charge in rows[:limit]]


def _may_be_free(offer: Offer, *, at: datetime) -> Q:
    """Return which charges are given back, or may be yet: those of runs that are told to go within a first interval.

    Holders have no share of those: they could bring it about, by a start that takes their GPUs back.
    """
    began_at = F("run_began_at") - MILLISECOND  # A meter counts from the whole millisecond before.
    told = Interruption.objects.filter(
        Q(settled_at=None) | Q(credited_micros__gt=0),
        Q(ended_at=None) | Q(ended_at__gte=OuterRef("span__started_at")),
        instance__public_id=OuterRef("span__resource_id"),
        notice_at__lt=F("run_began_at") + F("free_before_s") * timedelta(seconds=1),
    )
    first = SpotTerms.objects.filter(offer=offer).values_list("interval_s", flat=True).first() or 0
    young = Q(span__ended_at=None, span__started_at__gt=at - timedelta(seconds=first))
    return young | Q(Exists(told.alias(began_at=began_at).filter(began_at__lte=OuterRef("span__started_at"))))


@transaction.atomic
def share(*, charge: Charge, since: datetime, ran: Record, at: datetime) -> bool:
    """Pay holders for their part of one charge, once: of what spot ran on while it was made, what they lent.

    Each holder gets the share in the terms that they bought on, in proportion to what they had idle, at every moment
    since the charge before, in whole micros by the largest remainder. Of a charge in another currency a holder gets
    nothing, and nobody else gets their part.
    """
    weights = ran.weights(since, charge.through)
    whole = SCALE * ((charge.through - since) // MILLISECOND)
    if not (whole and weights):
        return False
    due = [weight * ran.lenders[pk].terms["lend_share_bp"] for pk, weight in weights.items()]
    micros = charge.amount_micros * sum(due) // (whole * BP)
    if not micros or LendingShare.objects.filter(cause=charge.key).exists():
        return False
    parts = largest_remainder(micros, due)
    paid = zip([ran.lenders[pk] for pk in weights], parts, strict=True)
    currency = charge.span.price_version.currency
    paid_now = [pair for pair in paid if pair[1] and pair[0].currency == currency]
    for one, part in sorted(paid_now, key=lambda pair: pair[0].project.organization_id):
        _pay(charge, one, part, at=at)
    if paid_now:
        lent = Fraction(sum(weights.values()), whole)
        accruing.note_lent(charge=charge, amount_micros=sum(part for _, part in paid_now), share=lent)
    return bool(paid_now)


def _pay(charge: Charge, reservation: Reservation, micros: int, *, at: datetime) -> None:
    organization = reservation.project.organization
    prepayments.pay_out(
        organization=organization,
        key=f"lend:{charge.key}:{reservation.public_id}",
        source=accounts.platform(Account.Kind.REVENUE, organization.currency),
        sent=refunds.split(reservation, micros),
        reason=f"Lending of {reservation.public_id}",
        at=at,
    )
    LendingShare.objects.create(reservation=reservation, cause=charge.key, amount_micros=micros, at=at)


def earned_micros(found: Iterable[Reservation]) -> dict[int, int]:
    """Return what lending has paid for each of these reservations, by primary key. One query."""
    chosen = [reservation.pk for reservation in found]
    rows = LendingShare.objects.filter(reservation__in=chosen).order_by().values_list("reservation")
    return dict.fromkeys(chosen, 0) | dict(rows.annotate(total=Sum("amount_micros")))
