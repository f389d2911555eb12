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
UPDATE billing_account SET balance_micros = balance_micros + change.micros
FROM unnest(%s::bigint[], %s::bigint[]) AS change (id, micros) WHERE billing_account.id = change.id
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
    """Move money many times at once: one statement for the transfers, one for all balances.

    The caller has locked every customer's account among them and made sure
    that each key is new; the database refuses the whole batch otherwise.
    """
    Transfer.objects.bulk_create(moves)
    changes: Counter[int] = Counter()
    for move in moves:
        for account, micros in ((move.source, -move.amount_micros), (move.target, move.amount_micros)):
            if not account.is_platform:
                changes[account.pk] += micros
    with connection.cursor() as cursor:
        cursor.execute(MOVE_ALL, [list(changes), list(changes.values())])


def lock(*accounts: Account) -> None:
    """Lock these rows until the transaction ends; the platform's have nothing to guard and stay free.

    Always in id order, so that two opposite transfers cannot deadlock.
    """
    guarded = [account.pk for account in accounts if not account.is_platform]
    list(Account.objects.select_for_update(no_key=True).filter(pk__in=guarded).order_by("pk").values_list("pk"))
