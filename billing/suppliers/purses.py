"""Where a supplier's money is: what may be paid out, and what is held back."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import F

from billing.models import Account, Earning
from billing.models.ledger import SUPPLIER_KINDS


@dataclass(frozen=True, slots=True)
class Purse:
    """A supplier's two accounts in one currency. The first may fall below zero: what it then earns pays that first."""

    payable: Account
    reserve: Account


def lock(owners: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Purse]:
    """Lock the purses of (organization, currency) pairs until the transaction ends, opened if they were not yet.

    All at once, in id order. Whoever locks customers' accounts too does that before.
    """
    wanted = sorted(set(owners))
    Account.objects.bulk_create(
        [
            Account(organization_id=organization_id, kind=kind, currency=currency)
            for organization_id, currency in wanted
            for kind in SUPPLIER_KINDS
        ],
        ignore_conflicts=True,
    )
    rows = Account.objects.filter(kind__in=SUPPLIER_KINDS, organization__in={key for key, _ in wanted})
    found: dict[tuple[int, str], dict[str, Account]] = {}
    for account in rows.order_by("pk").select_for_update(no_key=True):
        assert account.organization_id is not None
        found.setdefault((account.organization_id, account.currency), {})[account.kind] = account
    return {pair: Purse(**found[pair]) for pair in wanted}


def of(organization_id: int) -> dict[str, Purse]:
    """Return an organization's purses by currency, unlocked."""
    rows = Account.objects.filter(organization=organization_id, kind__in=SUPPLIER_KINDS).order_by("currency")
    found: dict[str, dict[str, Account]] = {}
    for account in rows:
        found.setdefault(account.currency, {})[account.kind] = account
    return {currency: Purse(**kinds) for currency, kinds in found.items() if len(kinds) == len(SUPPLIER_KINDS)}


def take_reserve(organization_id: int, currency: str, micros: int) -> None:
    """Write down of which earnings so much of a locked reserve is taken: of those that are released next, first.

    So the later ones stay what they were held back for: corrections of their own use.
    """
    held = Earning.objects.filter(supplier=organization_id, currency=currency, released_at=None, reserve_micros__gt=0)
    for earning in held.filter(taken_micros__lt=F("reserve_micros")).order_by("release_at", "pk"):
        share = min(micros, earning.reserve_micros - earning.taken_micros)
        Earning.objects.filter(pk=earning.pk).update(taken_micros=F("taken_micros") + share)
        micros -= share
        if not micros:
            return
