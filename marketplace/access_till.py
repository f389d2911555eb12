"""The part of `access` for the till's rows: service levels, what suppliers earn, disputes, cards and payments."""

from django.db.models import Q, QuerySet
from django.utils.translation import gettext

from billing.models import (
    Card,
    Commitment,
    CommitmentRequest,
    Escrow,
    GuaranteeHour,
    Invoice,
    InvoiceDispute,
    Outcome,
    Payment,
    Payout,
    SlaVerdict,
    StatementLine,
    SupplierStatement,
)
from marketplace import access
from marketplace.access import Actor, _check, _check_token
from marketplace.errors import Forbidden, NotFound
from marketplace.models import Membership, Organization, RevenuePeriod
from provisioning.models import Instance


def operator(actor: Actor, *, verb: str) -> None:
    """Let capacity managers of the operator pass; to everybody else there is nothing here."""
    _check_token(actor.token, verb)
    if not actor.user.is_staff:
        raise NotFound


def check_apart(actor: Actor, organization: Organization) -> None:
    """Raise Forbidden for whoever belongs to an organization: nobody decides for the operator in their own cause."""
    if Membership.objects.filter(user=actor.user, organization=organization).exists():
        raise Forbidden(gettext("You belong to this organization; somebody else has to decide."))


def sla_verdicts(actor: Actor, organization: Organization) -> QuerySet[SlaVerdict]:
    """Return the service levels of an organization's instances; a token of one project sees that project's."""
    found = SlaVerdict.objects.filter(organization=organization)
    own = access.own_project(actor)
    return found if own is None else found.filter(project=own.public_id)


def months_of(instance: Instance) -> QuerySet[SlaVerdict]:
    """Return the service levels of an instance in months that are over; the caller came through `instance_for`."""
    return SlaVerdict.objects.filter(resource_id=instance.public_id).order_by("-month")


def escrows(actor: Actor, organization: Organization) -> QuerySet[Escrow]:
    """Return what an organization has set aside for results, of everything that is not over; for no token of one
    project. The caller came through `organization_for`."""
    found = Escrow.objects.filter(organization=organization, state=Escrow.State.OPEN)
    return found if access.own_project(actor) is None else found.none()


def returned(actor: Actor, organization: Organization) -> QuerySet[Outcome]:
    """Return what an organization got back of what it had paid for results, for no token of one project. The caller
    came through `organization_for`."""
    found = Outcome.objects.filter(organization=organization, kind=Outcome.Kind.REVERSED)
    return found if access.own_project(actor) is None else found.none()


def revenue_periods(organization: Organization) -> QuerySet[RevenuePeriod]:
    """Return the periods for which an organization reports revenue; the caller came through `organization_for`."""
    return RevenuePeriod.objects.filter(organization=organization).select_related("version__contract")


def revenue_period_for(actor: Actor, period_id: str, *, verb: str) -> RevenuePeriod:
    """Return a period of one of the actor's organizations."""
    related = RevenuePeriod.objects.select_related("version__contract__seller", "organization")
    found = related.filter(public_id=period_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


def guarantee_hours(instance: Instance) -> QuerySet[GuaranteeHour]:
    """Return the hours of an instance that were judged; the caller came through `instance_for`."""
    return GuaranteeHour.objects.filter(resource_id=instance.public_id).select_related("correction")


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
    _check(actor, found.supplier_id, verb)
    return found


def statement_lines(statement: SupplierStatement) -> QuerySet[StatementLine]:
    """Return the lines of a statement; the caller came through `statement_for`."""
    return StatementLine.objects.filter(statement=statement)


def payouts(supplier: Organization) -> QuerySet[Payout]:
    """Return what was paid out to a supplier; the caller came through `supplier_for`."""
    return Payout.objects.filter(supplier=supplier).select_related("statement")


def commitments(organization: Organization) -> QuerySet[Commitment]:
    """Return what was agreed with an organization or offered to it; the caller came through `organization_for`."""
    told = Q(state__in=[Commitment.State.OFFERED, Commitment.State.AGREED]) | Q(answered_at__isnull=False)
    return Commitment.objects.filter(told, organization=organization).prefetch_related("prices")


def commitment_for(actor: Actor, commitment_id: str, *, verb: str) -> Commitment:
    """Return a commitment that was agreed with, or offered to, one of the actor's organizations."""
    found = Commitment.objects.select_related("organization").filter(public_id=commitment_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    if not commitments(found.organization).filter(pk=found.pk).exists():
        raise NotFound
    return found


def commitment_requests(organization: Organization) -> QuerySet[CommitmentRequest]:
    """Return what an organization asked to commit to; the caller came through `organization_for`."""
    return CommitmentRequest.objects.filter(organization=organization).select_related("commitment")


def commitment_request_for(actor: Actor, request_id: str, *, verb: str) -> CommitmentRequest:
    """Return a request for a commitment of one of the actor's organizations."""
    found = CommitmentRequest.objects.select_related("organization").filter(public_id=request_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


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
    _check(actor, found.invoice.organization_id, verb)
    return found


def cards(organization: Organization) -> QuerySet[Card]:
    """Return an organization's cards, the default one first; the caller came through `organization_for`."""
    return Card.objects.filter(organization=organization, removed_at=None).order_by("-is_default", "-pk")


def card_for(actor: Actor, card_id: str, *, verb: str) -> Card:
    """Return a card of one of the actor's organizations; one that was removed is not there any more."""
    found = Card.objects.select_related("organization").filter(public_id=card_id, removed_at=None).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


def payments(organization: Organization) -> QuerySet[Payment]:
    """Return an organization's payments by card; the caller came through `organization_for`."""
    return Payment.objects.filter(organization=organization).select_related("card", "organization")


def payment_for(actor: Actor, payment_id: str, *, verb: str) -> Payment:
    """Return a payment of one of the actor's organizations."""
    found = Payment.objects.select_related("card", "organization").filter(public_id=payment_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found
