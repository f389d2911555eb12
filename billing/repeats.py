"""Orders that come twice: the same key returns what the first one made, and never makes something else."""

from typing import TypeVar
from uuid import UUID

from django.db.models import Model

from billing.errors import KeyReused

Row = TypeVar("Row", bound=Model)


def find(model: type[Row], key: UUID, **order: object) -> Row | None:
    """Return what was ordered with this key before, None where nothing was; raise KeyReused for another order.

    `order` is all that was asked for, by the names of the row's own attributes.
    """
    first = model._default_manager.filter(key=key).first()
    if first is not None and any(getattr(first, name) != value for name, value in order.items()):
        raise KeyReused(str(key))
    return first
