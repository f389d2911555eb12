"""Secrets that must be read again, sealed while they rest: registry passwords, a cluster's token.

What is only compared rests as a hash and does not belong here.
"""

from base64 import urlsafe_b64encode

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

PURPOSE = b"gpumarket sealed secrets 1"


class Unreadable(Exception):
    """It was sealed with a key that this marketplace has no more; the secret must be given again."""


def seal(text: str) -> str:
    """Return a text that only this marketplace can turn back: AES-128-CBC with HMAC-SHA256 (Fernet's format)."""
    return _keys().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """Return what was sealed with this or a former secret key, or raise Unreadable."""
    try:
        return _keys().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise Unreadable("It was sealed with a secret key that is no more among the fallbacks.") from error


def resealed(sealed: str) -> str:
    """Return the same secret sealed with today's key, so that a former one may be forgotten. Raises Unreadable."""
    try:
        return _keys().rotate(sealed.encode()).decode()
    except InvalidToken as error:
        raise Unreadable("It was sealed with a secret key that is no more among the fallbacks.") from error


def derived(purpose: str) -> bytes:
    """Return 32 bytes for one purpose, which follow from today's secret key alone (RFC 5869)."""
    made = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"gpumarket derived 1 {purpose}".encode())
    return made.derive(settings.SECRET_KEY.encode())


def _keys() -> MultiFernet:
    """Return today's key before the former ones: the first seals, all of them unseal."""
    return MultiFernet([_key(secret) for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _key(secret: str) -> Fernet:
    # A key of its own (RFC 5869), so that a signature of Django's never says anything about what is sealed.
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(secret.encode())
    return Fernet(urlsafe_b64encode(derived))
