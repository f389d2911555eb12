"""Messages that hurry jobs on. They carry an id and may be lost: `running.due` finds the same work by looking."""

from collections.abc import Iterable
from functools import partial

from django.db import transaction

from provisioning.models import Instance, Phase

NUDGED_MAX = 20
# Its GPUs are given back in the transaction of these moves.
FREE = {Phase.STOPPED, Phase.INTERRUPTED, Phase.TERMINATED}
# When an attempt is to be judged, and when its GPUs are free for the next one.
TELLING = {Phase.STOPPING, Phase.FAILED} | FREE


def work_on(job_ids: Iterable[int]) -> None:
    """Send messages for a few jobs once this transaction is committed; the sweep finds the others."""
    for job_id in list(job_ids)[:NUDGED_MAX]:
        transaction.on_commit(partial(_send, "work_on_job", job_id), robust=True)


def on_move(sender: type[Instance], instance: Instance, **_: object) -> None:
    """Have the job of an instance looked at that ended or gave its GPUs back."""
    if instance.phase in TELLING:
        transaction.on_commit(partial(_send, "look_at_end", instance.pk), robust=True)


def _send(task: str, row_id: int) -> None:
    from marketplace import tasks  # noqa: PLC0415  tasks import the verbs, which import this

    getattr(tasks, task).apply_async((row_id,), retry=False)
