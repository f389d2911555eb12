"""Ids that people see: a prefix that names the kind of thing, then what nobody can guess."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # base32 (RFC 4648) in lower case: no 0/o or 1/l to confuse
LENGTH = 20  # 100 bits
OF_BYTE = bytes(ord(ALPHABET[byte % 32]) for byte in range(256))

# django-stubs' fields take type parameters that Django's own classes do not know at run time.
if TYPE_CHECKING:
    TextField = models.CharField[str, str]
else:
    TextField = models.CharField


def new_public_id(prefix: str) -> str:
    """Return a fresh id such as `ins_k3v...`: the prefix, an underscore and 20 random base32 characters."""
    return f"{prefix}_" + secrets.token_bytes(LENGTH).translate(OF_BYTE).decode()


class PublicIdField(TextField):
    """The id of a row in pages, the API and the command line; made once, never changed. Primary keys stay inside."""

    def __init__(self, *args: Any, prefix: str, **kwargs: Any) -> None:
        self.prefix = prefix
        super().__init__(*args, **(kwargs | {"max_length": 32, "unique": True, "editable": False}))

    def db_type(self, connection: Any) -> str:
        """Return what Django calls varchar, by the name for which it makes no second index: ids are sought whole."""
        return f"character varying({self.max_length})"

    def get_default(self) -> str:
        return new_public_id(self.prefix)

    def has_default(self) -> bool:
        return True

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, path, args, kwargs = super().deconstruct()
        for fixed in ("max_length", "unique", "editable"):
            kwargs.pop(fixed, None)
        return name, path, args, kwargs | {"prefix": self.prefix}
