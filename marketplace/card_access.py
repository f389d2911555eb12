"""The part of `access` for cards and payments: the only door to these rows of a tenant."""

from django.db.models import QuerySet

from billing.models import Card, Payment
from marketplace import access
from marketplace.access import Actor
from marketplace.errors import NotFound
from marketplace.models import Organization


def cards(organization: Organization) -> QuerySet[Card]:
    """Return an organization's cards, the default one first; the caller came through `organization_for`."""
    return Card.objects.filter(organization=organization, removed_at=None).order_by("-is_default", "-pk")


def card_for(actor: Actor, card_id: str, *, verb: str) -> Card:
    """Return a card of one of the actor's organizations; one that was removed is not there any more."""
    found = Card.objects.select_related("organization").filter(public_id=card_id, removed_at=None).first()
    if found is None:
        raise NotFound
    access.organization_for(actor, found.organization.public_id, verb=verb)
    return found


def payments(organization: Organization) -> QuerySet[Payment]:
    """Return an organization's payments by card; the caller came through `organization_for`."""
    return Payment.objects.filter(organization=organization).select_related("card", "organization")


def payment_for(actor: Actor, payment_id: str, *, verb: str) -> Payment:
    """Return a payment of one of the actor's organizations."""
    found = Payment.objects.select_related("card", "organization").filter(public_id=payment_id).first()
    if found is None:
        raise NotFound
    access.organization_for(actor, found.organization.public_id, verb=verb)
    return found
