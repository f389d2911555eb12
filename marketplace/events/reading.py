"""How rows of ours become events: what a source is, and how it writes times."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from marketplace.models import Event, StateChange


@dataclass(frozen=True)
class Source:
    """Rows of one table: the verb that lets somebody see their events, the types, and how to read them.

    A row may be an event of several organizations, of each once.
    """

    verb: str
    types: tuple[str, ...]
    read: Callable[[Collection[int]], Iterable[Event]]


def moment(at: Any) -> str | None:
    """Return a time as events spell it."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def changes(rows: Collection[int]) -> dict[int, list[StateChange]]:
    """Return what changed its state, by the key of the row that did. One query."""
    found: dict[int, list[StateChange]] = {}
    for change in StateChange.objects.filter(pk__in=rows).order_by("pk"):
        found.setdefault(change.row, []).append(change)
    return found
