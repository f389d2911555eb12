"""Issuing invoices: one transaction for a batch of organizations, statements over sets, and nothing twice.

The accounts of everybody in the batch are locked first (the till's gate), then
what was not invoiced is read, then the numbers are taken. Whoever comes at the
same moment waits at the gate and finds nothing left.
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Max, Sum

from billing import accounts, adjusting, charging, rating
from billing.accounts import CustomerAccounts, Organization
from billing.batches import in_parts
from billing.errors import NoSeller, NothingToInvoice
from billing.invoicing import adjusted, pieces, prepaid, sellers, taking_back, writing
from billing.invoicing.drafts import Draft, drafted
from billing.invoicing.pieces import Piece
from billing.models import Account, BillingDetails, Invoice, InvoicePrepaid, InvoiceSeries, InvoiceWait
from billing.months import month_of, next_month

BATCH = 200
MONTHS_MAX = 36
# How long after the end of a month its invoices wait for the last reports of its use.
GRACE = timedelta(hours=1)

log = logging.getLogger(__name__)


def issue(*, organization: Organization, at: datetime) -> Invoice:
    """Invoice everything that an organization used or paid ahead until `at` and that was not invoiced yet.

    Raises NothingToInvoice where that is nothing, less than half a minor unit, paid
    by promotional credit whole, or given back: it goes on the next invoice.
    """
    issued = _issue_batch([organization.pk], cutoff=rating.whole_millisecond(at), at=at)
    if not issued:
        raise NothingToInvoice("there is nothing to invoice")
    return issued[0]


def issue_due(*, at: datetime, seconds: int = 40) -> int:
    """Issue the invoices of every month that is over, oldest first; return how many. Stops after some time.

    Safe to repeat, to run twice at once and to be killed: a batch is issued whole or not at all.
    """
    deadline = time.monotonic() + seconds
    issued = 0
    for cutoff in month_ends(until=at - GRACE):
        after = 0
        while organization_ids := pieces.due(cutoff=cutoff, after=after, limit=BATCH):
            try:
                issued += _issue_together(organization_ids, cutoff=cutoff, at=at)
            except NoSeller:
                log.warning("no invoice was issued: nobody was named as the seller")
                return issued
            after = organization_ids[-1]
            if time.monotonic() > deadline:
                return issued
    return issued


def _issue_together(organization_ids: Sequence[int], *, cutoff: datetime, at: datetime) -> int:
    """Issue a batch, less whoever of it cannot have one; return how many. Raises NoSeller while nobody sells."""
    done = in_parts(
        organization_ids, lambda part: len(_issue_batch(part, cutoff=cutoff, at=at)), leave=_leave, stops=(NoSeller,)
    )
    return sum(done)


def _leave(organization_id: int) -> None:
    log.exception("the invoice of organization %s was not issued", organization_id)


def month_ends(*, until: datetime) -> list[datetime]:
    """Return the ends of the months, in UTC, that are over by `until` and in which something was not invoiced.

    The newest of them, which also have what is older: what asks for nothing may wait for years.
    """
    begin = pieces.earliest()
    if begin is None:
        return []
    ends: deque[datetime] = deque(maxlen=MONTHS_MAX)
    end = next_month(begin)
    while end <= until:
        ends.append(end)
        end = next_month(end)
    return list(ends)


@transaction.atomic
def _issue_batch(organization_ids: Collection[int], *, cutoff: datetime, at: datetime) -> list[Invoice]:
    """Issue what can be issued for these organizations through `cutoff`."""
    seller = sellers.seller()
    payers = accounts.lock_many(organization_ids)
    _take_back(payers, at=at)
    before = _invoiced_before(payers)
    open_ids = [key for key in payers if key not in before or before[key][0] < cutoff]
    found = _charged(open_ids, payers, cutoff)
    since = min(adjusting.window_start(at), month_of(cutoff - rating.MILLISECOND))
    adjusting.bring_up_to_date({key: payers[key] for key in open_ids}, since=since, at=at)
    changed, paid_ahead = adjusted.uninvoiced(open_ids), prepaid.uninvoiced(open_ids)
    promo_used = pieces.promo_used([payers[key].promo.pk for key in open_ids])
    details = {row.organization_id: row for row in BillingDetails.objects.filter(organization__in=open_ids)}
    names = _names(open_ids)
    drafts = []
    for key in open_ids:
        last_end, promo_before = before.get(key, (None, 0))
        draft = drafted(
            payer=payers[key],
            found=found[key],
            adjusted=changed[key],
            prepaid=paid_ahead[key],
            promo_left_micros=promo_used[key] - promo_before,
            last_end=last_end,
            cutoff=cutoff,
            seller=seller,
            details=details.get(key),
            name=names[key],
        )
        if draft is not None:
            drafts.append(draft)
    _wait(set(open_ids) - {draft.organization_id for draft in drafts}, cutoff=cutoff)
    return _issue_drafts(drafts, at=at) if drafts else []


def not_invoiced_micros(*, payer: CustomerAccounts, at: datetime) -> int:
    """Return what was taken from an organization's cash, or is owed, for what is on no invoice yet. Behind the gate."""
    key = payer.cash.organization_id
    assert key is not None
    taken = sum(piece.charged_micros - piece.invoiced_micros for piece in pieces.uninvoiced([key], cutoff=at)[key])
    taken += sum(each.amount_micros for each in adjusted.uninvoiced([key])[key])
    taken += sum(item.amount_micros - item.promo_micros for item in prepaid.uninvoiced([key])[key])
    _, promo_before = _invoiced_before([key]).get(key, (at, 0))
    return max(0, taken - (pieces.promo_used([payer.promo.pk])[key] - promo_before))


