"""Secrets that must be read again rest encrypted: Fernet under Django's SECRET_KEY, its fallbacks still readable."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class Unreadable(Exception):
    """The secret was sealed under a key that is gone; it has to be given again."""


def seal(secret: str) -> str:
    """Return the form in which a secret may rest in a row."""
    return _keys().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    """Return the secret, or raise Unreadable."""
    try:
        return _keys().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise Unreadable("The secret was sealed under another SECRET_KEY; enter it again.") from error


def _keys() -> MultiFernet:
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    # Hashed with a word of its own, so that the key serves nothing else.
    digests = [hashlib.sha256(b"gpumarket sealing " + secret.encode()).digest() for secret in secrets]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])
