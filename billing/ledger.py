"""Moving money."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from django.db import connection, transaction
from django.db.models import F, Q

from billing.errors import CurrencyMismatch, InsufficientFunds, KeyReused
from billing.models import Account, Hold, Transfer
from billing.models.ledger import BOUNDED_KINDS

MOVE_ALL = """
INSERT INTO billing_transfer (public_id, key, source_id, target_id, amount_micros, reason, hold_id, effective_at)
SELECT * FROM unnest(
    %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::timestamptz[]
)
"""
POST_ALL = """
UPDATE billing_hold SET posted_micros = posted_micros + post.micros,
    state = CASE WHEN posted_micros + post.micros = amount_micros THEN 'posted' ELSE state END
FROM unnest(%s::bigint[], %s::bigint[]) AS post (id, micros) WHERE billing_hold.id = post.id
"""
# The platform's accounts carry no balance.
BALANCE_ALL = """
UPDATE billing_account
SET balance_micros = balance_micros + change.micros, held_micros = held_micros - change.released
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS change (id, micros, released)
WHERE billing_account.id = change.id AND organization_id IS NOT NULL
"""


@transaction.atomic
def transfer(
    *,
    key: str,
    source: Account,
    target: Account,
    amount_micros: int,
    reason: str,
    at: datetime,
    hold: Hold | None = None,
) -> Transfer:
    """Move money once. Repeating the call with the same key returns the first transfer.

    Raises `KeyReused` for the same key with another body and
    `InsufficientFunds` where a bounded source has less that is not held.
    `hold` only records what the money had been set aside by: see `holds.post`.
    """
    if source.currency != target.currency:
        raise CurrencyMismatch(expected=source.currency, found=target.currency)
    moved, is_new = Transfer.objects.get_or_create(
        key=key,
        defaults={
            "source": source,
            "target": target,
            "amount_micros": amount_micros,
            "reason": reason,
            "hold": hold,
            "effective_at": at,
        },
    )
    if not is_new:
        if (moved.source_id, moved.target_id, moved.amount_micros) != (source.pk, target.pk, amount_micros):
            raise KeyReused(key)
        return moved

    lock(source, target)
    if not source.is_platform:
        has_funds = ~Q(kind__in=BOUNDED_KINDS) | Q(balance_micros__gte=F("held_micros") + amount_micros)
        paying = Account.objects.filter(has_funds, pk=source.pk)
        if not paying.update(balance_micros=F("balance_micros") - amount_micros):
            free_micros = Account.objects.get(pk=source.pk).free_micros
            raise InsufficientFunds(needed_micros=amount_micros, available_micros=free_micros, currency=source.currency)
    if not target.is_platform:
        Account.objects.filter(pk=target.pk).update(balance_micros=F("balance_micros") + amount_micros)
    return moved


def move_all(moves: Sequence[Transfer]) -> None:
    """Move money many times at once: a statement for the transfers, one for all balances, one for holds if there are.

    The caller has locked every customer's account among them and made sure that
    each key is new, and that each hold of theirs is pending and has what is
    taken from it; the database refuses the whole batch otherwise.
    """
    if not moves:
        return
    changes: Counter[int] = Counter()
    released: Counter[int] = Counter()
    posts: Counter[int] = Counter()
    for move in moves:
        changes[move.source_id] -= move.amount_micros
        changes[move.target_id] += move.amount_micros
        if move.hold_id is not None:
            posts[move.hold_id] += move.amount_micros
            released[move.source_id] += move.amount_micros
    with connection.cursor() as cursor:
        cursor.execute(MOVE_ALL, list(map(list, zip(*map(_columns, moves), strict=True))))
        if posts:
            cursor.execute(POST_ALL, [list(posts), list(posts.values())])
        cursor.execute(BALANCE_ALL, [list(changes), list(changes.values()), [released[key] for key in changes]])


def _columns(move: Transfer) -> tuple[object, ...]:
    return (
        move.public_id,
        move.key,
        move.source_id,
        move.target_id,
        move.amount_micros,
        move.reason,
        move.hold_id,
        move.effective_at,
    )


def lock(*accounts: Account) -> None:
    """Lock these rows until the transaction ends; the platform's have nothing to guard and stay free.

    Always in id order, so that two opposite transfers cannot deadlock.
    """
    guarded = [account.pk for account in accounts if not account.is_platform]
    list(Account.objects.select_for_update(no_key=True).filter(pk__in=guarded).order_by("pk").values_list("pk"))
