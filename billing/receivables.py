"""What organizations owe."""

from datetime import datetime

from django.db import transaction

from billing import accounts, ledger, rating
from billing.models import Account


@transaction.atomic
def settle(*, freed: Account, cause: str, at: datetime) -> int:
    """Pay what is owed from promotional credit, then from cash, as far as they reach; return what was paid.

    Called by whatever made money free on an account; `cause` is the key of that event.
    """
    assert freed.organization_id is not None
    payer = accounts.lock(organization_id=freed.organization_id, currency=freed.currency)
    if not payer.owed_micros:
        return 0
    sources = (payer.promo, payer.cash)
    shares, missing = rating.take_in_turn(payer.owed_micros, [source.free_micros for source in sources])
    for source, share in zip(sources, shares, strict=True):
        if share:
            ledger.transfer(
                key=f"settle:{cause}:{source.kind}",
                source=source,
                target=payer.receivable,
                amount_micros=share,
                reason="Payment of what was owed",
                at=at,
            )
    return payer.owed_micros - missing
