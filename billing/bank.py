"""Money by bank: recorded by one person, approved by another, matched to an invoice or to the customer's cash."""

from datetime import date, datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction

from billing import accounts, collecting, decisions, invoice_payments, ledger, receivables, repeats, runway
from billing.errors import BadBankTransfer
from billing.invoicing.rounding import minor_unit_micros
from billing.models import Account, BankTransfer, Invoice

Direction = BankTransfer.Direction
State = BankTransfer.State
# A bank's day is that of its place, and none begins earlier than this before UTC's.
EARLIEST_DAY = timedelta(hours=14)


@transaction.atomic
def record(
    *,
    organization: accounts.Organization,
    direction: Direction,
    amount_micros: int,
    bank_reference: str,
    value_on: date,
    by: int,
    key: UUID,
    at: datetime,
    invoice: Invoice | None = None,
    note: str = "",
) -> BankTransfer:
    """Record a line of the bank's statement, once per key; nothing moves yet.

    Raises BadBankTransfer for an amount that no bank transfers, a day that has not come, somebody else's invoice, or a
    line that was recorded before.
    """
    accounts.lock(organization_id=organization.pk, currency=organization.currency)
    first = repeats.find(
        BankTransfer, key, organization_id=organization.pk, direction=direction, amount_micros=amount_micros,
        bank_reference=bank_reference, value_on=value_on, invoice=invoice, note=note,
    )  # fmt: skip
    if first is not None:
        return first
    _check(organization, direction, amount_micros, invoice)
    if value_on > (at + EARLIEST_DAY).date():
        raise BadBankTransfer("value_on", "this day has not come yet")
    try:
        with transaction.atomic():
            return BankTransfer.objects.create(
                organization_id=organization.pk, direction=direction, amount_micros=amount_micros,
                currency=organization.currency, bank_reference=bank_reference, value_on=value_on, invoice=invoice,
                note=note, proposed_by_id=by, proposed_at=at, key=key,
            )  # fmt: skip
    except IntegrityError as error:
        if "bank_transfer_once_per_line_of_the_bank" not in str(error):
            raise
        raise BadBankTransfer("bank_reference", "this line of the bank was recorded before") from error


def _check(
    organization: accounts.Organization, direction: Direction, amount_micros: int, invoice: Invoice | None
) -> None:
    if amount_micros <= 0 or amount_micros % minor_unit_micros(organization.currency):
        raise BadBankTransfer("amount_micros", "a bank transfers whole minor units of the currency")
    if invoice is None:
        return
    if direction == Direction.OUT:
        raise BadBankTransfer("invoice", "what goes back pays no invoice")
    if invoice.organization_id != organization.pk or invoice.is_credit_note:
        raise BadBankTransfer("invoice", "it is no invoice of this customer")


@transaction.atomic
def approve(*, transfer: BankTransfer, by: int, at: datetime) -> None:
    """Let the money count; `by` is the id of another person than whoever recorded it.

    What came for an invoice pays that one first; the rest pays what else is owed, the oldest first, and is cash then.
    What goes back leaves the customer's free cash: InsufficientFunds, and nothing decided, where there is less.
    """
    organization = transfer.organization
    payer = accounts.lock(organization_id=organization.pk, currency=transfer.currency)
    decisions.decide(transfer, State.APPROVED, by=by, at=at)
    key = f"bank:{transfer.public_id}"
    bank = accounts.platform(Account.Kind.BANK, transfer.currency)
    came_in = transfer.direction == Direction.IN
    ledger.transfer(
        key=key,
        source=bank if came_in else payer.cash,
        target=payer.cash if came_in else bank,
        amount_micros=transfer.amount_micros,
        reason=f"Bank transfer {transfer.bank_reference}",
        at=at,
    )
    payer = accounts.lock(organization_id=organization.pk, currency=transfer.currency)  # as it is now
    if transfer.invoice is not None:
        invoice_payments.pay_from_cash(
            payer=payer, invoice=transfer.invoice, most_micros=transfer.amount_micros, cause=key, at=at
        )
        payer = accounts.lock(organization_id=organization.pk, currency=transfer.currency)
    if came_in:
        receivables.settle(freed=payer.cash, cause=key, at=at)
    runway.refresh(organization=organization, at=at)
    collecting.review(organization=organization, at=at)


@transaction.atomic
def decline(*, transfer: BankTransfer, by: int, at: datetime) -> None:
    """Let a record not count: it was wrong. Whoever recorded it may take it back in this way too."""
    accounts.lock(organization_id=transfer.organization_id, currency=transfer.currency)
    decisions.decide(transfer, State.DECLINED, by=by, at=at)
