"""A supplier's account at the payment processor: made once, and looked at again and again. Network."""

from datetime import datetime, timedelta

from django.db import transaction

from billing.accounts import Organization
from billing.errors import NoDetails, OutcomeUnknown, ProcessorRefused
from billing.models import BillingDetails, PayoutAccount
from billing.payments import gateway
from billing.payments.objects import ConnectAccount

LOOK_EVERY = timedelta(hours=6)


def of(supplier: Organization) -> PayoutAccount | None:
    """Return what we know of a supplier's account, None before it has one."""
    return PayoutAccount.objects.filter(supplier=supplier.pk).first()


def onboarding_url(*, supplier: Organization, email: str, refresh_url: str, return_url: str, at: datetime) -> str:
    """Return where a supplier gives the processor its papers; its account is made first if it has none.

    Raises NoDetails before it said who it is on paper, NoProcessor, ProcessorRefused and OutcomeUnknown. The row and
    its key are there before the call: repeating it makes no second account.
    """
    details = BillingDetails.objects.filter(organization=supplier.pk).first()
    if details is None:
        raise NoDetails("a supplier says who it is on paper first")
    account, _ = PayoutAccount.objects.get_or_create(supplier_id=supplier.pk, defaults={"country": details.country})
    if not account.processor_id:
        made = gateway.connect_account(key=account.processor_key, country=account.country, email=email)
        _learn(account, made, at=at)
    return gateway.onboarding_url(account_id=account.processor_id, refresh_url=refresh_url, return_url=return_url)


def look(*, account: PayoutAccount, at: datetime) -> PayoutAccount:
    """Ask the processor how far an account is, and remember the answer."""
    if account.processor_id:
        _learn(account, gateway.connected_account(account.processor_id), at=at)
    return account


def look_due(*, at: datetime, limit: int = 20) -> int:
    """Look at the accounts that were not looked at for hours; return how many. What does not answer waits."""
    if not gateway.is_there():
        return 0
    rows = PayoutAccount.objects.exclude(processor_id="").exclude(looked_at__gt=at - LOOK_EVERY)
    looked = 0
    for account in rows.order_by("looked_at", "pk")[:limit]:
        try:
            look(account=account, at=at)
            looked += 1
        except (OutcomeUnknown, ProcessorRefused):
            PayoutAccount.objects.filter(pk=account.pk).update(looked_at=at)
    return looked


@transaction.atomic
def hold(*, account: PayoutAccount, is_held: bool, at: datetime) -> None:
    """Hold a supplier's payouts back, or let them go again."""
    PayoutAccount.objects.filter(pk=account.pk).update(held_at=at if is_held else None)
    account.held_at = at if is_held else None


def _learn(account: PayoutAccount, made: ConnectAccount, *, at: datetime) -> None:
    known = {
        "processor_id": made.id,
        "can_be_paid": made.can_be_paid,
        "is_submitted": made.is_submitted,
        "missing": list(made.is_missing),
        "looked_at": at,
    }
    PayoutAccount.objects.filter(pk=account.pk).update(**known)
    for name, value in known.items():
        setattr(account, name, value)
