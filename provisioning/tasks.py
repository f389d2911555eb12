"""Nudges and sweeps. A nudge carries an id and may be lost; what it would have done is found by a sweep."""

import structlog
from celery import shared_task
from django.utils import timezone

from provisioning import (
    artifacts,
    calendar,
    clusters,
    counters,
    decisions,
    engine,
    interruptions,
    nodes,
    partitions,
    policies,
    rollups,
    sessions,
    steps,
    upkeep,
)
from provisioning.health import breaker, events, faults, operations, remedies
from provisioning.steps import PLAN

log = structlog.get_logger("provisioning.tasks")

TURNS_MAX = 20
DUE_MAX = 200
ENDED_MAX = 1000
NUDGE_LIFE_S = 10
SILENT_MAX = 200
CLUSTERS_MAX = 50
VOLUMES_MAX = 200
HEALTH_MAX = 200
LEFT_OPEN_MAX = 500
INTERRUPTIONS_MAX = 500
HOURS_FORGOTTEN_MAX = 5000
ARTIFACTS_MAX = 2000
READINGS_FORGOTTEN_MAX = 50_000


@shared_task
def run_workflow(workflow_id: int) -> None:
    """Run the steps of one workflow that can run now. If this message is lost, `run_due_workflows` finds the row."""
    engine.run(workflow_id, PLAN, turns=TURNS_MAX)


@shared_task
def run_due_workflows() -> None:
    """Nudge every workflow that is due and in nobody's hands."""
    for workflow_id in engine.due(limit=DUE_MAX):
        # The next sweeps find it again, so a message that waited long is worthless.
        run_workflow.apply_async((workflow_id,), expires=NUDGE_LIFE_S)


@shared_task
def wake_what_ended() -> None:
    """Wake the workflows of what has ended though no report woke them."""
    steps.wake_what_ended(limit=ENDED_MAX)


@shared_task
def notice_silent_nodes() -> None:
    """Close the meters of what runs on silent nodes, and open those of what runs on nodes that came back."""
    nodes.notice_silence(at=timezone.now(), limit=SILENT_MAX)
    nodes.resume_meters(at=timezone.now(), limit=SILENT_MAX)


@shared_task
def look_at_clusters() -> None:
    """Nudge a look at every Slurm cluster that is due for one."""
    for cluster_id in clusters.due(at=timezone.now(), limit=CLUSTERS_MAX):
        look_at_cluster.apply_async((cluster_id,), expires=NUDGE_LIFE_S)


@shared_task
def look_at_cluster(cluster_id: int) -> None:
    """Look at one Slurm cluster: its nodes, its jobs and what they printed."""
    clusters.look(cluster_id)


@shared_task
def settle_volumes() -> None:
    """Let states and meters of volumes follow from what their nodes say, and remove what nobody took back in time."""
    upkeep.settle_due(at=timezone.now(), limit=VOLUMES_MAX)


@shared_task
def sum_up_readings() -> None:
    """Sum readings up to minutes and hours, from where that was left off."""
    rollups.catch_up(at=timezone.now())


@shared_task
def keep_partitions() -> None:
    """Make the tables of readings ready for the days to come, and drop those that are too old."""
    partitions.sweep(at=timezone.now())


@shared_task
def decide_health_events() -> None:
    """Decide on new health events and do what follows at once. If this message is lost, the sweep finds them."""
    events.decide_all(at=timezone.now(), limit=HEALTH_MAX)


@shared_task
def repair() -> None:
    """Take every repair a step further, have unproven GPUs wiped, and call those healthy again that are."""
    at = timezone.now()
    operations.look(at=at, limit=HEALTH_MAX)
    for remediation_id in remedies.due(limit=HEALTH_MAX):
        try:
            remedies.advance(remediation_id, at=at)
        except Exception:
            log.exception("repair failed", repair=remediation_id)  # It must not hold up the others.
    operations.order_wipes(at=at, limit=HEALTH_MAX)
    faults.heal(at=at, limit=HEALTH_MAX)


@shared_task
def purge_breaker_marks() -> None:
    """Forget what no breaker counts any more."""
    breaker.purge(at=timezone.now())


@shared_task
def close_sessions_left_open() -> None:
    """Close SSH sessions of what is gone."""
    sessions.close_left_open(at=timezone.now(), limit=LEFT_OPEN_MAX)


@shared_task
def count_capacity() -> None:
    """Count the GPUs of every offer, against which promises of later hours are held, and forget hours long over."""
    calendar.count(at=timezone.now())
    calendar.forget(at=timezone.now(), limit=HOURS_FORGOTTEN_MAX)


@shared_task
def interrupt() -> None:
    """Announce the interruptions that are planned, and settle those that are over."""
    interruptions.announce_due(at=timezone.now(), limit=INTERRUPTIONS_MAX)
    interruptions.settle_due(at=timezone.now(), limit=INTERRUPTIONS_MAX)


@shared_task
def close_hosts() -> None:
    """Keep others off the nodes of tenants whose policy shares no host."""
    policies.close_hosts(at=timezone.now())


@shared_task
def purge_decisions() -> None:
    """Forget placement's decisions that are old."""
    decisions.purge(at=timezone.now())


@shared_task
def sweep_artifacts() -> None:
    """Remove artifacts that nothing has used for long, and readings of counters that are too old."""
    artifacts.sweep(at=timezone.now(), limit=ARTIFACTS_MAX)
    counters.forget(at=timezone.now(), limit=READINGS_FORGOTTEN_MAX)
