"""The workflow engine: leases one row, runs one step, applies its outcome only if the row is still ours.

A step is an idempotent function of an instance. It may talk to the outside
and returns an outcome; the outcome's `commit` runs in the transaction that
records the move. Killed before or after, a step is simply run again when its
lease runs out. The shape follows Ubicloud's strands and Omicron's sagas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from uuid import uuid4

import structlog
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from billing.prepared import Prepared, ask
from billing.wire import Value
from provisioning.models import Instance, Reason, Workflow

log = structlog.get_logger("provisioning.engine")

# Longer than the hard limit of a task would be wasteful: steps are short, and a killed worker's row waits this long.
LEASE = timedelta(seconds=20)
BACK_OFF_S = (1, 2, 4, 8, 15, 30)

Commit = Callable[[Instance], None]


@dataclass(frozen=True)
class Next:
    """Go on with `step` at once."""

    step: str
    commit: Commit | None = None


@dataclass(frozen=True)
class Wait:
    """Look again in `seconds`; None: only when somebody wakes the row."""

    seconds: float | None


@dataclass(frozen=True)
class Failed:
    """Give up: `steps.py` says what follows. The customer reads the message.

    `at`: when it really ended, if that is known; `node_id`: the node that failed it, which a next run avoids.
    """

    reason: Reason
    message: str
    retryable: bool = True
    at: datetime | None = None
    node_id: int | None = None


Outcome = Next | Wait | Failed
Step = Callable[[Instance], Outcome]


class NotYet(Exception):
    """Raised by a commit that cannot be done now; everything in it is rolled back and tried again later.

    What is to be written down of the attempt is written by `afterwards`, once it is rolled back.
    """

    def __init__(self, seconds: float, *, afterwards: Callable[[], object] | None = None) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds, self.afterwards = seconds, afterwards


@dataclass(frozen=True)
class Deadline:
    """How long a step may take with all its waits, and what the customer reads when it took longer."""

    limit: timedelta
    message: str


@dataclass(frozen=True)
class Plan:
    """The steps, how long each may take as a whole (for this instance), and the step that follows a failure."""

    steps: Mapping[str, Step]
    deadlines: Mapping[str, Deadline | Callable[[Instance], Deadline]]
    on_failure: str
    fail: Callable[[Instance, Failed], None]


LEASE_IT = """
UPDATE provisioning_workflow SET lease_token = %(token)s, lease_until = %(until)s
WHERE instance_id = %(id)s::bigint AND due_at <= %(now)s AND (lease_until IS NULL OR lease_until < %(now)s)
RETURNING instance_id
"""
# `read`: that it is due when we read it, where that matters.
APPLY = """
UPDATE provisioning_workflow SET step = %(next)s, step_since = %(since)s, due_at = %(due_at)s::timestamptz,
    failures = 0, last_error = '', lease_until = %(until)s::timestamptz,
    lease_token = CASE WHEN %(until)s::timestamptz IS NOT NULL THEN lease_token END
WHERE instance_id = %(id)s::bigint AND lease_token = %(token)s::uuid AND step = %(step)s
    AND (%(read)s::timestamptz IS NULL OR due_at = %(read)s::timestamptz)
RETURNING instance_id
"""
HOLD_ON = """
UPDATE provisioning_workflow SET lease_until = %(until)s::timestamptz,
    lease_token = CASE WHEN %(until)s::timestamptz IS NOT NULL THEN lease_token END
