"""Doing something for many in one transaction, so that one with whom it fails keeps no other from it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from django.db import InterfaceError, OperationalError

One = TypeVar("One")
Done = TypeVar("Done")


def in_parts(
    batch: Sequence[One],
    run: Callable[[Sequence[One]], Done],
    *,
    leave: Callable[[One], None],
    stops: tuple[type[Exception], ...] = (),
) -> list[Done]:
    """Run a batch, and where that fails its halves; return what came of each part that was done.

    `run` does all of a batch or nothing of it. `leave` is told of each with whom alone it fails, while its exception is
    handled. What is nobody's fault of the batch is raised: `stops`, and what the server or the network did. The next
    sweep finds them again.
    """
    if not batch:
        return []
    raised: tuple[type[Exception], ...] = (OperationalError, InterfaceError, *stops)
    try:
        return [run(batch)]
    except raised:
        raise
    except Exception:
        if len(batch) == 1:
            leave(batch[0])
            return []
    middle = len(batch) // 2
    parts = (batch[:middle], batch[middle:])
    return [done for part in parts for done in in_parts(part, run, leave=leave, stops=stops)]
