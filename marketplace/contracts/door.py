"""The door to contracts and claims: a part of `access` in its own file.

A claim is seen by both its sides: its customer's people, and its seller's.
NotFound for what the actor may not know exists, Forbidden for what they may
see but not do, as there.
"""

from collections.abc import Sequence
from typing import NamedTuple

from django.db.models import Case, Q, QuerySet, When

from marketplace import access
from marketplace.access import Actor, _check, _check_token, _memberships_for, _projects, memberships
from marketplace.contracts import offering
from marketplace.errors import NotFound
from marketplace.models import (
    Acceptance,
    Claim,
    ClaimDispute,
    ClaimEvent,
    Contract,
    ContractVersion,
    Membership,
    Organization,
    Project,
    Side,
    Verdict,
)


class Verbs(NamedTuple):
    """What each side of a claim wants to do with it; empty where that side is not meant."""

    buyer: str = ""
    seller: str = ""


VIEW = Verbs("claim.view", "claim.view")
ACT = Verbs("claim.change", "claim_sale.change")
AS_CUSTOMER = Verbs("claim.change")
AS_SELLER = Verbs("", "claim_sale.change")


def versions(actor: Actor) -> QuerySet[ContractVersion]:
    """Return the versions that this actor may read: offered to all or to them, accepted by them, or their own."""
    return offering.visible_to(_memberships_for(actor, "contract.view").values("organization"))


def version_for(actor: Actor, version_id: str, *, verb: str) -> ContractVersion:
    """Return a version that this actor may read, by its id."""
    _check_token(actor.token, verb)
    found = offering.visible_to(memberships(actor).values("organization")).filter(public_id=version_id).first()
    if found is None:
        raise NotFound
    return found


def own_version_for(actor: Actor, version_id: str, *, verb: str) -> ContractVersion:
    """Return a version of a contract that one of the actor's organizations sells."""
    seen = ContractVersion.objects.filter(contract__seller__in=memberships(actor).values("organization"))
    version = seen.select_related("contract__seller", "contract__buyer").filter(public_id=version_id).first()
    if version is None:
        raise NotFound
    _check(actor, version.contract.seller_id, verb)
    return version


def contract_for(actor: Actor, contract_id: str) -> tuple[Contract, Side, Organization]:
    """Return a contract that the actor sells or negotiates, and as which side and party, to amend it."""
    seen = memberships(actor).values("organization")
    found = Contract.objects.filter(Q(seller__in=seen) | Q(buyer__in=seen), public_id=contract_id)
    contract = found.select_related("seller", "buyer").first()
    if contract is None:
        raise NotFound
    is_sold = memberships(actor).filter(organization=contract.seller).exists()
    party = contract.seller if is_sold or contract.buyer is None else contract.buyer
    if is_sold:
        _check(actor, party.pk, "contract_sale.change")
    else:
        _check(actor, party.pk, "contract_acceptance.create")
    return contract, Side.SELLER if is_sold else Side.BUYER, party


def customers_project(version: ContractVersion, project_id: str) -> Project:
    """Return the project of a customer that accepted a version, for its seller who knows the id."""
    accepted = version.acceptances.filter(side=Side.BUYER).values("organization")
    found = Project.objects.filter(public_id=project_id, organization__in=accepted).select_related("organization")
    project = found.first()
    if project is None:
        raise NotFound
    return project


def accepted(actor: Actor, organization: Organization) -> QuerySet[ContractVersion]:
    """Return the versions under which an organization may order work."""
    own = versions(actor).filter(
        acceptances__organization=organization, acceptances__side=Side.BUYER, acceptances__end=None
    )  # fmt: skip
    return own.filter(state=ContractVersion.State.OFFERED)


def acceptances_of(versions: Sequence[ContractVersion], organization: Organization) -> dict[int, Acceptance]:
    """Return with what an organization agreed to these versions, by their keys; the caller may read them. One query."""
    own = Acceptance.objects.filter(version__in=versions, organization=organization, side=Side.BUYER)
    return {row.version_id: row for row in own.select_related("organization", "end")}


def claims(actor: Actor, *, side: str = Side.BUYER) -> QuerySet[Claim]:
    """Return the claims that this actor may see, as the customer or as the seller, with what their pages show."""
    return _claims(actor, _memberships_for(actor, "claim.view"), side)