WHERE instance_id = %(id)s::bigint AND lease_token = %(token)s::uuid
RETURNING instance_id
"""
# A workflow with all that its step reads.
_WHOLE = Prepared(
    lambda pk: Workflow.objects.filter(pk=pk).select_related(
        "instance__offer", "instance__project__organization", "instance__price_version"
    ),
    int,
)


def run_one(workflow_id: int, plan: Plan) -> bool:
    """Run one step of a workflow that is due. Return whether another turn may follow at once."""
    return run(workflow_id, plan, turns=1)


def run(workflow_id: int, plan: Plan, *, turns: int) -> bool:
    """Run the steps of a workflow that is due one after the other, so many at most, under one lease.

    Return whether another turn may follow at once.
    """
    now, token = timezone.now(), str(uuid4())
    if not ask(LEASE_IT, {"id": workflow_id, "token": token, "now": now, "until": now + LEASE}):
        return False
    for left in reversed(range(turns)):
        # Read anew before each step: others write it meanwhile. If we slept for longer than the lease, it is theirs.
        workflow = next(iter(_WHOLE(workflow_id)), None)
        if workflow is None or str(workflow.lease_token) != token or not _turn(workflow, plan, goes_on=left > 0):
            return False
    return True


def _turn(workflow: Workflow, plan: Plan, *, goes_on: bool) -> bool:
    """Run the step of a leased workflow; return if another turn may follow, for which `goes_on` keeps the lease."""
    began = monotonic()
    with structlog.contextvars.bound_contextvars(instance=workflow.instance.public_id, step=workflow.step):
        try:
            outcome = _outcome(workflow, plan, timezone.now())
            may_follow = _apply(workflow, outcome, plan, goes_on=goes_on)
        except NotYet as later:
            if later.afterwards is not None:
                later.afterwards()
            may_follow = _apply(workflow, Wait(later.seconds), plan, goes_on=goes_on)
        except Exception as error:
            # The one place that catches all: the row stays, is tried again later, and tells what happened.
            log.exception("step failed")
            _back_off(workflow, error)
            return False
        log.debug("step", outcome=type(outcome).__name__, milliseconds=round((monotonic() - began) * 1000))
    return may_follow


def _outcome(workflow: Workflow, plan: Plan, now: datetime) -> Outcome:
    deadline = plan.deadlines.get(workflow.step)
    if callable(deadline):
        deadline = deadline(workflow.instance)
    if deadline is not None and now > workflow.step_since + deadline.limit:
        return Failed(Reason.TIMED_OUT, deadline.message)
    return plan.steps[workflow.step](workflow.instance)


@transaction.atomic
def _apply(workflow: Workflow, outcome: Outcome, plan: Plan, *, goes_on: bool) -> bool:
    """Record the outcome if the lease and the step are still ours; else only keep or let go of the lease.

    Return whether another turn may follow.
    """
    now = timezone.now()
    waits = isinstance(outcome, Wait)
    until = now + LEASE if goes_on and not waits else None
    mine = {"id": workflow.pk, "token": str(workflow.lease_token), "until": until}
    if not ask(APPLY, mine | {"step": workflow.step} | _changes(workflow, outcome, plan, now)):
        return bool(ask(HOLD_ON, mine | {"until": now + LEASE if goes_on else None}))
    if isinstance(outcome, Failed):
        plan.fail(workflow.instance, outcome)
    elif isinstance(outcome, Next) and outcome.commit is not None:
        outcome.commit(workflow.instance)
    return not waits


def _changes(workflow: Workflow, outcome: Outcome, plan: Plan, now: datetime) -> dict[str, Value]:
    """Return at which step a workflow is after an outcome, since when and when that is due."""
    if isinstance(outcome, Wait):
        due_at = None if outcome.seconds is None else now + timedelta(seconds=outcome.seconds)
        # A wake-up while we worked has moved `due_at`; it must not be slept through.
        return {"next": workflow.step, "since": workflow.step_since, "due_at": due_at, "read": workflow.due_at}
    step = outcome.step if isinstance(outcome, Next) else plan.on_failure
    return {"next": step, "since": now, "due_at": now, "read": None}


def _back_off(workflow: Workflow, error: Exception) -> None:
    """Try again later, unless somebody asked for something else meanwhile: that is due now."""
    seconds = BACK_OFF_S[min(workflow.failures, len(BACK_OFF_S) - 1)]
    leased = Workflow.objects.filter(pk=workflow.pk, lease_token=workflow.lease_token)
    leased.filter(step=workflow.step).update(
        failures=F("failures") + 1,
        last_error=f"{type(error).__name__}: {error}",
    )
    leased.filter(step=workflow.step, due_at=workflow.due_at).update(due_at=timezone.now() + timedelta(seconds=seconds))
    leased.update(lease_until=None, lease_token=None)


def due(*, limit: int) -> list[int]:
    """Return the workflows that a sweep should nudge: due, and in nobody's hands."""
    now = timezone.now()
    waiting = Workflow.objects.filter(Q(lease_until=None) | Q(lease_until__lt=now), due_at__lte=now)
    return list(waiting.order_by("due_at").values_list("pk", flat=True)[:limit])


def wake(instance_id: int, *, step: str | None = None) -> None:
    """Make a workflow due now, at `step` if one is named (whoever holds the lease then loses its outcome)."""
    now = timezone.now()
    changes: dict[str, object] = {"due_at": now}
    if step is not None:
        changes |= {"step": step, "step_since": now, "failures": 0}
    Workflow.objects.filter(pk=instance_id).update(**changes)
    nudge(instance_id)


def nudge(workflow_id: int) -> None:
    """Send a message once this transaction is committed; if it is lost, the sweep finds the row."""
    from provisioning.tasks import run_workflow  # noqa: PLC0415  tasks import the engine

    transaction.on_commit(lambda: run_workflow.apply_async((workflow_id,), retry=False), robust=True)
