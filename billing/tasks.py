"""Sweeps that beat calls; each is bounded, may be run twice and finds by itself what there is to do.

Periods they want: `charge_due` every 20 s, `expire_holds` every 60 s.
"""

from celery import shared_task
from django.utils import timezone

from billing import charging, holds


@shared_task
def charge_due() -> None:
    charging.charge_due(at=timezone.now())


@shared_task
def expire_holds() -> None:
    holds.expire(at=timezone.now())
