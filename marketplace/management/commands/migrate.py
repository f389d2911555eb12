"""Django's `migrate` in half of its time, which for the first `up` is most of all that it does.

After each operation Django makes the classes of every model anew that is related to the changed one, fifty of ours, and
for each it asks every field anew what it is made of. Here a field is asked once, and a constraint or an index, which
changes no class but one, is shown to that one alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.core.management.commands import migrate
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
        for verb in ("_append_option", "_remove_option", "_alter_option"):
            stack.enter_context(_replaced(ProjectState, verb, _shown_to_one(getattr(ProjectState, verb))))
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


def _shown_to_one(change: Callable[..., None]) -> Callable[..., None]:
    """Return a change of a model's constraints or indexes that makes no class anew."""

    def changed(state: ProjectState, app_label: str, model_name: str, option: str, *given: Any) -> None:
        classes = state.__dict__.pop("apps", None)  # Without any, Django makes none.
        change(state, app_label, model_name, option, *given)
        if classes is not None:
            state.__dict__["apps"] = classes
            now = state.models[app_label, model_name].options[option]
            setattr(classes.get_model(app_label, model_name)._meta, option, list(now))

    return changed
