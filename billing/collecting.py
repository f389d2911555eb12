"""From an unpaid invoice to a paid one, or to one that is given up; what may not be done until then.

The state is derived from payments and the calendar, behind the gate, whenever
somebody looks: a sweep, a page, a launch that would be refused. So money that
came a moment ago counts at once, however it came.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from billing import accounts, credit_lines, moves
from billing.accounts import CustomerAccounts
from billing.errors import PaymentsPastDue
from billing.invoicing import debts
from billing.invoicing.rounding import asked, asked_together
from billing.models import (
    Account,
    Collection,
    CreditProposal,
    DunningEvent,
    DunningStep,
    Invoice,
    InvoiceDispute,
    Payment,
    TakenDebt,
)

State = Collection.State
Action = DunningStep.Action
MOVES: Mapping[State, tuple[State, ...]] = {
    State.OPEN: (State.PAST_DUE, State.PAID),
    State.PAST_DUE: (State.OPEN, State.PAID, State.UNCOLLECTIBLE),
    State.UNCOLLECTIBLE: (State.PAID,),
    # Its bank took the payment back; of what was recovered, it is lost again.
    State.PAID: (State.OPEN, State.UNCOLLECTIBLE),
}
UNPAID = (State.OPEN, State.PAST_DUE)
# Disputes that are open, or upheld with a credit that waits for its second person.
UNSETTLED = Q(state=InvoiceDispute.State.OPEN) | Q(
    state=InvoiceDispute.State.UPHELD, proposal__state=CreditProposal.State.PROPOSED
)
# What an unpaid invoice does to its organization, from the least to the most.
SANCTIONS = (Action.RESTRICT, Action.STOP_SPOT, Action.STOP_ON_DEMAND)


def open_for(invoices: Iterable[Invoice], *, at: datetime) -> None:
    """Open a collection for each of these new invoices that leaves something due. Two statements for any number."""
    owing = [invoice for invoice in invoices if invoice.due_micros]
    if owing:
        _open(owing, at=at)


def _open(owing: Sequence[Invoice], *, at: datetime) -> None:
    days = credit_lines.net_days_of([invoice.organization_id for invoice in owing])
    Collection.objects.bulk_create(
        [
            Collection(
                invoice=invoice,
                organization_id=invoice.organization_id,
                state_since=at,
                due_at=at + timedelta(days=days[invoice.organization_id]),
                look_at=at,
            )
            for invoice in owing
        ]
    )


@transaction.atomic
def review(*, organization: accounts.Organization, at: datetime) -> None:
    """Bring the states of an organization's invoices, and what it may not do, to what its payments say now."""
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    review_locked(payer, organization, at=at)


def review_locked(
    payer: CustomerAccounts, organization: accounts.Organization, *, at: datetime
) -> dict[int, tuple[Collection, int]]:
    """Do the same behind the gate; return what is unpaid now and how much is to be asked for, by the invoice's id."""
    rows = unpaid(organization)
    left = to_ask_for(organization, [row.invoice for row in rows])
    for row in rows:
        if not left[row.invoice_id][0]:
            move(row, State.PAID, at=at)
        elif row.due_at <= at and left[row.invoice_id][1]:
            move(row, State.PAST_DUE, at=at)
        elif row.state == State.PAST_DUE:
            move(row, State.OPEN, at=at)
    taken = open_taken(organization)
    for debt, micros in left_taken(organization, taken, left).items():
        if not micros:
            TakenDebt.objects.filter(pk=debt, look_at__isnull=False).update(look_at=None)
    _sanction(payer, organization)
    return {row.invoice_id: (row, left[row.invoice_id][1]) for row in rows if row.state in UNPAID}


@transaction.atomic
def refusal(organization: accounts.Organization) -> PaymentsPastDue | None:
    """Return why nothing new may start, for somebody who may not; None where everything was paid meanwhile."""
    payer = accounts.lock(organization_id=organization.pk, currency=organization.currency)
    at = timezone.now()
    review_locked(payer, organization, at=at)
    if not payer.receivable.sanction:
        return None
    taken = sum(micros for row, micros in taken_back(organization) if row.due_at <= at)
    states = [State.PAST_DUE, State.UNCOLLECTIBLE]
    rows = Collection.objects.filter(organization=organization.pk, state__in=states).select_related("invoice")
    invoices = [row.invoice for row in rows.order_by("due_at", "pk")]
    lost = sum(row.lost_micros for row in rows)
    owed = sum(debts.left_due_micros(organization=organization, invoices=invoices).values()) + lost + taken
    number = invoices[0].number if invoices else ""
    currency = payer.cash.currency
    return PaymentsPastDue(owed_micros=asked(owed, currency), currency=currency, number=number)


