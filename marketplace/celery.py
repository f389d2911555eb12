"""Celery carries nudges and runs sweeps; every unit of work is a row that a sweep finds again."""

import os
import sys
from typing import Any

from celery import Celery, Task, signals, states
from django.db import close_old_connections, connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

TASK_TIME_LIMIT_S = 60
# Celery closes the database's connections before and after so many tasks, otherwise of each: see `mind_connections`.
NEVER = sys.maxsize

app = Celery("gpumarket")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_time_limit=TASK_TIME_LIMIT_S,
    task_soft_time_limit=TASK_TIME_LIMIT_S - 10,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # A message is only a nudge: give up at once when Redis is away, the sweep finds the row.
    broker_transport_options={
        "visibility_timeout": 5 * TASK_TIME_LIMIT_S,
        "socket_connect_timeout": 1,
        "socket_timeout": 5,
        "max_retries": 1,
        "interval_start": 0,
        "interval_max": 0.1,
    },
    task_publish_retry=False,
    CELERY_DB_REUSE_MAX=NEVER,
    # Old sweeps are worthless: a worker that was away must not work through a backlog of them.
    beat_schedule={
        name: {"task": task, "args": given, "schedule": seconds, "options": {"expires": max(seconds, 2)}}
        for name, task, seconds, *given in (
            ("workflows that are due", "provisioning.tasks.run_due_workflows", 1.0),
            ("ends that nobody heard of", "provisioning.tasks.wake_what_ended", 60.0),
            ("clusters to look at", "provisioning.tasks.look_at_clusters", 1.0),
            ("health events", "provisioning.tasks.decide_health_events", 1.0),
            ("interruptions", "provisioning.tasks.interrupt", 1.0),
            ("repairs", "provisioning.tasks.repair", 2.0),
            ("old marks of breakers", "provisioning.tasks.purge_breaker_marks", 3600.0),
            ("nodes that fell silent", "provisioning.tasks.notice_silent_nodes", 5.0),
            ("capacity of offers", "provisioning.tasks.count_capacity", 10.0),
            ("hosts that are not shared", "provisioning.tasks.close_hosts", 20.0),
            ("decisions that are old", "provisioning.tasks.purge_decisions", 600.0),
            ("artifacts that nothing uses", "provisioning.tasks.sweep_artifacts", 600.0),
            ("volumes that changed", "provisioning.tasks.settle_volumes", 5.0),
            ("readings to sum up", "provisioning.tasks.sum_up_readings", 20.0),
            ("partitions of readings", "provisioning.tasks.keep_partitions", 3600.0),
            # Two workers charge side by side, each the organizations of its part.
            ("usage to charge, of one half", "billing.tasks.charge_due", 20.0, 0, 2),
            ("usage to charge, of the other half", "billing.tasks.charge_due", 20.0, 1, 2),
            ("holds that ran out", "billing.tasks.expire_holds", 60.0),
            ("statements of suppliers", "billing.tasks.state_suppliers", 3600.0),
            ("payouts to suppliers", "billing.tasks.pay_suppliers", 60.0),
            ("what suppliers are owed", "billing.tasks.accrue", 3600.0),
            ("what results took, and suppliers' parts", "billing.tasks.share_outcomes", 60.0),
            ("tiers and commitments", "billing.tasks.post_adjustments", 3600.0),
            ("revenue to sum up", "billing.tasks.sum_up_revenue", 300.0),
            ("credit that expires", "billing.tasks.expire_credit", 60.0),
            ("invoices of months that are over", "billing.tasks.issue_invoices", 600.0),
            ("service levels of months that are over", "marketplace.tasks.close_service_levels", 3600.0),
            ("hours under guarantees", "marketplace.tasks.judge_guarantees", 60.0),
            ("periods of shared revenue", "marketplace.tasks.close_revenue_periods", 60.0),
            ("payments to send", "billing.tasks.send_payments", 1.0),
            ("refunds to send", "billing.tasks.send_refunds", 10.0),
            ("what the card processor told us", "billing.tasks.handle_processor_events", 1.0),
            ("what the card processor did not tell us", "billing.tasks.fetch_processor_events", 3600.0),
            ("automatic top-ups", "billing.tasks.top_up", 30.0),
            ("the card processor's statement", "billing.tasks.reconcile", 24 * 3600.0),
            ("invoices to send", "marketplace.tasks.send_invoices", 30.0),
            ("events to publish", "marketplace.tasks.publish_events", 1.0),
            ("e-mail about events", "marketplace.tasks.send_event_mail", 10.0),
            ("webhooks to send", "marketplace.tasks.send_webhooks", 1.0),
            ("events that are old", "marketplace.tasks.purge_events", 600.0),
            ("claims that are due", "marketplace.tasks.advance_claims", 1.0),
            ("disputes and what is set aside", "marketplace.tasks.close_claims", 10.0),
            ("receipts to issue", "marketplace.tasks.issue_receipts", 2.0),
            ("receipts to sign again", "marketplace.tasks.sign_receipts_again", 60.0),
            ("notices to send", "marketplace.tasks.send_notices", 30.0),
            ("invoices that nobody has paid", "billing.tasks.collect", 30.0),
            ("runways to look at", "billing.tasks.watch_runways", 30.0),
            ("auctions that are due", "marketplace.tasks.hold_auctions", 1.0),
            ("books of auctions that are old", "marketplace.tasks.forget_books", 600.0),
            ("what is to start again", "marketplace.tasks.start_again", 5.0),
            ("jobs to look at", "marketplace.tasks.look_at_jobs", 1.0),
            ("folders that jobs need", "marketplace.tasks.keep_folders", 24 * 3600.0),
            ("orders that wait", "marketplace.tasks.start_waiting", 5.0),
            ("lent GPUs to recall", "marketplace.tasks.recall_lent_gpus", 2.0),
            ("reservations to advance", "marketplace.tasks.advance_reservations", 10.0),
            ("budgets to watch", "marketplace.tasks.watch_budgets", 60.0),
            ("alerts of budgets to send", "marketplace.tasks.send_budget_alerts", 30.0),
            ("what is idle", "marketplace.tasks.watch_idle", 60.0),
            ("customers who cannot pay", "marketplace.tasks.stop_what_nobody_can_pay_for", 10.0),
            ("volumes nobody can pay for", "marketplace.tasks.mind_unpaid_volumes", 60.0),
            ("sessions to write down", "marketplace.tasks.write_sessions_into_audit", 2.0),
            ("sessions that nobody closed", "provisioning.tasks.close_sessions_left_open", 60.0),
            ("answers that are old", "marketplace.tasks.purge_idempotency", 60.0),
        )
    },
)
app.autodiscover_tasks()


@signals.task_prerun.connect
@signals.task_postrun.connect
def mind_connections(sender: Task[Any, Any], state: str = states.SUCCESS, **_: Any) -> None:
    """Keep the database's connection from task to task, as the web server does from request to request.

    A new one for each task would cost more than most tasks do, and forget every statement that was prepared.
    What a task that failed was doing with its connection is not known, so that one goes.
    """
    if sender.request.is_eager:
        return  # It runs inside something that goes on using its connection.
    if state == states.SUCCESS:
        close_old_connections()
    else:
        connections.close_all()
