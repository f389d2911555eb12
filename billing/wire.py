"""Statements on their way to PostgreSQL and back: prepared once for a connection, all of a round trip in one packet.

psycopg's cursors do more than such statements need: in a pipeline each looks at the socket twice and sends itself
alone, a transaction begins in a round trip of its own, and a rollback forgets whatever was prepared. So this speaks to
libpq as psycopg does, through its `pq`, and leaves to it how to wait, what errors are called and what columns become.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import Connection, DataError
from psycopg.abc import PQGen
from psycopg.abc import Transformer as Reader
from psycopg.adapt import Transformer
from psycopg.errors import FeatureNotSupported, InvalidSqlStatementName, error_from_result
from psycopg.generators import execute, fetch_many, send
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

Value = int | str | datetime | None | Sequence[int] | Sequence[str] | Sequence[datetime]
Asked = tuple[str, Mapping[str, Value]]
Rows = list[tuple[Any, ...]]
# A statement as PostgreSQL reads it, and the types of its values where we know them.
Statement = tuple[bytes, tuple[int, ...]]
Order = tuple[Statement, list[bytes | None]]

BEGIN: Order = ((b"BEGIN", ()), [])
MARK = re.compile(r"%(?:\((\w+)\)s|%)")
TIMESTAMPTZ, UNKNOWN = 1184, 0
# What each connection has prepared, under which name. A rollback does not undo it.
_prepared: WeakKeyDictionary[Connection[Any], dict[Statement, bytes]] = WeakKeyDictionary()
_numbers = count()


def run(connection: Connection[Any], asked: Sequence[Asked]) -> list[Rows]:
    """Run statements one after the other and return the rows of each, none where it returns nothing.

    They begin the transaction where the connection is to have one. The first that the database refuses raises
    psycopg's error, and those after it are not run.
    """
    orders = [_order(statement, wanted) for statement, wanted in asked]
    if not connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE:
        orders.insert(0, BEGIN)
    names = _prepared.setdefault(connection, {})
    with connection.lock:
        for statement, _ in orders:
            if statement not in names:
                names[statement] = _prepare(connection, statement)
        results = connection.wait(_exchange(connection.pgconn, [(names[one], values) for one, values in orders]))
    reader: Reader = Transformer(connection)
    return [_rows(reader, result, names) for result in results][-len(asked) :]


def _order(statement: str, wanted: Mapping[str, Value]) -> Order:
    text, names = _numbered(statement)
    values = [wanted[name] for name in names]
    types = tuple([TIMESTAMPTZ if isinstance(value, datetime) else UNKNOWN for value in values])
    return (text, types), [None if value is None else _text(value) for value in values]


@cache
def _numbered(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement with `$1` and so on in place of its names, and which names these are."""
    numbers: dict[str, int] = {}
    text = MARK.sub(lambda mark: f"${numbers.setdefault(mark[1], len(numbers) + 1)}" if mark[1] else "%", statement)
    return text.encode(), tuple(numbers)


def _text(value: int | str | datetime | Sequence[int] | Sequence[str] | Sequence[datetime]) -> bytes:
    text = str(value) if isinstance(value, int | str | datetime) else f"{{{','.join(map(str, value))}}}"
    if "\0" in text:
        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text.encode()


def _prepare(connection: Connection[Any], statement: Statement) -> bytes:
    name = f"gpumarket_{next(_numbers)}".encode()
    connection.pgconn.send_prepare(name, statement[0], param_types=statement[1])
    (result,) = connection.wait(execute(connection.pgconn))
    if result.status != ExecStatus.COMMAND_OK:
        raise error_from_result(result)
    return name


def _exchange(pgconn: PGconn, orders: Sequence[tuple[bytes, list[bytes | None]]]) -> PQGen[list[PGresult]]:
    """Send all, then read the result of each. What raises in the middle has lost the connection."""
    pgconn.enter_pipeline_mode()
    for name, values in orders:
        pgconn.send_query_prepared(name, values)
    pgconn.pipeline_sync()
    yield from send(pgconn)
    results: list[PGresult] = []
    while (result := (yield from fetch_many(pgconn))[0]).status != ExecStatus.PIPELINE_SYNC:
        results.append(result)
    pgconn.exit_pipeline_mode()
    return results


def _rows(reader: Reader, result: PGresult, names: dict[Statement, bytes]) -> Rows:
    if result.status == ExecStatus.COMMAND_OK:
        return []
    if result.status != ExecStatus.TUPLES_OK:
        error = error_from_result(result)
        if isinstance(error, FeatureNotSupported | InvalidSqlStatementName):
            names.clear()  # A table has other columns since, or somebody discarded what was prepared.
        raise error
    reader.set_pgresult(result)
    return reader.load_rows(0, result.ntuples, tuple)
