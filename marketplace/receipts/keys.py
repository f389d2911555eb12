"""The keys with which the platform signs: one is active. Rotating destroys the private half of the one before.

A revoked key counts for nothing, from whenever its signatures are: whoever stole it can write any time into them. What
it had signed is signed anew by `chain.sign_again`, since what the tables hold is ours to vouch for.
"""

from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max

from marketplace.errors import Conflict
from marketplace.models import ReceiptSignature, SigningKey
from provisioning import statements
from provisioning.agent.signing import key_id, moment, new_private, public_of
from provisioning.models import NodeKey
from provisioning.secrets import seal, unseal

log = structlog.get_logger("marketplace.receipts")

KEYS, FIRST_KEY = 0x6B657973, 0x6B657931  # advisory locks of PostgreSQL; the letters of "keys" and "key1"
SHORT_MAX = 200


@transaction.atomic
def current(*, at: datetime) -> SigningKey:
    """Return the active key, which stays that until this transaction ends; make the first one where there is none."""
    _lock(shared=True)
    found = SigningKey.objects.filter(state=SigningKey.State.ACTIVE).first()
    return found or _first(at=at)


def private_of(key: SigningKey) -> str:
    """Return the private half of the active key, in hexadecimal. Raises secrets.Unreadable."""
    return unseal(key.private_sealed)


@transaction.atomic
def rotate(*, at: datetime) -> SigningKey:
    """Sign with a new key from now on. What the former one signed in its time stays good."""
    _lock()
    _end(at=at)
    return _make(at=at)


@transaction.atomic
def revoke(*, key: SigningKey, because: str, at: datetime) -> SigningKey:
    """Let nothing that this key signed count any more; return the active key, a new one if this one was active.

    Raises Conflict for a key that is revoked already, or without a reason.
    """
    if not because.strip():
        raise Conflict("Say why the key is revoked: everybody who verifies a receipt reads it.")
    _lock()
    locked = SigningKey.objects.select_for_update(no_key=True).get(pk=key.pk)
    _move(
        locked, SigningKey.State.REVOKED, private_sealed="", retired_at=locked.retired_at or at, revoked_at=at,
        revoked_because=because.strip()[:SHORT_MAX],
    )  # fmt: skip
    return SigningKey.objects.filter(state=SigningKey.State.ACTIVE).first() or _make(at=at)


def every() -> list[SigningKey]:
    """Return all keys of the platform, the oldest first."""
    return list(SigningKey.objects.order_by("pk"))


def document(*, at: datetime) -> dict[str, Any]:
    """Return what everybody needs who verifies: the platform's keys, and those of nodes that count no more."""
    return {
        "issuer": settings.PUBLIC_URL,
        "as_of": moment(at),
        "keys": [_platform(key) for key in every()],
        "revoked_node_keys": [_node(key) for key in statements.revoked_keys()],
    }


def _platform(key: SigningKey) -> dict[str, Any]:
    return {
        "id": key.public_id,
        "algorithm": "Ed25519",
        "public_key": key.public_key,
        "state": key.state,
        "since": moment(key.created_at),
        "until": key.retired_at and moment(key.retired_at),
        "revoked_at": key.revoked_at and moment(key.revoked_at),
        "revoked_because": key.revoked_because or None,
    }


def _node(key: NodeKey) -> dict[str, Any]:
    assert key.revoked_at is not None
    return {
        "id": key.public_id,
        "node": key.node.public_id,
        "public_key": key.public_key,
        "revoked_at": moment(key.revoked_at),
        "revoked_because": key.revoked_because,
    }


def _make(*, at: datetime) -> SigningKey:
    private = new_private()
    public = public_of(private)
    made = SigningKey.objects.create(
        public_id=key_id(public), public_key=public, private_sealed=seal(private), created_at=at
    )
    log.info("signing key", key=made.public_id)
    return made


def _first(*, at: datetime) -> SigningKey:
    """Make the first key, once however many ask at the same moment."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [FIRST_KEY])
    return SigningKey.objects.filter(state=SigningKey.State.ACTIVE).first() or _make(at=at)


def _end(*, at: datetime) -> None:
    for key in SigningKey.objects.filter(state=SigningKey.State.ACTIVE):
        last = ReceiptSignature.objects.filter(key=key).aggregate(last=Max("at"))["last"]
        _move(key, SigningKey.State.RETIRED, private_sealed="", retired_at=max(at, last or at))


def _move(key: SigningKey, state: str, **changes: Any) -> None:
    old = SigningKey.State(key.state)
    if state not in SigningKey.MOVES[old]:
        raise Conflict(f"{key.public_id} is {old.label.lower()} already.")
    if not SigningKey.objects.filter(pk=key.pk, state=old).update(state=state, **changes):
        raise Conflict(f"{key.public_id} is no longer {old.label.lower()}.")
    log.info("signing key", key=key.public_id, old=old, new=state)


def _lock(*, shared: bool = False) -> None:
    """Let nobody change which key is active until this transaction ends; who only signs shares the lock."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}(%s)", [KEYS])