def take_back_due(*, at: datetime) -> int:
    """Issue the credit notes of what turned out to be less after its invoice; return how many. Safe to repeat."""
    issued, after = 0, 0
    while organization_ids := taking_back.due(after=after, limit=BATCH):
        done = in_parts(organization_ids, lambda part: _take_back_batch(part, at=at), leave=_leave, stops=(NoSeller,))
        issued += sum(done)
        after = organization_ids[-1]
    return issued


@transaction.atomic
def _take_back_batch(organization_ids: Collection[int], *, at: datetime) -> int:
    return _take_back(accounts.lock_many(organization_ids), at=at)


def _take_back(payers: dict[int, CustomerAccounts], *, at: datetime) -> int:
    """Issue the credit notes of organizations whose accounts are locked, before their next invoices are worked out."""
    found = taking_back.found(payers.keys())
    if not found:
        return 0
    before = _invoiced_before(payers.keys())
    used = pieces.promo_used([payers[key].promo.pk for key in before])
    returned = {key: promo - used[key] for key, (_, promo) in before.items()}
    return len(taking_back.issue(found, payers=payers, credit_returned=returned, at=at))


def _wait(organization_ids: Collection[int], *, cutoff: datetime) -> None:
    """Remember who asks for nothing through a moment, so that no sweep works it out again before the next month."""
    InvoiceWait.objects.bulk_create(
        [InvoiceWait(organization_id=key, through=cutoff) for key in organization_ids],
        update_conflicts=True,
        unique_fields=["organization"],
        update_fields=["through"],
    )


def _issue_drafts(drafts: Sequence[Draft], *, at: datetime) -> list[Invoice]:
    numbers = sellers.take_numbers(InvoiceSeries.Kind.INVOICE, len(drafts))
    invoices = writing.write(drafts, numbers=numbers, at=at)
    log.info("%s invoices were issued, the last of them %s", len(invoices), numbers[-1][2])
    return invoices


def _invoiced_before(payers: Collection[int]) -> dict[int, tuple[datetime, int]]:
    """Return through when each was invoiced, and how much promotional credit of its use the invoices have had."""
    rows = Invoice.objects.filter(organization__in=payers, kind=InvoiceSeries.Kind.INVOICE)
    totals = rows.values("organization").annotate(end=Max("period_end"), promo=Sum("exact_promo_micros"))
    notes = Invoice.objects.filter(organization__in=payers, kind=InvoiceSeries.Kind.CREDIT_NOTE).values("organization")
    back = dict(notes.annotate(promo=Sum("exact_promo_micros")).values_list("organization", "promo"))
    items = InvoicePrepaid.objects.filter(item__organization__in=payers).values("item__organization")
    ahead = dict(items.annotate(promo=Sum("item__promo_micros")).values_list("item__organization", "promo"))
    return {
        key: (row["end"], row["promo"] - back.get(key, 0) - ahead.get(key, 0))
        for row in totals
        for key in [row["organization"]]
    }


def _charged(
    organization_ids: Collection[int], payers: dict[int, CustomerAccounts], cutoff: datetime
) -> dict[int, list[Piece]]:
    """Return what was not invoiced, after charging what of it was not charged yet, as a sweep soon would."""
    found = pieces.uninvoiced(organization_ids, cutoff=cutoff)
    late = [piece.span_id for each in found.values() for piece in each if piece.charged_through < piece.through]
    if not late:
        return found
    charging.charge_locked(late, through=cutoff)
    payers.update(accounts.lock_many(organization_ids))  # their balances are others now
    return pieces.uninvoiced(organization_ids, cutoff=cutoff)


def _names(organization_ids: Collection[int]) -> dict[int, str]:
    """Return the names of organizations: rows of the shop front, which the till knows by its accounts only."""
    rows = Account.objects.filter(organization__in=organization_ids, kind=Account.Kind.CASH)
    return dict(rows.values_list("organization_id", "organization__name"))
