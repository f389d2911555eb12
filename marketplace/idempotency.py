"""A POST that moves money or capacity is done once for its key, however often it is sent.

The record is written in the transaction of the effect, so that a key is never
used up without its effect nor the effect done without its key. A second
request with a key that is in flight waits for the first at the unique
constraint, then sees its answer. A refusal rolls the record back with
everything else, so that the same key may be tried again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from django.db import IntegrityError, transaction

from billing.prepared import ask, insertion, values_of
from marketplace.errors import MarketError
from marketplace.models import IdempotencyRecord, Organization

KEY_LENGTH_MAX = 255
KEPT = timedelta(hours=72)
PURGED_AT_ONCE = 10_000
BEGIN = f"{insertion(IdempotencyRecord)} RETURNING id"
END = "UPDATE marketplace_idempotencyrecord SET status = %(status)s, body = %(body)s WHERE id = %(record)s"


class KeyMissing(MarketError):
    """The request needs an Idempotency-Key."""


class KeyOfAnotherOrder(MarketError):
    """The key was used for another request."""


@dataclass(frozen=True)
class Answer:
    """The answer to a request, new or replayed."""

    status: int
    body: Any
    is_replay: bool


def once(
    *,
    organization: Organization,
    route: str,
    key: str,
    order: Any,
    effect: Callable[[], tuple[int, Any]],
) -> Answer:
    """Run `effect` once for this key of this organization and route; later calls get its first answer.

    `order` is what was asked: the same key with another order raises
    KeyOfAnotherOrder. Costs two statements beside the effect.
    """
    if not key or len(key) > KEY_LENGTH_MAX or not key.isprintable():
        raise KeyMissing(
            f"Send an Idempotency-Key header of 1 to {KEY_LENGTH_MAX} printable characters, new for each order."
        )
    fingerprint = sha256(json.dumps(order, sort_keys=True, default=str).encode()).hexdigest()
    try:
        with transaction.atomic():
            record = IdempotencyRecord(organization=organization, route=route, key=key, fingerprint=fingerprint)
            ((record_id,),) = ask(BEGIN, values_of(record))
            status, body = effect()
            # As text: jsonb would give the fields back in an order of its own.
            ask(END, {"record": record_id, "status": status, "body": json.dumps(json.dumps(body))})
    except IntegrityError as error:
        if "idempotency_key_used_once" not in str(error):
            raise
    else:
        return Answer(status=status, body=body, is_replay=False)
    first = IdempotencyRecord.objects.get(organization=organization, route=route, key=key)
    if first.fingerprint != fingerprint:
        raise KeyOfAnotherOrder("This Idempotency-Key was used for another order; send a new one.")
    assert first.status is not None, "a record is seen by others with its answer only"
    assert first.body is not None
    return Answer(status=first.status, body=json.loads(first.body), is_replay=True)


def purge(*, at: datetime, limit: int = PURGED_AT_ONCE) -> int:
    """Forget the oldest answers that were kept for long enough; return how many. A key is new again after that."""
    # The first rows by key are the oldest: bounded work without an index on the time.
    oldest = IdempotencyRecord.objects.order_by("pk").values("pk")[:limit]
    return IdempotencyRecord.objects.filter(pk__in=oldest, created_at__lt=at - KEPT).delete()[0]
