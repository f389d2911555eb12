"""Rate cards: one person proposes what a supplier gets, another approves it, and from then on it stands."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from billing import accounts, decisions, repeats
from billing.accounts import Organization
from billing.errors import BadRateCard, RetroactivePrice
from billing.models import RateCard
from billing.models.suppliers import BPS

State = RateCard.State


@dataclass(frozen=True, slots=True)
class Terms:
    """What a card says; see `RateCard`. `offer` is an offer's id, or empty for all without a card of their own."""

    share_bps: int
    offer: str = ""
    fixed_micros: int | None = None
    fixed_currency: str = ""
    reserve_bps: int = 0
    reserve_days: int = 0
    sla_bps: int = BPS

    def check(self) -> None:
        """Raise BadRateCard for what nobody can be paid by."""
        if not all(0 <= bps <= BPS for bps in (self.share_bps, self.reserve_bps, self.sla_bps)):
            raise BadRateCard("a share is between nothing and all, in hundredths of a percent")
        if (self.fixed_micros is None) != (not self.fixed_currency) or (self.fixed_micros or 0) < 0:
            raise BadRateCard("a fixed amount needs a currency and is not negative")


@transaction.atomic
def propose(
    *, supplier: Organization, terms: Terms, effective_from: datetime, by: int, key: UUID, at: datetime
) -> RateCard:
    """Propose what a supplier gets from a moment on, once per key; nothing is so yet. `by` is a person's id.

    Raises RetroactivePrice for a moment that is over.
    """
    terms.check()
    wanted = {name: getattr(terms, name) for name in Terms.__slots__}
    first = repeats.find(RateCard, key, supplier_id=supplier.pk, **wanted)
    if first is not None:
        return first
    if effective_from < at:
        raise RetroactivePrice(f"{effective_from:%Y-%m-%d %H:%M} is over")
    return RateCard.objects.create(
        supplier_id=supplier.pk, effective_from=effective_from, proposed_by_id=by, proposed_at=at, key=key, **wanted
    )


@transaction.atomic
def approve(*, card: RateCard, by: int, at: datetime) -> RateCard:
    """Let a card be in force from its moment on, or from now on if that has passed. Not by whoever proposed it."""
    accounts.open_for(organization=card.supplier, is_supplier=True)
    try:
        with transaction.atomic():
            decisions.decide(card, State.APPROVED, by=by, at=at, effective_from=max(card.effective_from, at))
    except IntegrityError as error:
        raise BadRateCard("another rate card of this supplier begins at the same moment") from error
    return card


@transaction.atomic
def decline(*, card: RateCard, by: int, at: datetime) -> None:
    """Leave things as they are; whoever proposed may take the proposal back in this way too."""
    decisions.decide(card, State.DECLINED, by=by, at=at)


def of(supplier: Organization) -> QuerySet[RateCard]:
    """Return a supplier's cards, the newest first."""
    found = RateCard.objects.filter(supplier=supplier.pk).select_related("supplier", "proposed_by", "decided_by")
    return found.order_by("-effective_from", "-pk")


def in_force(*, supplier: Organization, offer: str, at: datetime) -> RateCard | None:
    """Return by which card a supplier is paid for an offer at a moment, None where by none."""
    found = RateCard.objects.filter(Q(offer=offer) | Q(offer=""), supplier=supplier.pk, state=State.APPROVED)
    return found.filter(effective_from__lte=at).order_by("-offer", "-effective_from").first()
