"""The door of `access`, continued: service levels, and what suppliers earn. The same rules, in a file of its own."""

from django.db.models import QuerySet

from billing.models import Invoice, InvoiceDispute, Payout, SlaVerdict, StatementLine, SupplierStatement
from marketplace import access
from marketplace.access import Actor
from marketplace.errors import NotFound
from marketplace.models import Organization


def sla_verdicts(actor: Actor, organization: Organization) -> QuerySet[SlaVerdict]:
    """Return the service levels of an organization's instances; a token of one project sees that project's."""
    found = SlaVerdict.objects.filter(organization=organization)
    if actor.token is not None and actor.token.project is not None:
        found = found.filter(project=actor.token.project.public_id)
    return found


def supplier_for(actor: Actor, organization_id: str | None, *, verb: str) -> Organization:
    """Return an organization that sells capacity; NotFound for one that does not."""
    organization = access.organization_for(actor, organization_id, verb=verb)
    if not organization.is_supplier:
        raise NotFound
    return organization


def statements(supplier: Organization) -> QuerySet[SupplierStatement]:
    """Return a supplier's statements; the caller came through `supplier_for`."""
    return SupplierStatement.objects.filter(supplier=supplier).select_related("supplier")


def statement_for(actor: Actor, statement_id: str, *, verb: str) -> SupplierStatement:
    """Return a statement of one of the actor's organizations."""
    found = SupplierStatement.objects.filter(public_id=statement_id).select_related("supplier").first()
    if found is None:
        raise NotFound
    access.organization_for(actor, found.supplier.public_id, verb=verb)
    return found


def statement_lines(statement: SupplierStatement) -> QuerySet[StatementLine]:
    """Return the lines of a statement; the caller came through `statement_for`."""
    return StatementLine.objects.filter(statement=statement)


def payouts(supplier: Organization) -> QuerySet[Payout]:
    """Return what was paid out to a supplier; the caller came through `supplier_for`."""
    return Payout.objects.filter(supplier=supplier).select_related("statement")


def invoice_disputes(invoice: Invoice) -> QuerySet[InvoiceDispute]:
    """Return what was disputed of an invoice; the caller came through `invoice_for`."""
    return (
        InvoiceDispute.objects.filter(invoice=invoice).select_related("line", "invoice__organization").order_by("-pk")
    )


def dispute_for(actor: Actor, dispute_id: str, *, verb: str) -> InvoiceDispute:
    """Return a dispute about an invoice of one of the actor's organizations."""
    related = InvoiceDispute.objects.select_related("line", "invoice__organization")
    found = related.filter(public_id=dispute_id).first()
    if found is None:
        raise NotFound
    access._check(actor, found.invoice.organization_id, verb)
    return found
