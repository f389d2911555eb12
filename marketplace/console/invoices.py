"""Invoices as the operator sees them: all of them, who sells, and taking back with a second person."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from billing.errors import CreditTooLarge, NoSeller, NothingToInvoice
from billing.invoicing import crediting, issuing, sellers
from billing.models import BillingDetails, CreditProposal, Invoice, InvoiceLine
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import Organization


def listed(*, search: str = "") -> QuerySet[Invoice]:
    """Return all invoices and credit notes, newest first; `search` is part of a number or of a customer's name."""
    found = Invoice.objects.select_related("organization", "credited").order_by("-pk")
    search = search.strip()
    if not search:
        return found
    return found.filter(number__icontains=search) | found.filter(organization__name__icontains=search)


def seller() -> BillingDetails | None:
    """Return who sells, if somebody was named."""
    try:
        return sellers.seller()
    except NoSeller:
        return None


def possible_sellers() -> QuerySet[Organization]:
    """Return the organizations that may be named: those that have said who they are on paper."""
    return Organization.objects.filter(billing_details__isnull=False).order_by("name")


def invoice_for(invoice_id: str) -> Invoice:
    """Return any invoice, or raise NotFound."""
    found = Invoice.objects.select_related("organization", "credited").filter(public_id=invoice_id).first()
    if found is None:
        raise NotFound
    return found


def lines(invoice: Invoice) -> QuerySet[InvoiceLine]:
    """Return an invoice's lines."""
    return InvoiceLine.objects.filter(invoice=invoice).order_by("pk")


def proposals(invoice: Invoice | None = None) -> QuerySet[CreditProposal]:
    """Return what was proposed to take back: of an invoice, or all that waits for somebody."""
    found = crediting.proposals()
    return found.filter(invoice=invoice) if invoice else found.filter(state=CreditProposal.State.PROPOSED)


def proposal_for(proposal_id: str) -> CreditProposal:
    """Return any proposal, or raise NotFound."""
    found = crediting.proposals().filter(public_id=proposal_id).first()
    if found is None:
        raise NotFound
    return found


@transaction.atomic
def name_seller(*, actor: Actor, seller: Organization) -> None:
    """Let invoices be those of this organization from now on."""
    sellers.name_seller(organization=seller)
    audit.record(
        actor=actor, organization=seller, verb="seller.name", subject_id=seller.public_id, after={"name": seller.name}
    )


@transaction.atomic
def issue_now(*, actor: Actor, organization: Organization, at: datetime) -> Invoice:
    """Invoice what an organization used until now, without waiting for the end of the month."""
    try:
        invoice = issuing.issue(organization=organization, at=at)
    except NoSeller as error:
        raise Conflict(_("Nobody was named as the seller yet: do that on the page Invoices.")) from error
    except NothingToInvoice as error:
        raise Conflict(
            _("There is nothing to invoice: nothing was used since the last invoice, or too little to be paid.")
        ) from error
    _record(actor, invoice, "invoice.issue", {"number": invoice.number})
    return invoice


@transaction.atomic
def propose_credit(
    *, actor: Actor, invoice: Invoice, amount_micros: int, reason: str, key: UUID, at: datetime
) -> CreditProposal:
    """Propose to take back a net amount of an invoice; somebody else decides."""
    try:
        proposal = crediting.propose(
            invoice=invoice, net_micros=amount_micros, reason=reason, by=actor.user.pk, key=key, at=at
        )
    except CreditTooLarge as error:
        raise BadOrder(
            "amount_micros",
            _("At most %(left)s of it can be taken back, in whole units of its currency.")
            % {"left": money.shown(max(0, error.left_micros), error.currency)},
        ) from error
    if not audit.is_recorded("credit_note.propose", proposal.public_id):
        _record(actor, invoice, "credit_note.propose", _written(proposal), subject_id=proposal.public_id)
    return proposal


@transaction.atomic
def approve_credit(*, actor: Actor, proposal: CreditProposal, at: datetime) -> Invoice:
    """Issue a proposed credit note; not by whoever proposed it."""
    note = crediting.approve(proposal=proposal, by=actor.user.pk, at=at)
    _record(actor, note, "credit_note.issue", {"number": note.number, **_written(proposal)})
    return note


@transaction.atomic
def decline_credit(*, actor: Actor, proposal: CreditProposal, at: datetime) -> None:
    """Leave an invoice as it is."""
    crediting.decline(proposal=proposal, by=actor.user.pk, at=at)
    _record(actor, proposal.invoice, "credit_note.decline", _written(proposal), subject_id=proposal.public_id)


def _written(proposal: CreditProposal) -> dict[str, object]:
    return {
        "invoice": proposal.invoice.number,
        "net": money.decimal_string(proposal.net_micros),
        "reason": proposal.reason,
    }


def _record(actor: Actor, invoice: Invoice, verb: str, after: dict[str, object], *, subject_id: str = "") -> None:
    audit.record(
        actor=actor,
        organization=invoice.organization,
        verb=verb,
        subject_id=subject_id or invoice.public_id,
        after=after,
    )
