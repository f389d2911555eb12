"""Names that are given once: the database's refusal of a second one, in words for whoever chose it."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import IntegrityError

from marketplace.errors import Conflict


@contextmanager
def given_once(constraint: str, message: str) -> Iterator[None]:
    """Turn the refusal of this constraint into a Conflict; any other refusal of the database is none of ours."""
    try:
        yield
    except IntegrityError as error:
        if constraint not in str(error):
            raise
        raise Conflict(message) from error
