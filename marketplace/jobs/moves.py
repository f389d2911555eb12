"""Moving tasks and attempts in sets: one statement each, guarded by where they stood, which counts and writes events.

Whoever calls holds the lock of the job's row, so that nobody else moves its tasks meanwhile.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from billing.prepared import ask
from billing.wire import Value
from marketplace.models import ATTEMPT_MOVES, TASK_MOVES, AttemptState, Job, TaskState
from provisioning.errors import IllegalMove, StaleInstance

COUNTED = tuple(TaskState.values)

TASKS = f"""
WITH wanted AS (
    SELECT * FROM jsonb_to_recordset(%(moves)s::jsonb) AS move(task_id bigint, old text, new text, reason text,
        message text, attempts int, failures int, faults int, not_before timestamptz)
), moved AS (
    UPDATE marketplace_task task SET state = wanted.new, state_since = %(at)s, reason = wanted.reason,
        message = wanted.message, attempts = task.attempts + wanted.attempts,
        failures = task.failures + wanted.failures, faults = task.faults + wanted.faults,
        not_before = wanted.not_before
    FROM wanted WHERE task.id = wanted.task_id AND task.job_id = %(job)s::bigint AND task.state = wanted.old
    RETURNING task.id, wanted.old, wanted.new, wanted.reason, wanted.message
), counted AS (
    UPDATE marketplace_job job SET {", ".join(f"{name} = job.{name} + change.{name}" for name in COUNTED)}
    FROM (SELECT {
    ", ".join(
        f"count(*) FILTER (WHERE new = '{name}') - count(*) FILTER (WHERE old = '{name}') AS {name}" for name in COUNTED
    )
} FROM moved) change
    WHERE job.id = %(job)s::bigint
)
INSERT INTO marketplace_jobevent (job_id, task_id, at, old_state, new_state, reason, message)
SELECT %(job)s::bigint, id, %(at)s, old, new, reason, message FROM moved RETURNING task_id
"""  # noqa: S608  nothing in it comes from outside

# All tasks of a job that are in one state, without naming them: there may be ten thousand.
ALL_TASKS = """
WITH moved AS (
    UPDATE marketplace_task SET state = %(new)s::text, state_since = %(at)s, reason = %(reason)s::text,
        message = %(message)s::text
    WHERE job_id = %(job)s::bigint AND state = %(old)s::text RETURNING id
), counted AS (
    UPDATE marketplace_job SET {old} = {old} - (SELECT count(*) FROM moved),
        {new} = {new} + (SELECT count(*) FROM moved)
    WHERE id = %(job)s::bigint
)
INSERT INTO marketplace_jobevent (job_id, task_id, at, old_state, new_state, reason, message)
SELECT %(job)s::bigint, id, %(at)s, %(old)s::text, %(new)s::text, %(reason)s::text, %(message)s::text FROM moved
RETURNING task_id
"""

ATTEMPTS = """
UPDATE marketplace_attempt attempt SET state = ending.new, reason = ending.reason, message = ending.message,
    exit_code = ending.exit_code, outputs_sha256 = ending.outputs_sha256,
    checkpoint_sha256 = ending.checkpoint_sha256, cost_micros = ending.cost_micros, began_at = ending.began_at,
    ended_at = ending.ended_at
FROM jsonb_to_recordset(%(endings)s::jsonb) AS ending(attempt_id bigint, old text, new text, reason text, message text,
    exit_code int, outputs_sha256 text, checkpoint_sha256 text, cost_micros bigint, began_at timestamptz,
    ended_at timestamptz)
WHERE attempt.id = ending.attempt_id AND attempt.state = ending.old RETURNING attempt.id
"""


@dataclass(frozen=True)
class TaskMove:
    """One task's move; `attempts`, `failures` and `faults` are what is added to its counts."""

    task_id: int
    old: TaskState
    new: TaskState
    reason: str = ""
    message: str = ""
    attempts: int = 0
    failures: int = 0
    faults: int = 0
    not_before: datetime | None = None


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    attempt_id: int
    new: AttemptState
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    outputs_sha256: str = ""
    checkpoint_sha256: str = ""
    cost_micros: int = 0
    began_at: datetime | None = None
    ended_at: datetime | None = None
    old: AttemptState = AttemptState.RUNNING


def tasks(job: Job, moves: Sequence[TaskMove], *, at: datetime) -> None:
    """Move tasks of a locked job, count them, and write their events; all of them or StaleInstance."""
    if not moves:
        return
    for move in moves:
        if move.new not in TASK_MOVES[move.old]:
            raise IllegalMove(f"{job.public_id}: a task that is {move.old} cannot become {move.new}")
    sent = json.dumps([asdict(move) for move in moves], default=_text)
    if len(ask(TASKS, {"job": job.pk, "moves": sent, "at": at})) != len(moves):
        raise StaleInstance(f"{job.public_id}: its tasks were moved by somebody else")
    for move in moves:
        setattr(job, move.old, getattr(job, move.old) - 1)
        setattr(job, move.new, getattr(job, move.new) + 1)


def all_tasks(job: Job, old: TaskState, new: TaskState, *, at: datetime, reason: str = "", message: str = "") -> int:
    """Move every task of a locked job that is in one state; return how many those were."""
    if new not in TASK_MOVES[old]:
        raise IllegalMove(f"{job.public_id}: a task that is {old} cannot become {new}")
    words: dict[str, Value] = {"job": job.pk, "old": old, "new": new, "at": at, "reason": reason, "message": message}
    moved = len(ask(ALL_TASKS.format(old=old, new=new), words))
    setattr(job, old, getattr(job, old) - moved)
    setattr(job, new, getattr(job, new) + moved)
    return moved


def attempts(endings: Sequence[Ending]) -> None:
    """End attempts of a locked job; all of them or StaleInstance."""
    if not endings:
        return
    for ending in endings:
        if ending.new not in ATTEMPT_MOVES[ending.old]:
            raise IllegalMove(f"an attempt that is {ending.old} cannot become {ending.new}")
    sent = json.dumps([asdict(ending) for ending in endings], default=_text)
    if len(ask(ATTEMPTS, {"endings": sent})) != len(endings):
        raise StaleInstance("its attempts were ended by somebody else")


def _text(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
