"""What is signed, and how: canonical JSON (RFC 8785), SHA-256, Ed25519 (RFC 8032). docs/receipts.md has the format.

A signed document is `{"body": {...}, "signatures": [{"at", "key", "signature"}]}`. What is signed is the canonical
JSON of `{"at", "digest", "key", "kind"}`: the digest is that of the body, and the kind keeps a signature of one kind
of document from ever being one of another kind.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STATEMENT = "gpumarket.node-statement.1"


def canonical(value: Any) -> bytes:
    """Return the one form of a JSON value (RFC 8785). Raises ValueError for what that has no form for."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical form, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def key_id(public: str) -> str:
    """Return the name of a public key (in hexadecimal), which nothing but this key has."""
    return f"key_{hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]}"


def public_of(private: str) -> str:
    """Return the public key of a private one; both are 32 bytes in hexadecimal."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key().public_bytes_raw().hex()


def new_private() -> str:
    """Return a new private key, 32 bytes in hexadecimal."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def moment(at: datetime) -> str:
    """Return a time as documents spell it: UTC, to the microsecond, 27 characters."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def signed_over(body: Mapping[str, Any], *, key: str, at: str) -> bytes:
    """Return the bytes that a signature of a document is made of."""
    return canonical({"at": at, "digest": digest(body), "key": key, "kind": body["kind"]})


def signature(body: Mapping[str, Any], *, private: str, at: datetime) -> dict[str, str]:
    """Return an entry for a document's `signatures`."""
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    key, when = key_id(public_of(private)), moment(at)
    return {"at": when, "key": key, "signature": signer.sign(signed_over(body, key=key, at=when)).hex()}


def signed(body: Mapping[str, Any], *, private: str, at: datetime) -> dict[str, Any]:
    """Return a document with one signature."""
    return {"body": body, "signatures": [signature(body, private=private, at=at)]}


def is_signed_by(document: Any, public: str) -> bool:
    """Return whether a document that somebody sent carries exactly one signature, a good one of this key."""
    try:
        body, (entry,) = document["body"], document["signatures"]
        if set(document) != {"body", "signatures"} or set(entry) != {"at", "key", "signature"}:
            return False
        if entry["key"] != key_id(public):
            return False
        over = signed_over(body, key=entry["key"], at=entry["at"])
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(entry["signature"]), over)
    except (InvalidSignature, KeyError, TypeError, ValueError, RecursionError):
        return False
    return True
