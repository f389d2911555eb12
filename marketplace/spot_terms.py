"""How an offer is sold by auction: set by capacity managers, with a record of who changed what."""

from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils.translation import gettext

from marketplace import auction, audit, spot
from marketplace.blocks import NOTICE
from marketplace.errors import BadOrder
from marketplace.models import Bid, Offer, SpotTerms
from provisioning.models import AT_REST, Phase
from provisioning.steps import QUEUE_MAX

SHOWN = (
    "is_enabled",
    "currency",
    "reserve_micros",
    "grid_micros",
    "interval_s",
    "min_notice_s",
    "hysteresis_bp",
    "rise_bp",
    "buffer_gpus",
    "cap_bp",
)
BASIS_MAX = 100_000
# Whoever starts inside a reservation waits for lent GPUs, and blocks look no further ahead for what is lent: both must
# outlast one interval, one notice and the giving back.
GIVING_BACK = timedelta(minutes=5)
AHEAD_S_MAX = (min(QUEUE_MAX, NOTICE) - GIVING_BACK) // timedelta(seconds=1)


@transaction.atomic
def set_terms(*, offer: Offer, by: str, at: datetime, **changes: Any) -> SpotTerms:
    """Change the terms of an offer, or sell it by auction from now on; the next auction follows them.

    Raises BadOrder naming the field. Who runs is let go with notice where it is sold by auction no more.
    """
    terms = SpotTerms.objects.select_for_update(of=("self",), no_key=True).filter(offer=offer).first()
    before = _shown(terms) if terms is not None else None
    terms = terms or SpotTerms(offer=offer)
    for name, value in changes.items():
        setattr(terms, name, value)
    _check(terms, before)
    terms.changed_at = at
    # What is due stays due; a new pace begins with its own tick.
    terms.next_tick_at = (
        spot.tick_of(terms, at)
        if before is None or terms.next_tick_at is None
        else min(terms.next_tick_at, spot.tick_of(terms, at))
    )
    terms.save()
    audit.record_own(
        organization=offer.supplier,
        verb="spot_terms.set",
        subject_id=offer.public_id,
        before=before or {},
        after=_shown(terms) | {"by": by},
    )
    return terms


def _shown(terms: SpotTerms) -> dict[str, Any]:
    return {name: getattr(terms, name) for name in SHOWN}


def _check(terms: SpotTerms, before: dict[str, Any] | None) -> None:
    limits = {
        "reserve_micros": (1, None),
        "grid_micros": (1, None),
        "interval_s": (1, AHEAD_S_MAX),
        "min_notice_s": (0, AHEAD_S_MAX),
        "hysteresis_bp": (0, BASIS_MAX),
        "rise_bp": (1, BASIS_MAX),
        "buffer_gpus": (0, None),
        "cap_bp": (0, auction.BASIS),
    }
    for name, (least, most) in limits.items():
        value = getattr(terms, name)
        if value < least or (most is not None and value > most):
            between = {"least": least, "most": most}
            text = gettext("At least %(least)s.") if most is None else gettext("From %(least)s to %(most)s.")
            raise BadOrder(name, text % between)
    if (ahead_s := terms.interval_s + terms.min_notice_s) > AHEAD_S_MAX:
        raise BadOrder("min_notice_s", gettext(
            "Interval and notice together last at most %(most)s seconds, here %(ahead)s: who starts inside a "
            "reservation is not kept waiting for longer."
        ) % {"most": AHEAD_S_MAX, "ahead": ahead_s})  # fmt: skip
    if terms.reserve_micros % terms.grid_micros:
        raise BadOrder("reserve_micros", gettext("The reserve is a multiple of the step."))
    if before is not None and before["currency"] != terms.currency and _has_bids(terms):
        raise BadOrder("currency", gettext("Bids stand in the old currency; let them end first."))


def _has_bids(terms: SpotTerms) -> bool:
    ended = (*AT_REST - {Phase.INTERRUPTED}, Phase.TERMINATING)
    return Bid.objects.filter(offer=terms.offer_id).exclude(instance__phase__in=ended).exists()
