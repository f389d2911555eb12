"""What organizations owe."""

from datetime import datetime

from django.db import transaction

from billing import accounts, ledger, rating


@transaction.atomic
def settle(*, organization_id: int, currency: str, cause: str, at: datetime) -> int:
    """Pay what is owed from promotional credit, then from cash, as far as they reach; return what was paid.

    Called by whatever made money free; `cause` is the key of that event.
    """
    customer = accounts.customer(organization_id=organization_id, currency=currency, lock=True)
    if not customer.owed_micros:
        return 0
    sources = (customer.promo, customer.cash)
    shares, missing = rating.take_in_turn(customer.owed_micros, [source.free_micros for source in sources])
    for source, share in zip(sources, shares, strict=True):
        if share:
            ledger.transfer(
                key=f"settle:{cause}:{source.kind}",
                source=source,
                target=customer.receivable,
                amount_micros=share,
                reason="Payment of what was owed",
                at=at,
            )
    return customer.owed_micros - missing
