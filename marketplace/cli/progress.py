"""Waits for an instance and shows its numbered steps while it does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from marketplace.cli import words
from marketplace.cli.problems import Problem, problem
from marketplace.cli.session import Session

FIRST_LOOK_S = 0.2
SLOWEST_LOOK_S = 1.0
REMINDER_MS = 15_000
PATIENCE_WITH_END_S = 30.0

ENDED = {"failed", "terminated"}
CODES = {"no_funds": "insufficient_funds"}


def wait_until(
    session: Session,
    instance: dict[str, Any],
    *,
    is_so: Callable[[dict[str, Any]], bool],
    timeout_s: float,
    on_look: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Look at an instance again and again until something is so of it, and return it.

    Raises the problem "still_running" when `timeout_s` is over.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_LOOK_S
    while True:
        on_look(instance)
        if is_so(instance):
            session.terminal.clear()
            return instance
        if time.monotonic() + pause_s > deadline:
            raise still_running(instance, timeout_s)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, SLOWEST_LOOK_S)
        instance = session.client.get(f"/instances/{instance['id']}")


@contextmanager
def interruptible(session: Session, text: str) -> Iterator[None]:
    """Say what goes on by itself when the waiting for it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        session.terminal.say(f"Interrupted. {text}")
        raise


def is_settled(instance: dict[str, Any]) -> bool:
    """True once a start is over: it runs, it ran, or it never will."""
    return instance["phase"] in {"running", "stopped", "terminating", *ENDED}


def is_billing_over(instance: dict[str, Any]) -> bool:
    return instance["phase"] in ENDED and instance["cost"]["billing"] in {"ended", "not_started"}


class Steps:
    """Says each step of an instance once when it is over, and what is under way meanwhile."""

    def __init__(self, session: Session) -> None:
        self._terminal = session.terminal
        self._said: set[str] = set()
        self._reminded_ms: dict[str, int] = {}

    def look(self, instance: dict[str, Any]) -> None:
        steps = instance.get("steps") or []
        for number, step in enumerate(steps, start=1):
            label = f"[{number}/{len(steps)}] {step['title']}"
            is_last = number == len(steps)
            if step["state"] in {"done", "failed"} or (is_last and step["state"] == "active"):
                self._say_over(label, step)
            elif step["state"] == "active":
                self._say_under_way(label, step, instance)

    def _say_over(self, label: str, step: dict[str, Any]) -> None:
        if step["name"] in self._said:
            return
        self._said.add(step["name"])
        verdict = {"done": "done", "failed": "failed", "active": "started"}[step["state"]]
        took = "" if step["state"] == "active" else f" {timing(step)}"
        self._terminal.say(f"{label}: {verdict}{took}")

    def _say_under_way(self, label: str, step: dict[str, Any], instance: dict[str, Any]) -> None:
        billing = "; billing has not started" if instance["cost"]["billing"] == "not_started" else ""
        doing = f"; {words.transfer(step['progress'])}" if step.get("progress") else ""
        text = f"{label}: {timing(step)}{doing}{billing}"
        self._terminal.status(text)
        elapsed = step.get("elapsed_ms") or 0
        if not self._terminal.moves and elapsed - self._reminded_ms.get(step["name"], 0) >= REMINDER_MS:
            self._reminded_ms[step["name"]] = elapsed
            self._terminal.say(text)


def timing(step: dict[str, Any]) -> str:
    usual = f" (usually {words.duration(step['typical_ms'])})" if step.get("typical_ms") else ""
    return words.duration(step.get("elapsed_ms") or 0) + usual


def still_running(instance: dict[str, Any], waited_s: float) -> Problem:
    return problem(
        code="still_running",
        title=f"{instance['name']} is still {words.phase(instance)} after {waited_s:g} s of waiting.",
        detail=instance.get("message") or "",
        charged=instance["cost"]["billing"] != "not_started",
        suggestion=f"Nothing was changed by the time-out. Look: gpumarket show {instance['name']}. "
        f"End it: gpumarket terminate {instance['name']}",
        instance_id=instance["id"],
    )


def ended_early(instance: dict[str, Any]) -> Problem:
    """Return the problem of an instance that ended before its command did, or before it could begin."""
    began = instance["ready_at"] is not None
    reason = instance["reason"] or instance["phase"]
    again = "Try again, or take another offer: gpumarket offers --available. " if instance["retryable"] else ""
    return problem(
        code=CODES.get(reason, reason),
        title=f"{instance['name']} was ended before its command was done."
        if began
        else f"{instance['name']} did not start.",
        detail=words.why(instance) or reason,
        charged=instance["cost"]["gpu_milliseconds"] > 0,
        suggestion=f"{again}See what happened: gpumarket show {instance['id']}",
        instance_id=instance["id"],
    )
