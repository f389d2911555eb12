"""On which market a job's next task starts now, and at what price at most.

`cheapest` bids in the spot auction, or where there is none waits until the price
on demand is no more than its own, for as long as the deadline allows; what is
left starts on demand, at its price, once only just enough time is left for it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext

from marketplace import bids, rentals
from marketplace.errors import BadOrder
from marketplace.models import Job, SpotTerms
from marketplace.money import shown
from provisioning import calendar

Market = Job.Market
MARGIN = timedelta(minutes=5)


@dataclass(frozen=True)
class Way:
    """How a task starts: by a bid of so much for a GPU-hour, or rented; `rate_micros` is the most that it costs."""

    rate_micros: int
    bid_micros: int | None = None


Refusal = tuple[Job.Why, str]
GOES = (Job.Why.NONE, "")


def way_now(job: Job, *, at: datetime) -> tuple[Way | None, Refusal]:
    """Return how a job's next task starts now, or None and what keeps it from that."""
    if job.market == Market.RESERVED:
        return Way(0), GOES
    if job.market == Market.SPOT:
        assert job.max_price_micros is not None
        return Way(job.max_price_micros, bid_micros=job.max_price_micros), GOES
    try:
        on_demand = rentals.price_of(job.offer, currency=job.project.organization.currency, at=at).micros_per_unit_hour
        if job.market == Market.CHEAPEST and not is_urgent(job, at=at):
            return _cheap_way(job, on_demand, at)
    except BadOrder as refusal:
        return None, (Job.Why.REFUSED, str(refusal))
    if job.market == Market.ON_DEMAND and job.max_price_micros is not None and on_demand > job.max_price_micros:
        return None, _too_dear(job, on_demand)
    return Way(on_demand), GOES


def _cheap_way(job: Job, on_demand: int, at: datetime) -> tuple[Way | None, Refusal]:
    terms = SpotTerms.objects.select_related("offer").filter(
        offer=job.offer, is_enabled=True, currency=job.project.organization.currency
    ).first()  # fmt: skip
    if terms is not None:
        bid = _bid_of(job, terms, on_demand)
        bids.check_price(terms, bid, at=at)
        return Way(bid, bid_micros=bid), GOES
    if job.max_price_micros is None or on_demand <= job.max_price_micros:
        return Way(on_demand), GOES
    return None, _too_dear(job, on_demand)


def _bid_of(job: Job, terms: SpotTerms, on_demand: int) -> int:
    """Return what a job that wants it cheap bids: its own price, or half-way between the reserve and on demand."""
    wanted = job.max_price_micros
    price = min((terms.reserve_micros + on_demand) // 2 if wanted is None else wanted, on_demand)
    return max(terms.reserve_micros, price - price % terms.grid_micros)


def is_urgent(job: Job, *, at: datetime) -> bool:
    """Return whether only just enough time is left for what a job has still to do, if each takes all its time."""
    assert job.deadline is not None
    assert job.time_limit_s is not None
    left = job.pending + job.running
    at_once = max(1, gpus_of(job, at=at) // job.all_gpus)
    at_once = min(at_once, job.parallel or at_once)
    rounds = -(-left // at_once)
    return at >= job.deadline - rounds * timedelta(seconds=job.time_limit_s) - MARGIN


def gpus_of(job: Job, *, at: datetime) -> int:
    """Return how many GPUs the offer of a job has in good order, as they were counted last."""
    return calendar.gpus_of_offer(job.offer_id) or calendar.gpus_there(job.offer_id, at=at)


def _too_dear(job: Job, price: int) -> Refusal:
    currency = job.project.organization.currency
    text = gettext("A GPU-hour costs %(price)s now; it may cost %(most)s.") % {
        "price": shown(price, currency, exact=True), "most": shown(job.max_price_micros or 0, currency, exact=True),
    }  # fmt: skip
    return Job.Why.PRICE, text
