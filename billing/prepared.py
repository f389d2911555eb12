"""Ask the database with a statement that it has planned before: for those that every launch and booking waits for.

Django's query sets build their SQL anew at each call, which takes most of a
millisecond, and Django binds parameters in its own process, so that PostgreSQL
parses and plans each statement anew. What is said here costs a tenth of that
on our side, and a third on PostgreSQL's.

What is left is mostly waiting: each round trip wakes both sides once. Verbs
that need nothing of each other ask `together`, in one round trip.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, JSONField, Lookup, Model, QuerySet
from django.db.models.query import get_related_populators  # type: ignore[attr-defined]
from django.db.models.sql.compiler import SQLCompiler

from billing import wire
from billing.wire import Asked, Rows, Value

Row = TypeVar("Row", bound=Model)
P = ParamSpec("P")
T = TypeVar("T")
# What a verb asks, one after the other; it is sent the rows of each, and ends with what it returns.
Steps = Generator[Asked, Rows, T]


def ask(statement: str, wanted: Mapping[str, Value]) -> Rows:
    """Run a statement of ours in this connection's transaction and return its rows, none where it returns nothing.

    Each parameter stands with its type (`%(name)s::bigint`) or where the
    database knows it (`column = %(name)s`): they travel as text, so that a
    number's size does not make another statement of it. Texts in lists are ids
    and words of ours.
    """
    return _run([(statement, wanted)])[0]


def together(*verbs: Steps[Any]) -> list[Any]:
    """Run the steps of verbs side by side and return what each returns: `together(one.steps(...), other.steps(...))`.

    What each asks first is sent in one round trip, in this order; then they go
    on one after the other. The first to raise ends them all, when what the
    others asked is done already: a refusal has to end the caller's transaction.
    """
    answers = _run([next(verb) for verb in verbs])
    return [_go_on(verb, rows) for verb, rows in zip(verbs, answers, strict=True)]


class Asking(Generic[P, T]):
    """A verb that yields what it asks. Called, it runs by itself; its `steps` may run `together` with others'."""

    def __init__(self, steps: Callable[P, Steps[T]]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        verb = self.steps(*args, **kwargs)
        return _go_on(verb, ask(*next(verb)))


def _go_on(verb: Steps[T], rows: Rows) -> T:
    try:
        while True:
            rows = ask(*verb.send(rows))
    except StopIteration as end:
        found: T = end.value
        return found


def _run(asked: Sequence[Asked]) -> list[Rows]:
    database = _database()
    for statement, wanted in asked:
        if database.queries_logged:
            database.queries_log.append({"sql": statement, "time": "0"})
        for wrapper in database.execute_wrappers:  # They see it before anything of this round trip is sent.
            wrapper(lambda *_: None, statement, wanted, False, {"connection": database})
    with database.wrap_database_errors:
        return wire.run(database.connection, asked)


def _database() -> Any:
    database = connections[DEFAULT_DB_ALIAS]
    database.validate_no_broken_transaction()
    database.close_if_health_check_failed()
    database.ensure_connection()
    return database


def insertion(model: type[Model]) -> str:
    """Return the statement that writes a new row with `values_of` it, to be followed by what it returns."""
    columns = [field.column for field in _written(model)]
    values = ", ".join(f"%({column})s" for column in columns)
    return f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608  names of ours


def values_of(row: Model) -> dict[str, Value]:
    """Return what an insertion writes of a row that is new, by column."""
    found: dict[str, Value] = {}
    for field in _written(type(row)):
        value = getattr(row, field.attname)
        found[field.column] = json.dumps(value) if isinstance(field, JSONField) and value is not None else value
    return found


def _written(model: type[Model]) -> list["Field[Any, Any]"]:
    return [field for field in model._meta.concrete_fields if not (field.primary_key or field.generated)]


class AnyOf(Lookup):  # type: ignore[type-arg]
    """One of the texts of a list, however many those are, in one parameter."""

    lookup_name = "any_of"
    prepare_rhs = False
    kind = "text"

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        left, of_left = self.process_lhs(compiler, connection)
        right, of_right = self.process_rhs(compiler, connection)
        return f"{left} = ANY ({right}::{self.kind}[])", [*of_left, *of_right]


class AnyNumberOf(AnyOf):
    """One of the numbers of a list."""

    kind = "bigint"


class _Plan(NamedTuple):
    """A query set's statement, what is in it beside the values of each call, and how its rows become objects."""

    statement: str
    constants: dict[str, Any]
    values: dict[str, int]
    read: Callable[[Sequence[Any]], Any]
    convert: Callable[[list[tuple[Any, ...]]], Any]


class Prepared(Generic[Row]):
    """A query set whose SQL is built once: `Prepared(make, str, int)` calls `make(text, number)` for it.

    Calling it with such values returns the rows as a list, with what was
    `select_related`. The values come into conditions alone.
    """

    def __init__(self, make: Callable[..., "QuerySet[Row]"], *types: type) -> None:
        self.make = make
        self.types = types

    def __call__(self, *values: Value) -> list[Row]:
        plan = self._plan
        rows = ask(plan.statement, {**plan.constants, **{name: values[n] for name, n in plan.values.items()}})
        return [plan.read(row) for row in plan.convert(rows)]

    @cached_property
    def _plan(self) -> _Plan:
        marks = [_mark(kind, number) for number, kind in enumerate(self.types)]
        query = self.make(*marks).query
        compiler = query.get_compiler(DEFAULT_DB_ALIAS)
        sql, params = compiler.as_sql()
        names = [f"p{number}" for number in range(len(params))]
        by_name = dict(zip(names, params, strict=True))
        values = {name: marks.index(param) for name, param in by_name.items() if param in marks}
        assert set(values.values()) == set(range(len(marks))), "each value is somewhere in the statement"
        converters = compiler.get_converters([expression for expression, _, _ in compiler.select])
        return _Plan(
            statement=sql.replace("%%", "%%%%") % tuple(f"%({name})s" for name in names),
            constants={name: param for name, param in by_name.items() if name not in values},
            values=values,
            read=_reader(compiler),
            convert=lambda rows: compiler.apply_converters(rows, converters) if converters else rows,
        )


def _mark(kind: type, number: int) -> str | int | datetime:
    """Return a value of this type that no condition has by itself."""
    if kind is datetime:
        return datetime(1, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)
    return f"the value {number}" if kind is str else 2**31 - 1 - number


def _reader(compiler: Any) -> Callable[[Sequence[Any]], Any]:
    """Return what makes objects of a compiled query set's rows, as Django's own iteration does."""
    info, select = compiler.klass_info, compiler.select
    first, last = info["select_fields"][0], info["select_fields"][-1] + 1
    names = [expression.target.attname for expression, _, _ in select[first:last]]
    related = get_related_populators(info, select, DEFAULT_DB_ALIAS)

    def read(row: Sequence[Any]) -> Any:
        made = info["model"].from_db(DEFAULT_DB_ALIAS, names, row[first:last])
        for populator in related:
            populator.populate(row, made)
        return made

    return read
