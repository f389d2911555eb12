"""Sweeps that beat calls; each is bounded, may be run twice and finds by itself what there is to do.

Periods they want: `charge_due` every 20 s, `expire_holds` every 60 s, `issue_invoices` every 10 min,
`accrue` and `post_adjustments` every hour.
"""

from celery import shared_task
from django.utils import timezone

from billing import adjusting, charging, holds
from billing.invoicing import issuing
from billing.suppliers import accruing


@shared_task
def charge_due() -> None:
    charging.charge_due(at=timezone.now())


@shared_task
def expire_holds() -> None:
    holds.expire(at=timezone.now())


@shared_task
def issue_invoices() -> None:
    issuing.issue_due(at=timezone.now())


@shared_task
def accrue() -> None:
    """Bring what suppliers are owed up to date, and release reserves that were held long enough."""
    at = timezone.now()
    accruing.accrue(at=at)
    accruing.release_due(at=at)


def post_adjustments() -> None:
    adjusting.post_due(at=timezone.now())
