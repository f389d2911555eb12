"""Saved cards: what the processor keeps for an organization, as of when somebody last looked."""

from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from billing import accounts
from billing.accounts import Organization
from billing.models import Card
from billing.payments import customers, gateway
from billing.public_ids import new_public_id


def of(organization: Organization) -> QuerySet[Card]:
    """Return the cards that can be charged, the default one first."""
    return Card.objects.filter(organization_id=organization.pk, removed_at=None).order_by("-is_default", "-pk")


def adding_url(*, organization: Organization) -> str:
    """Return the address of the processor's page on which a card is saved. Network."""
    back = f"{settings.PUBLIC_URL}/payment-methods"
    page = gateway.hosted_setup(
        key=f"setup:{new_public_id('set')}",
        customer_id=customers.customer_id(organization),
        currency=organization.currency,
        done_url=f"{back}?added=1",
        back_url=back,
    )
    return page.url


def refresh(*, organization: Organization, at: datetime) -> None:
    """Take over which cards the processor keeps; what we removed and it still has is removed there again. Network."""
    customer = customers.known_id(organization.pk)
    if not customer:
        return
    kept = {card.id: card for card in gateway.cards(customer)}
    removed = Card.objects.filter(processor_id__in=kept, removed_at__isnull=False).values_list(
        "processor_id", flat=True
    )
    for processor_id in list(removed):
        gateway.remove_card(processor_id)
        del kept[processor_id]
    with transaction.atomic():
        accounts.lock(organization_id=organization.pk, currency=organization.currency)
        gone = of(organization).exclude(processor_id__in=kept)
        gone.update(removed_at=at, is_default=False)
        Card.objects.bulk_create(
            [
                Card(
                    organization_id=organization.pk,
                    processor_id=card.id,
                    brand=card.brand,
                    last4=card.last4,
                    exp_month=card.exp_month,
                    exp_year=card.exp_year,
                )
                for card in kept.values()
            ],
            update_conflicts=True,
            unique_fields=["processor_id"],
            update_fields=["brand", "last4", "exp_month", "exp_year"],
        )
        _have_a_default(organization)


@transaction.atomic
def make_default(*, card: Card) -> None:
    """Let charges take this card where none is named."""
    accounts.lock(organization_id=card.organization_id, currency=card.organization.currency)
    Card.objects.filter(organization=card.organization_id, is_default=True).update(is_default=False)
    Card.objects.filter(pk=card.pk, removed_at=None).update(is_default=True)
    _have_a_default(card.organization)


@transaction.atomic
def forget(*, card: Card, at: datetime) -> None:
    """Never charge this card again. `refresh` then lets the processor forget it too."""
    accounts.lock(organization_id=card.organization_id, currency=card.organization.currency)
    Card.objects.filter(pk=card.pk).update(removed_at=at, is_default=False)
    _have_a_default(card.organization)


def _have_a_default(organization: Organization) -> None:
    """Let the newest card be the default one where there is none."""
    if not of(organization).filter(is_default=True).exists():
        newest = of(organization).order_by("-pk").values("pk")[:1]
        Card.objects.filter(pk__in=newest).update(is_default=True)
