"""What third parties sign: the canonical text of a small object (RFC 8785), with Ed25519 (RFC 8032)."""

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils.translation import gettext as _

from marketplace.contracts.terms import canonical
from marketplace.errors import BadOrder

SIGNATURE_DIGITS = 128


def check(said: Mapping[str, Any], *, signature: str, public_key: str) -> None:
    """Raise BadOrder naming `signature` unless this key signed exactly this; both are hexadecimal."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), canonical(dict(said)).encode())
    except (InvalidSignature, ValueError) as error:
        text = _("This is not the named party's signature of this text: %(text)s") % {"text": canonical(dict(said))}
        raise BadOrder("signature", text) from error
