"""Django's `migrate` in a fraction of its time, which for the first `up` is most of all that it does.

After each operation Django makes the classes of every model anew that is related to the changed one, fifty of ours, and
for each it asks every field anew what it is made of. Here the changed model alone is made anew, which is all that a
table's own columns, constraints and indexes need; for whoever looks further, as data migrations and the change of a key
do, all are made, in Django's own way. A field is asked once.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.core.management.commands import migrate
from django.db.migrations import AlterField
from django.db.migrations.state import ProjectState
from django.db.models import Field


class Command(migrate.Command):
    """Bring the tables up to date."""

    def handle(self, *args: Any, **options: Any) -> None:
        with quick_states():
            super().handle(*args, **options)


@contextmanager
def quick_states() -> Iterator[None]:
    """Let Django carry the models through migrations without making those anew that stay as they are."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(Field, "clone", _clone))
        stack.enter_context(_replaced(ProjectState, "_find_reload_model", _found_alone))
        stack.enter_context(
            _replaced(AlterField, "database_forwards", _with_whole_states(AlterField.database_forwards))
        )
        yield


@contextmanager
def _replaced(owner: type, name: str, by: Callable[..., Any]) -> Iterator[None]:
    real = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, real)


def _clone(field: "Field[Any, Any]") -> "Field[Any, Any]":
    """Make a field like this one, as Django does; it is not copied with what it was found to be made of."""
    if hasattr(field, "base_field"):  # Such a field is made of another, of which each has its own.
        _, _, args, kwargs = field.deconstruct()
        return type(field)(*args, **kwargs)
    known = field.__dict__.get("_made_of")
    if known is None or known[0] != id(field):
        known = field.__dict__["_made_of"] = (id(field), *field.deconstruct()[2:])
    return type(field)(*known[1], **known[2])


_found = ProjectState._find_reload_model  # type: ignore[attr-defined]


def _found_alone(state: ProjectState, app_label: str, model_name: str, delay: bool = False) -> set[tuple[str, str]]:
    """Return which models to make anew: the changed one, and all that Django says where models inherit from models.

    What refers to it still means its class of before, of which Django keeps note as of all that it puts off.
    """
    if any(isinstance(base, str) for model in state.models.values() for base in model.bases):
        return set(_found(state, app_label, model_name, delay))
    state.is_delayed = True
    return {(app_label, model_name)}


def _with_whole_states(alter: Callable[..., None]) -> Callable[..., None]:
    """Return a change of a column that knows what else it changes: what refers to a key is of the key's type."""

    def altered(operation: Any, app_label: str, editor: Any, before: ProjectState, after: ProjectState) -> None:
        if operation.field.unique:
            after.clear_delayed_apps_cache()
        alter(operation, app_label, editor, before, after)

    return altered
