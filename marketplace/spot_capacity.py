"""How many GPUs of an offer an auction may give away: what nobody else has a better right to."""

from datetime import datetime, timedelta

from marketplace import coverage, lending, waiting
from marketplace.models import SpotTerms
from provisioning import calendar
from provisioning.models import Capacity


def free_gpus(terms: SpotTerms, *, at: datetime) -> int:
    """Return the GPUs in good order that are free of every promise until the next auction and one notice after it.

    What spot instances hold now is among them: they bid for it like everybody. As last counted: a count would
    lock here what everybody locks last.
    """
    counted = Capacity.objects.filter(pk=terms.offer_id).first()
    if counted is None or not terms.is_enabled:
        return 0
    until = at + timedelta(seconds=terms.interval_s + terms.min_notice_s)
    committed = calendar.peak_within(offer_id=terms.offer_id, starts_at=at, ends_at=until)
    promised = counted.open_ended + committed + terms.buffer_gpus + asked_on_demand(terms, at=at)
    delivered_elsewhere = coverage.uncounted_gpus(offer_id=terms.offer_id, starts_at=at, ends_at=until)
    return max(0, counted.gpus - promised + delivered_elsewhere + lent(terms, at=at))


def asked_on_demand(terms: SpotTerms, *, at: datetime) -> int:
    """Return the GPUs that waiting demand without auction asks for; it goes before every bid."""
    return waiting.demand(terms.offer, at)


def lent(terms: SpotTerms, *, at: datetime) -> int:
    """Return the committed GPUs that holders of reservations lend for this time."""
    return lending.lent_gpus(offer_id=terms.offer_id, at=at)
