"""Sweeps of the shop front."""

from celery import shared_task
from django.utils import timezone

from marketplace import idempotency, rentals

STOPS_MAX = 100


@shared_task
def stop_what_nobody_can_pay_for() -> None:
    """Stop instances of organizations whose funds are used up."""
    rentals.stop_what_nobody_can_pay_for(at=timezone.now(), limit=STOPS_MAX)


@shared_task
def purge_idempotency() -> None:
    """Forget the stored answers of orders that nobody repeats any more."""
    idempotency.purge(at=timezone.now())
