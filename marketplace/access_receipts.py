"""The part of `access` for receipts: the signed evidence of what an organization paid for.

The chain is its customer's; whoever sold the outcome sees the receipt of it and no other.
"""

from collections.abc import Iterable

from django.db.models import QuerySet

from marketplace import access
from marketplace.access import Actor, _check
from marketplace.errors import NotFound
from marketplace.models import Claim, Organization, Receipt


def receipts(actor: Actor, organization: Organization) -> QuerySet[Receipt]:
    """Return an organization's receipts; the caller came through `organization_for`.

    A token of one project sees that project's.
    """
    found = Receipt.objects.filter(organization=organization).select_related("organization", "project")
    own = access.own_project(actor)
    return found if own is None else found.filter(project=own)


def of_claims(claims: Iterable[Claim]) -> QuerySet[Receipt]:
    """Return the receipts of these claims without their texts, the oldest first; the caller came through the claims'
    door, whose both sides may read them.
    """
    subjects = [claim.public_id for claim in claims]
    return Receipt.objects.filter(subject_id__in=subjects).defer("text").order_by("pk")


def receipt_for(actor: Actor, receipt_id: str, *, verb: str) -> Receipt:
    """Return a receipt of one of the actor's organizations, or of an outcome that one of them sold."""
    found = Receipt.objects.filter(public_id=receipt_id).select_related("organization", "project").first()
    if found is None:
        raise NotFound
    try:
        _check(actor, found.organization_id, verb)
    except NotFound:
        _check_seller(actor, found, verb)
        return found
    if not receipts(actor, found.organization).filter(pk=found.pk).exists():
        raise NotFound
    return found


def neighbours(actor: Actor, receipt: Receipt) -> tuple[Receipt | None, Receipt | None]:
    """Return the receipts before and after one in its chain, as far as the actor sees them."""
    if not access.may(actor, receipt.organization, "receipt.view"):
        return None, None
    around = receipts(actor, receipt.organization).filter(sequence__in=[receipt.sequence - 1, receipt.sequence + 1])
    by_number = {row.sequence: row for row in around}
    return by_number.get(receipt.sequence - 1), by_number.get(receipt.sequence + 1)


def _check_seller(actor: Actor, receipt: Receipt, verb: str) -> None:
    """Raise NotFound unless the actor may do this for whoever sold the outcome; a token of one project sold nothing."""
    claim = Claim.objects.filter(public_id=receipt.subject_id).select_related("contract").first()
    if claim is None or access.own_project(actor) is not None:
        raise NotFound
    _check(actor, claim.contract.seller_id, verb)
