"""Sweeps that beat calls; each is bounded, may be run twice and finds by itself what there is to do.

Periods they want: `charge_due` every 20 s in two parts, `watch_runways` and `collect` every 30 s, `expire_holds` and
`expire_credit` every 60 s, `share_outcomes` every minute, `sum_up_revenue` every 5 min, `issue_invoices` every 10
min, `accrue`, `post_adjustments` and `state_suppliers` every hour, `pay_suppliers` every minute; of cards,
`send_payments` and `handle_processor_events` every second, `send_refunds` every 10 s, `top_up` every 30 s,
`fetch_processor_events` every hour and `reconcile` every day.
"""

from celery import shared_task
from django.utils import timezone

from billing import adjusting, charging, daily, dunning, holds, promotions, taken_debts, watch
from billing.invoicing import issuing
from billing.outcomes import costs, sharing
from billing.payments import automatic, events, gateway, paying, reconciliation, refunds
from billing.suppliers import accruing, connecting, payouts, statements


@shared_task
def charge_due(part: int = 0, parts: int = 1) -> None:
    charging.charge_due(at=timezone.now(), part=part, parts=parts)


@shared_task
def expire_holds() -> None:
    holds.expire(at=timezone.now())


@shared_task
def issue_invoices() -> None:
    """Take back what turned out to be less than was invoiced, and invoice months that are over."""
    at = timezone.now()
    issuing.take_back_due(at=at)
    issuing.issue_due(at=at)


@shared_task
def accrue() -> None:
    """Bring what suppliers are owed up to date, and release reserves that were held long enough."""
    at = timezone.now()
    accruing.accrue(at=at)
    accruing.release_due(at=at)


@shared_task
def post_adjustments() -> None:
    adjusting.post_due(at=timezone.now())


@shared_task
def share_outcomes() -> None:
    """Book what results took, and give suppliers their parts of what was paid for them."""
    at = timezone.now()
    costs.book_costs(at=at)
    sharing.share_out(at=at)


@shared_task
def sum_up_revenue() -> None:
    daily.sum_up(at=timezone.now())


@shared_task
def send_payments() -> None:
    paying.look_due(at=timezone.now())


@shared_task
def send_refunds() -> None:
    refunds.look_due(at=timezone.now())


@shared_task
def handle_processor_events() -> None:
    events.handle_due(at=timezone.now())


@shared_task
def fetch_processor_events() -> None:
    if gateway.is_there():
        events.fetch_missed(at=timezone.now())


@shared_task
def top_up() -> None:
    automatic.top_up_due(at=timezone.now())


@shared_task
def reconcile() -> bool:
    """Read the processor's statement and compare; return whether a long one goes on by itself, at the latest the day
    after.
    """
    reconciliation.run(at=timezone.now())
    is_reading = reconciliation.is_reading()
    if is_reading:
        reconcile.delay()
    return is_reading


@shared_task
def state_suppliers() -> None:
    """Issue the statements of months that are over."""
    statements.issue_due(at=timezone.now())


@shared_task
def pay_suppliers() -> None:
    """Order payouts that are due, send what waits, and look at what is open."""
    at = timezone.now()
    payouts.order_due(at=at)
    payouts.look_due(at=at)
    connecting.look_due(at=at)


@shared_task
def expire_credit() -> None:
    """Tell of credit that ends soon, and take back what has ended."""
    at = timezone.now()
    promotions.tell_due(at=at)
    promotions.expire_due(at=at)


@shared_task
def watch_runways() -> None:
    watch.look(at=timezone.now())


@shared_task
def collect() -> None:
    dunning.run_due(at=timezone.now())
    taken_debts.run_due(at=timezone.now())
