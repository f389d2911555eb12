"""Moving a row along the map of its states: one guarded update, whatever the row is."""

from collections.abc import Collection, Mapping
from typing import Any

from django.db.models import Model


def move(row: Model, state: str, moves: Mapping[Any, Collection[Any]], **facts: object) -> bool:
    """Move a row if its map allows it from where it is now, and write `facts` with it; return whether it did.

    The row in memory stays as it was. Of two at once the second waits, and then looks where the first has moved it.
    """
    sources = [source for source, targets in moves.items() if state in targets]
    rows = type(row)._default_manager.filter(pk=row.pk, state__in=sources)
    return bool(rows.update(state=state, **facts))