def charges(row: Collection) -> QuerySet[Payment]:
    """Return the charges of an invoice by card."""
    return Payment.objects.filter(
        organization=row.organization_id, purpose=Payment.Purpose.INVOICE, reference=row.invoice.public_id
    )


def unpaid(organization: accounts.Organization) -> list[Collection]:
    """Return what is not paid whole of an organization's invoices, the first to be due first."""
    rows = Collection.objects.filter(organization=organization.pk, state__in=UNPAID)
    return list(rows.select_related("invoice__organization").order_by("due_at", "pk"))


def to_ask_for(organization: accounts.Organization, invoices: Sequence[Invoice]) -> dict[int, tuple[int, int]]:
    """Return of each unpaid invoice, the first to be due first, what is left, and what is to be asked for: what of that
    is not disputed, in whole minor units. By id.

    What no card can be charged for, as it is too little, is asked for with the next one, and is no reason for anything.
    """
    left = debts.left_due_micros(organization=organization, invoices=invoices)
    unsettled = InvoiceDispute.objects.filter(UNSETTLED, invoice__in=left).order_by()
    disputed = dict(unsettled.values_list("invoice").annotate(total=Sum("gross_micros")))
    currency = organization.currency
    asks = {key: asked(max(0, micros - disputed.get(key, 0)), currency) for key, micros in left.items()}
    return {key: (left[key], micros) for key, micros in asked_together(asks, currency).items()}


def is_disputed(invoice: Invoice) -> bool:
    """Return whether something of an invoice is disputed and not settled yet."""
    return InvoiceDispute.objects.filter(UNSETTLED, invoice=invoice).exists()


def open_taken(organization: accounts.Organization) -> list[TakenDebt]:
    """Return what banks took back that no invoice asks for and that was not paid when somebody last looked."""
    rows = TakenDebt.objects.filter(organization=organization.pk, look_at__isnull=False)
    return list(rows.select_related("dispute__payment").order_by("due_at", "pk"))


def left_taken(
    organization: accounts.Organization, taken: Sequence[TakenDebt], left: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    """Return what is left of each of these, by id, where `left` is what is left of all unpaid invoices."""
    invoices_micros = sum(micros for micros, _ in left.values())
    return debts.left_taken_micros(organization=organization, taken=taken, invoices_micros=invoices_micros)


def taken_back(organization: accounts.Organization) -> list[tuple[TakenDebt, int]]:
    """Return what banks took back that no invoice asks for, and what is to be asked for each; one query where that is
    none."""
    taken = open_taken(organization)
    if not taken:
        return []
    unpaid = Invoice.objects.filter(collection__organization=organization.pk, collection__state__in=UNPAID)
    left = left_taken(organization, taken, to_ask_for(organization, list(unpaid)))
    return [(row, asked(left[row.pk], organization.currency)) for row in taken if left[row.pk]]


def reopen(invoice: Invoice, *, at: datetime) -> None:
    """Ask for an invoice again whose payment was taken back; its steps go on where they were. Behind the gate.

    One that was paid when it was issued, so that nothing was ever asked for, is due in the usual time from now.
    """
    row = Collection.objects.filter(invoice=invoice).first()
    if row is None:
        _open([invoice], at=at)
    elif row.state == State.PAID:
        move(row, State.OPEN, at=at, look_at=at)


def move(row: Collection, state: State, *, at: datetime, **facts: object) -> bool:
    """Move a collection if the map allows it from where it is; return whether it did.

    Once it is paid, charges of it that wait for their customer are looked at, and end with that.
    """
    look_at = None if state not in UNPAID else row.look_at
    moved = moves.move(row, state, MOVES, state_since=at, **({"look_at": look_at} | facts))
    if moved and state == State.PAID:
        waiting = charges(row).filter(state=Payment.State.NEEDS_ACTION)
        waiting.update(look_at=at)
    if moved:
        row.refresh_from_db(fields=["state", "state_since", "look_at", "written_off_micros", "recovered_micros"])
    return moved


def _sanction(payer: CustomerAccounts, organization: accounts.Organization) -> None:
    """Write beside what is owed what may not be done because of it: the most of what it has brought."""
    events = DunningEvent.objects.filter(
        invoice__collection__organization=organization.pk,
        invoice__collection__state__in=[State.PAST_DUE, State.UNCOLLECTIBLE],
        step__action__in=SANCTIONS,
    )
    taken = TakenDebt.objects.filter(organization=organization.pk, look_at__isnull=False).exclude(sanction="")
    brought = [*events.values_list("step__action", flat=True), *taken.values_list("sanction", flat=True)]
    found = {Action(action) for action in brought}
    sanction = max(found, key=SANCTIONS.index, default="")
    if payer.receivable.sanction != sanction:
        Account.objects.filter(pk=payer.receivable.pk).update(sanction=sanction)
        payer.receivable.sanction = sanction
