"""Sweeps of the shop front."""

from celery import shared_task
from django.utils import timezone

from marketplace import idempotency, rentals, restarts, sessions, volumes

STOPS_MAX = 100
RESTARTS_MAX = 50
SESSIONS_MAX = 500


@shared_task
def stop_what_nobody_can_pay_for() -> None:
    """Stop instances of organizations whose funds are used up."""
    rentals.stop_what_nobody_can_pay_for(at=timezone.now(), limit=STOPS_MAX)


@shared_task
def mind_unpaid_volumes() -> None:
    """Keep the clock of volumes that nobody can pay for."""
    volumes.mind_unpaid(at=timezone.now(), limit=STOPS_MAX)


@shared_task
def purge_idempotency() -> None:
    """Forget the stored answers of orders that nobody repeats any more."""
    idempotency.purge(at=timezone.now())


@shared_task
def start_again() -> None:
    """Start elsewhere what a fault of ours ended, where its customer asked for that."""
    restarts.start_again(at=timezone.now(), limit=RESTARTS_MAX)


@shared_task
def write_sessions_into_audit() -> None:
    """Write into the audit logs who was inside an instance by SSH."""
    sessions.write_into_audit(limit=SESSIONS_MAX)
