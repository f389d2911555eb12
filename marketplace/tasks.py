"""Sweeps of the shop front."""

from celery import shared_task
from django.utils import timezone

from marketplace import (
    budget_mail,
    budget_watch,
    delivery,
    idempotency,
    idle,
    idle_mail,
    recalls,
    rentals,
    restarts,
    sessions,
    spot,
    spot_book,
    volumes,
    waiting,
)
from marketplace.contracts import sweeping
from marketplace.events import feed, sending
from marketplace.events import mail as event_mail
from marketplace.guarantees import evaluating
from marketplace.invoices import mail
from marketplace.jobs import keeping, running
from marketplace.notices import telling
from marketplace.receipts import chain, writing
from marketplace.revenue_share import closing as revenue_closing
from marketplace.revenue_share import covering, periods
from marketplace.sla import closing

STOPS_MAX = 100
RESTARTS_MAX = 50
SESSIONS_MAX = 500
RESUMES_MAX = 200
RESERVATIONS_MAX = 200
AUCTION_LIFE_S = 10
WAITS_MAX = 200
MAILS_MAX = 100
EVENTS_MAX = 1000
EVENTS_PURGED_MAX = 5000
BOOKS_MAX = 1000
CLAIMS_MAX = 200
RECEIPTS_MAX = 500
JOBS_MAX = 100
JOB_NUDGE_LIFE_S = 5
FOLDERS_NUDGE_LIFE_S = 12 * 3600
GUARANTEES_MAX = 200
PERIODS_MAX = 200
RELEASED_MAX = 500


@shared_task
def stop_what_nobody_can_pay_for() -> None:
    """Stop instances of organizations that may run nothing any more."""
    rentals.stop_what_nobody_can_pay_for(at=timezone.now(), limit=STOPS_MAX)


@shared_task
def advance_reservations() -> None:
    """Do for reservations what is due: payments, beginnings, notices, ends, refunds, earnings."""
    delivery.advance(at=timezone.now(), limit=RESERVATIONS_MAX)


@shared_task
def recall_lent_gpus() -> None:
    """Take lent GPUs back from spot for starts of their holders that wait for them."""
    recalls.recall_due(at=timezone.now(), limit=RESERVATIONS_MAX)


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
def start_waiting() -> None:
    """Start what waits for GPUs and can start, and let go of what waited too long."""
    waiting.start_due(at=timezone.now(), limit=WAITS_MAX)


@shared_task
def write_sessions_into_audit() -> None:
    """Write into the audit logs who was inside an instance by SSH."""
    sessions.write_into_audit(limit=SESSIONS_MAX)


@shared_task
def hold_auctions() -> None:
    """Nudge every auction that is due, and let what was interrupted bid again."""
    at = timezone.now()
    for offer_id in spot.due(at=at):
        hold_auction.apply_async((offer_id,), expires=AUCTION_LIFE_S)
    spot.resume(at=at, limit=RESUMES_MAX)


@shared_task
def hold_auction(offer_id: int) -> None:
    """Hold an offer's auction of the current tick, then tell whoever the next one may outbid.

    If this message is lost, `hold_auctions` sends another.
    """
    spot.clear(offer_id=offer_id, at=timezone.now())
    spot.advise(offer_id=offer_id, at=timezone.now())


@shared_task
def forget_books() -> None:
    """Delete the bids of auctions that were kept for long enough."""
    spot_book.forget(at=timezone.now(), limit=BOOKS_MAX)


@shared_task
def watch_budgets() -> None:
    """Tell which shares of budgets are reached, and stop what runs on those that are used up."""
    budget_watch.look(at=timezone.now())
    budget_watch.stop_what_is_over(at=timezone.now(), limit=STOPS_MAX)


@shared_task
def send_budget_alerts() -> None:
    """Send alerts of budgets by e-mail that were not sent yet."""
    budget_mail.send_due(at=timezone.now(), limit=MAILS_MAX)