def _claims(actor: Actor, through: QuerySet[Membership], side: str) -> QuerySet[Claim]:
    found = Claim.objects.select_related(
        "version", "contract__seller", "organization", "project__organization", "task__job"
    )
    if side == Side.SELLER:
        if access.own_project(actor) is not None:
            return found.none()
        return found.filter(contract__seller__in=through.values("organization"))
    return found.filter(project__in=_projects(actor, through).values("pk"))


def claim_for(actor: Actor, claim_id: str, *, verbs: Verbs) -> tuple[Claim, Side]:
    """Return a claim by its id and which side of it the actor is: the customer where they are both."""
    for side, verb in ((Side.BUYER, verbs.buyer), (Side.SELLER, verbs.seller)):
        claim = _claims(actor, memberships(actor), side).filter(public_id=claim_id).first() if verb else None
        if claim is not None:
            _check(actor, claim.organization_id if side == Side.BUYER else claim.contract.seller_id, verb)
            return claim, side
    raise NotFound


def claim_for_party(actor: Actor, claim_id: str) -> Claim:
    """Return a claim that a third party judges by its signature, whoever carries it here."""
    _check_token(actor.token, "claim.view")
    claim = Claim.objects.filter(public_id=claim_id).select_related("version", "project__organization").first()
    if claim is None or claim.version.terms["verifier"]["kind"] != "third_party":
        raise NotFound
    return claim


def events(claim: Claim) -> QuerySet[ClaimEvent]:
    """Return the timeline of a claim, the oldest first; the caller came through `claim_for`."""
    return ClaimEvent.objects.filter(claim=claim).order_by("pk")


def verdicts(claim: Claim) -> QuerySet[Verdict]:
    """Return what was said of a claim; the caller came through `claim_for`."""
    return Verdict.objects.filter(claim=claim).order_by("pk")


def disputes_of(claim: Claim) -> QuerySet[ClaimDispute]:
    """Return the disputes of a claim, the oldest first; the caller came through `claim_for`."""
    return ClaimDispute.objects.filter(claim=claim).select_related("claim").prefetch_related("notes").order_by("pk")


def disputes(actor: Actor) -> QuerySet[ClaimDispute]:
    """Return the disputes of both sides that this actor may see."""
    seen = _memberships_for(actor, "claim.view")
    either = Q(claim__in=_claims(actor, seen, Side.BUYER).values("pk"))
    either |= Q(claim__in=_claims(actor, seen, Side.SELLER).values("pk"))
    return _disputes().filter(either)


def open_first(found: QuerySet[ClaimDispute]) -> QuerySet[ClaimDispute]:
    """Return disputes in the order in which somebody reads them: those that are open, then the newest."""
    is_over = Case(When(state=ClaimDispute.State.OPEN, then=0), default=1)
    return found.order_by(is_over, "-pk")


def dispute_for(actor: Actor, dispute_id: str, *, verbs: Verbs) -> tuple[ClaimDispute, Side]:
    """Return a dispute by its id, and which side of it the actor is."""
    found = _disputes().filter(public_id=dispute_id).first()
    if found is None:
        raise NotFound
    _, side = claim_for(actor, found.claim.public_id, verbs=verbs)
    return found, side


def dispute_for_arbiter(actor: Actor, dispute_id: str) -> ClaimDispute:
    """Return a dispute that a third party decides by its signature, whoever carries it here."""
    _check_token(actor.token, "claim.view")
    found = _disputes().filter(public_id=dispute_id).first()
    if found is None or found.claim.version.terms["disputes"]["arbiter"] is None:
        raise NotFound
    return found


def any_dispute(dispute_id: str) -> ClaimDispute:
    """Return any dispute, for a capacity manager, or raise NotFound."""
    found = _disputes().filter(public_id=dispute_id).first()
    if found is None:
        raise NotFound
    return found


def any_claim(claim_id: str) -> Claim:
    """Return any claim, for a capacity manager, or raise NotFound."""
    found = Claim.objects.filter(public_id=claim_id).select_related(
        "version", "contract__seller", "organization", "project__organization", "task__job"
    )
    claim = found.first()
    if claim is None:
        raise NotFound
    return claim


def _disputes() -> QuerySet[ClaimDispute]:
    return ClaimDispute.objects.select_related(
        "claim__version", "claim__contract__seller", "claim__organization", "claim__project__organization"
    ).prefetch_related("notes")
