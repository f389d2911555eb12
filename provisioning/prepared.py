"""Ask the database with a statement that it has planned before: for the few that every launch waits for.

Django binds parameters in its own process, so that PostgreSQL parses and plans
each statement anew; for the two of a claim that took as long as running them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connection
from psycopg import Cursor

NEVER_BY_ITSELF = 2**31

Value = int | str | datetime | None | Sequence[int] | Sequence[str]


def ask(statement: str, wanted: Mapping[str, Value]) -> list[tuple[Any, ...]]:
    """Run a statement of ours in this connection's transaction and return its rows.

    Each parameter stands with its type (`%(name)s::bigint`): they travel as
    text, so that a number's size does not make another statement of it. Texts
    in lists are ids and words of ours.
    """
    sent = {name: _text(value) for name, value in wanted.items()}
    with connection.cursor():  # Connects where there is no connection yet.
        connection.validate_no_broken_transaction()
        # Django forbids it as a whole (None); this way nothing is prepared but what asks for it.
        connection.connection.prepare_threshold = NEVER_BY_ITSELF
        with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
            cursor.execute(statement.encode(), sent, prepare=True)
            return cursor.fetchall()


def _text(value: Value) -> str | datetime | None:
    if value is None or isinstance(value, str | datetime):
        return value
    return str(value) if isinstance(value, int) else f"{{{','.join(map(str, value))}}}"