@shared_task
def watch_idle() -> None:
    """Find what does nothing, warn of it and stop it, each where its project wants that."""
    at = timezone.now()
    idle.look(at=at)
    idle_mail.send_due(at=at, limit=MAILS_MAX)
    idle.stop_what_is_idle(at=at, limit=STOPS_MAX)


@shared_task
def send_invoices() -> None:
    """Send invoices by e-mail that were not sent yet."""
    mail.send_due(at=timezone.now(), limit=MAILS_MAX)


@shared_task
def close_service_levels() -> None:
    """Judge how available instances were in months that are over, and give back what is owed for that."""
    closing.close_due(at=timezone.now())


@shared_task
def judge_guarantees() -> None:
    """Judge the hours under guarantees that are over, and give back what they fell short."""
    evaluating.judge_due(at=timezone.now(), limit=GUARANTEES_MAX)


@shared_task
def close_revenue_periods() -> None:
    """Open the periods of shared revenue that have begun, let go what none covers, and charge what is due."""
    at = timezone.now()
    periods.open_due(at=at, limit=PERIODS_MAX)
    covering.release_due(at=at, limit=RELEASED_MAX)
    revenue_closing.close_due(at=at, limit=PERIODS_MAX)


@shared_task
def publish_events() -> None:
    """Make events of what was noted, and put them on their way."""
    feed.publish(at=timezone.now(), limit=EVENTS_MAX)


@shared_task
def send_webhooks() -> None:
    """Send events to the endpoints that want them."""
    sending.send_due(at=timezone.now())


@shared_task
def purge_events() -> None:
    """Forget events that are too old."""
    feed.purge(at=timezone.now(), limit=EVENTS_PURGED_MAX)


@shared_task
def advance_claims() -> None:
    """Take the step that is due of claims: verdicts, silence, payment."""
    sweeping.advance(at=timezone.now(), limit=CLAIMS_MAX)


@shared_task
def close_claims() -> None:
    """Decide disputes that nobody decided in time, and give back what no claim needs any more."""
    sweeping.close(at=timezone.now(), limit=CLAIMS_MAX)


@shared_task
def send_notices() -> None:
    """Tell customers by e-mail what happens to their money and what it pays for."""
    telling.send_due(at=timezone.now(), limit=MAILS_MAX)


@shared_task
def send_event_mail() -> None:
    """Send e-mail about events that was not sent yet."""
    event_mail.send_due(at=timezone.now(), limit=MAILS_MAX)


@shared_task
def issue_receipts() -> None:
    """Write the receipts of claims that closed or were reversed."""
    writing.issue_due(at=timezone.now(), limit=RECEIPTS_MAX)


@shared_task
def sign_receipts_again() -> None:
    """Sign anew what only revoked keys have signed."""
    chain.sign_again(at=timezone.now(), limit=RECEIPTS_MAX)


@shared_task
def look_at_jobs() -> None:
    """Nudge every job that has something to do."""
    for job_id in running.due(at=timezone.now(), limit=JOBS_MAX):
        work_on_job.apply_async((job_id,), expires=JOB_NUDGE_LIFE_S)


@shared_task
def work_on_job(job_id: int) -> None:
    """Take one job further. If this message is lost, `look_at_jobs` sends another."""
    running.work_on(job_id)


@shared_task
def keep_folders() -> None:
    """Have the folders kept of every job that still needs them, each by a message of its own."""
    for job_id in keeping.due(at=timezone.now()):
        keep_folders_of.apply_async((job_id,), expires=FOLDERS_NUDGE_LIFE_S)


@shared_task
def keep_folders_of(job_id: int) -> None:
    """Keep the folders of one job. If this message is lost, the next day sends another, long before they would go."""
    keeping.keep(job_id, at=timezone.now())


@shared_task
def look_at_end(instance_id: int) -> None:
    """Take those jobs further that the end of an instance concerns. If this message is lost, the sweep finds them."""
    for job_id in running.after(instance_id):
        running.work_on(job_id)
