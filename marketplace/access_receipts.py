"""The part of `access` for receipts: the signed evidence of what an organization paid for."""

from django.db.models import QuerySet

from marketplace import access
from marketplace.access import Actor, _check
from marketplace.errors import NotFound
from marketplace.models import Organization, Receipt


def receipts(actor: Actor, organization: Organization) -> QuerySet[Receipt]:
    """Return an organization's receipts; a token of one project sees that project's."""
    found = Receipt.objects.filter(organization=organization).select_related("organization", "project")
    own = access.own_project(actor)
    return found if own is None else found.filter(project=own)


def receipt_for(actor: Actor, receipt_id: str, *, verb: str) -> Receipt:
    """Return a receipt of one of the actor's organizations."""
    found = Receipt.objects.filter(public_id=receipt_id).select_related("organization", "project").first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    if not receipts(actor, found.organization).filter(pk=found.pk).exists():
        raise NotFound
    return found
