"""Whose money is where."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from django.db.models import F, QuerySet, Sum

from billing.models import Account
from billing.models.ledger import CUSTOMER_KINDS, SUPPLIER_KINDS
from billing.prepared import ask
from billing.wire import Rows, Value

COLUMNS = (
    "id", "public_id", "organization_id", "kind", "currency", "balance_micros", "held_micros", "credit_limit_micros",
    "sanction", "created_at",
)  # fmt: skip
OF_CUSTOMER = f"""
SELECT {", ".join(COLUMNS)}, xmin AS version FROM billing_account
WHERE organization_id = %(organization)s AND currency = %(currency)s AND kind IN ('promo', 'cash', 'receivable')
ORDER BY id
"""  # noqa: S608  nothing in it comes from outside
LOCKED = OF_CUSTOMER + "FOR NO KEY UPDATE"


class Organization(Protocol):
    """All that the till knows of a tenant."""

    @property
    def pk(self) -> int: ...

    @property
    def currency(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Wallet:
    """What an organization has and owes, in micro-units of its currency."""

    currency: str
    promo_micros: int
    cash_micros: int
    held_micros: int
    owed_micros: int
    credit_limit_micros: int = 0

    @property
    def available_micros(self) -> int:
        """What can be spent or held now: neither held nor owed, and what more may be owed."""
        funds = self.promo_micros + self.cash_micros + self.credit_limit_micros
        return max(0, funds - self.held_micros - self.owed_micros)


@dataclass(frozen=True, slots=True)
class CustomerAccounts:
    """The three accounts that a customer pays from, in the order of paying."""

    promo: Account
    cash: Account
    receivable: Account

    @property
    def sources(self) -> tuple[Account, Account, Account]:
        """The order of paying: promotional credit, cash, and what may be owed."""
        return (self.promo, self.cash, self.receivable)

    @property
    def owed_micros(self) -> int:
        return self.receivable.owed_micros

    @property
    def wallet(self) -> Wallet:
        return Wallet(
            currency=self.cash.currency,
            promo_micros=self.promo.balance_micros,
            cash_micros=self.cash.balance_micros,
            held_micros=sum(source.held_micros for source in self.sources),
            owed_micros=self.owed_micros,
            credit_limit_micros=self.receivable.credit_limit_micros,
        )


def open_for(*, organization: Organization, is_supplier: bool = False) -> None:
    """Open an organization's accounts. Those that are open stay as they are."""
    _open(organization.pk, organization.currency, CUSTOMER_KINDS + (SUPPLIER_KINDS if is_supplier else ()))


def wallet(*, organization: Organization) -> Wallet:
    """Return what the organization has, holds and owes, as charged so far."""
    return _customer(organization.pk, organization.currency, lock=False).wallet


def lock(*, organization_id: int, currency: str) -> CustomerAccounts:
    """Lock the accounts that an organization pays from until the transaction ends, and return them.

    They are the gate to everything the till knows of an organization: its
    holds, spans and runway are read after this and change only behind it. One
    gate, whose rows are locked in id order, is why verbs for one organization
    can follow each other in a transaction without a deadlock.
    """
    return _customer(organization_id, currency, lock=True)


def lock_many(organization_ids: Collection[int]) -> dict[int, CustomerAccounts]:
    """Lock the accounts of several organizations, in one statement and the order in which everybody locks them.

    Returns those in each organization's own currency; one whose accounts were never opened is left out.
    """
    found: dict[int, dict[str, Account]] = {}
    for account in _gates(organization_ids):
        assert account.organization_id is not None
        found.setdefault(account.organization_id, {})[account.kind] = account
    return {key: CustomerAccounts(**kinds) for key, kinds in found.items() if len(kinds) == len(CUSTOMER_KINDS)}


def lock_all(organization_ids: Collection[int]) -> None:
    """Lock the same accounts in the same order, for who does not need to read them."""
    list(_gates(organization_ids).values_list("pk"))


def platform(kind: Account.Kind, currency: str) -> Account:
    """Return the platform's account of this kind."""
    return Account.objects.get_or_create(organization=None, kind=kind, currency=currency)[0]


def balance_micros(account: Account) -> int:
    """Return what came in minus what went out; for the platform's accounts, the sum of their transfers."""
    if not account.is_platform:
        return account.balance_micros
    came_in = account.incoming.aggregate(total=Sum("amount_micros"))["total"] or 0
    went_out = account.outgoing.aggregate(total=Sum("amount_micros"))["total"] or 0
    return int(came_in - went_out)


def _customer(organization_id: int, currency: str, *, lock: bool) -> CustomerAccounts:
    """The accounts that an organization pays from, opened if they were not yet."""
    statement = LOCKED if lock else OF_CUSTOMER
    owner: dict[str, Value] = {"organization": organization_id, "currency": currency}
    rows = ask(statement, owner)
    if len(rows) < len(CUSTOMER_KINDS):
        _open(organization_id, currency, CUSTOMER_KINDS)
        rows = ask(statement, owner)
    return customer_of(rows)


def customer_of(rows: Rows) -> CustomerAccounts:
    """Return the accounts of rows that begin with `COLUMNS`."""
    found = [Account.from_db(None, COLUMNS, row[: len(COLUMNS)]) for row in rows]
    return CustomerAccounts(**{account.kind: account for account in found})


def _gates(organization_ids: Collection[int]) -> QuerySet[Account]:
    rows = Account.objects.filter(
        organization__in=organization_ids, kind__in=CUSTOMER_KINDS, currency=F("organization__currency")
    )
    return rows.order_by("organization", "pk").select_for_update(of=("self",), no_key=True)


def _open(organization_id: int, currency: str, kinds: tuple[str, ...]) -> None:
    Account.objects.bulk_create(
        [Account(organization_id=organization_id, kind=kind, currency=currency) for kind in kinds],
        ignore_conflicts=True,
    )
