"""Contracts as they are drafted, offered, negotiated, accepted and withdrawn. A version's terms never change."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Max, Min, Q, QuerySet
from django.db.models.functions import Greatest
from django.utils.translation import gettext as _

from billing import moves
from marketplace import audit, offers
from marketplace.access import Actor
from marketplace.contracts import hosting, sellers
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.errors import BadOrder, Conflict, IllegalState, NotFound
from marketplace.models import Acceptance, AgreementEnd, Contract, ContractVersion, Organization, Side
from marketplace.money import shown

State = ContractVersion.State
TITLE_LENGTH_MAX = 100
CHECK_ARGUMENTS_MAX = 100
CHECK_LENGTH_MAX = 4000


@transaction.atomic
def draft(
    *, actor: Actor, seller: Organization, title: str, terms: Any, at: datetime, buyer: Organization | None = None
) -> ContractVersion:
    """Write the first version of a new contract: for the catalogue, or for one buyer alone. Nobody can accept it yet.

    Raises BadOrder naming the place of what is wrong in the terms.
    """
    title = title.strip()
    if not title or len(title) > TITLE_LENGTH_MAX:
        raise BadOrder("title", _("Write 1 to %(most)s characters.") % {"most": TITLE_LENGTH_MAX})
    if not seller.is_supplier:
        raise Conflict(_("Only suppliers sell; ask to become one first."))
    if buyer is not None and buyer.pk == seller.pk:
        raise BadOrder("buyer", _("A contract is between two organizations."))
    checked = _checked(terms, seller=seller, buyer=buyer)
    contract = Contract.objects.create(
        seller=seller, buyer=buyer, title=title, kind=checked.kind, created_by=actor.user, created_at=at
    )
    return _write(actor, contract, checked, number=1, side=Side.SELLER, at=at)


@transaction.atomic
def amend(*, actor: Actor, contract: Contract, terms: Any, side: Side, at: datetime) -> ContractVersion:
    """Write the next version; earlier ones stay as they are. The buyer of a negotiated contract may propose one too.

    What the buyer proposes is accepted by them with that, and in force once the seller offers it; where they choose a
    verifying command they agree when they accept it with their command.
    """
    contract = (
        Contract.objects.select_for_update(no_key=True, of=("self",))
        .select_related("seller", "buyer")
        .get(pk=contract.pk)
    )
    if side == Side.BUYER and contract.buyer is None:
        raise Conflict(_("Products of the catalogue are not negotiated; ask their seller for a contract of your own."))
    checked = _checked(terms, seller=contract.seller, buyer=contract.buyer)
    if checked.kind != contract.kind:
        raise BadOrder("kind", _("A contract stays of its kind; make a new one."))
    latest = contract.versions.aggregate(latest=Max("number"))["latest"]
    made = _write(actor, contract, checked, number=latest + 1, side=side, at=at)
    if side == Side.BUYER and checked.verifier != "command":
        assert contract.buyer is not None
        _agree(actor, made, contract.buyer, Side.BUYER, at=at)
    return made


@transaction.atomic
def offer(*, actor: Actor, version: ContractVersion, at: datetime) -> None:
    """Put a draft up for acceptance, which is the seller's own. Offering again changes nothing.

    What the platform would pay for when it does not turn out well waits for a capacity manager, who approves it.
    Raises BadOrder where verifying one result could cost more than all unpaid work of the seller may.
    """
    if version.state not in (State.SUBMITTED, State.OFFERED):
        _check_verifying(version, at=at)
    if not needs_approval(version):
        _put_up(actor, version, at=at)
    elif version.state not in (State.SUBMITTED, State.OFFERED):
        _move(version, State.SUBMITTED)
        _agree(actor, version, version.contract.seller, Side.SELLER, at=at)
        _record(actor, version, "contract.submit")


def needs_approval(version: ContractVersion) -> bool:
    """Return whether a capacity manager has to approve a version before anybody can agree to it.

    So it is with what a supplier sells to everybody, and with a guarantee whose credits are not all the seller's to
    bear. Work for one customer, whose terms both sides wrote, is bounded by the limit of its seller alone.
    """
    contract, guarantee = version.contract, version.terms["guarantee"]
    shares_credits = guarantee is not None and guarantee["seller_bps"] < written.BP
    return (contract.buyer_id is None or shares_credits) and not sellers.is_operators(contract.seller)


@transaction.atomic
def approve(*, actor: Actor, version: ContractVersion, at: datetime) -> None:
    """Let a version be agreed to that a supplier submitted, or a draft of the operator's own. Again changes nothing.

    Nobody agrees for a supplier: raises IllegalState for a draft that it did not offer, whoever wrote it.
    """
    if version.state == State.DRAFT and not sellers.is_operators(version.contract.seller):
        raise IllegalState(_("Its seller has not offered it, and nobody agrees to it for them."))
    _put_up(actor, version, at=at)


def _put_up(actor: Actor, version: ContractVersion, *, at: datetime) -> None:
    if version.state == State.OFFERED:
        return
    _move(version, State.OFFERED, offered_at=at)
    _agree(actor, version, version.contract.seller, Side.SELLER, at=at)
    _record(actor, version, "contract.offer")


@transaction.atomic
def withdraw(*, actor: Actor, version: ContractVersion, at: datetime) -> None:
    """Sell no more under a version. What was begun under it goes on by its terms."""
    if version.state == State.WITHDRAWN:
        return
    _move(version, State.WITHDRAWN, withdrawn_at=at)
    _record(actor, version, "contract.withdraw")


@transaction.atomic
def accept(
    *,
    actor: Actor,
    version: ContractVersion,
    organization: Organization,
    sha256: str,
    at: datetime,
    check_image: str = "",
    check_command: Sequence[str] = (),
    third_parties: Sequence[str] = (),
) -> Acceptance:
    """Agree to a version, named by the SHA-256 of its text. Accepting again returns the first acceptance.

    Where the terms leave the verifying command to the customer it is chosen
    here, and stays: another command is another version. Where they let third
    parties verify or decide, the customer names the public key of each, so
    that no seller brings its own key under another's name.
    """
    contract = version.contract
    if contract.seller_id == organization.pk:
        raise Conflict(_("Whoever sells does not buy from itself."))
    if contract.buyer_id not in (None, organization.pk):
        # Seen by a person of several organizations; its seller agreed with one of them alone.
        raise Conflict(_("This contract is for another organization; ask its seller for one of your own."))
    if sha256 != version.sha256:
        raise BadOrder("sha256", _("This is not the SHA-256 of the version's text; read it again before you agree."))
    if version.state != State.OFFERED:
        raise IllegalState(_("This version is not offered; it is %(state)s.") % {"state": version.get_state_display()})
    terms = written.of(version.terms)
    if terms.currency != organization.currency:
        raise Conflict(
            _("It is sold in %(currency)s, and you pay in %(own)s.")
            % {"currency": terms.currency, "own": organization.currency}
        )
    command = _check_command(terms, check_image, check_command)
    found = Acceptance.objects.filter(version=version, organization=organization).first()
    if found is not None:
        check_not_left(found)
        if (found.check_image, found.check_command) != (check_image, command):
            raise Conflict(_("You agreed already, with another verifying command."))
        return found
    _check_third_parties(terms, third_parties)
    made = _agree(
        actor, version, organization, Side.BUYER, at=at, check_image=check_image, check_command=command
    )  # fmt: skip
    _record(actor, version, "contract.accept", organization=organization)
    return made


@transaction.atomic
def leave(*, actor: Actor, version: ContractVersion, organization: Organization, at: datetime) -> None:
    """End what an organization agreed to, for good: nothing new is ordered under it. Leaving again changes nothing.

    What was begun goes on by its terms. The period that runs is the last for which a floor or a share is asked. Raises
    NotFound where it did not agree.
    """
    accepted = acceptance_of(version, organization)
    if accepted is None:
        raise NotFound("version")
    _row, is_new = AgreementEnd.objects.get_or_create(
        acceptance=accepted, defaults={"ended_by": actor.user, "at": at}
    )  # fmt: skip
    if is_new:
        _record(actor, version, "contract.leave", organization=organization)


def check_not_left(accepted: Acceptance) -> None:
    """Raise BadOrder where the organization that agreed has ended that."""
    if AgreementEnd.objects.filter(acceptance=accepted).exists():
        raise BadOrder("contract", _("Your organization ended this agreement; agree to another version."))


def catalogue() -> QuerySet[ContractVersion]:
    """Return what everybody may accept, the newest first."""
    found = ContractVersion.objects.filter(state=State.OFFERED, contract__buyer=None)
    return found.select_related("contract__seller").order_by("-pk")


def visible_to(organizations: Any) -> QuerySet[ContractVersion]:
    """Return the versions that these organizations may read: what is offered to all or to them, and what they sell."""
    open_to_all = Q(contract__buyer=None, state=State.OFFERED)
    own = Q(contract__buyer__in=organizations) & ~Q(state=State.DRAFT, proposed_by=Side.SELLER)
    agreed = Q(acceptances__organization__in=organizations)
    sold = Q(contract__seller__in=organizations)
    found = ContractVersion.objects.filter(open_to_all | own | agreed | sold).distinct()
    return found.select_related("contract__seller", "contract__buyer").order_by("-pk")


def version_for_all(version_id: str) -> ContractVersion:
    """Return any version, for a capacity manager, or raise NotFound."""
    found = ContractVersion.objects.select_related("contract__seller", "contract__buyer").filter(public_id=version_id)
    version = found.first()
    if version is None:
        raise NotFound("version")
    return version


def customer(organization_id: str) -> Organization | None:
    """Return the organization of an id that a customer told a seller."""
    return Organization.objects.filter(public_id=organization_id).first()


def acceptance_of(version: ContractVersion, organization: Organization) -> Acceptance | None:
    """Return with what an organization agreed to a version as its customer, if it did."""
    return Acceptance.objects.filter(version=version, organization=organization, side=Side.BUYER).first()


def in_force_at(accepted: Acceptance) -> datetime | None:
    """Return since when a version holds that its customer agreed to: agreed and offered; None where it is not yet."""
    offered_at = accepted.version.offered_at
    return None if offered_at is None else max(accepted.at, offered_at)


def over_at(accepted: Acceptance) -> datetime | None:
    """Return since when an agreement begins no period: a later version holds for its customer, or they have left."""
    later = Acceptance.objects.filter(
        organization=accepted.organization_id, side=Side.BUYER, version__contract=accepted.version.contract_id,
        version__number__gt=accepted.version.number, version__offered_at__isnull=False,
    )  # fmt: skip
    first: datetime | None = later.aggregate(first=Min(Greatest("at", "version__offered_at")))["first"]
    left = AgreementEnd.objects.filter(acceptance=accepted).values_list("at", flat=True).first()
    return min((moment for moment in (first, left) if moment is not None), default=None)


def _checked(terms: Any, *, seller: Organization, buyer: Organization | None) -> Terms:
    checked = written.checked(terms, seller=seller.public_id)
    if buyer is not None and checked.currency != buyer.currency:
        raise BadOrder("currency", _("The customer pays in %(currency)s.") % {"currency": buyer.currency})
    named = {name for name in checked.beneficiaries if name.startswith("org_")}
    known = set(Organization.objects.filter(public_id__in=named, is_supplier=True).values_list("public_id", flat=True))
    if named - known:
        raise BadOrder(
            "shares", _("There is no such supplier: %(names)s.") % {"names": ", ".join(sorted(named - known))}
        )
    if seller.public_id in named:
        raise BadOrder("shares", _("Write “seller” for the seller's own share."))
    _check_offers("work", (checked.work or {}).get("offers") or ())
    _check_offers("revenue/covers", (checked.covers or {}).get("offers") or (), seller=seller)
    _check_operator(checked, seller)
    return checked


def _check_offers(place: str, names: Sequence[str], *, seller: Organization | None = None) -> None:
    """Raise BadOrder for an offer that there is not, or that is not the seller's own where it has to be."""
    for index, name in enumerate(names):
        try:
            offer = offers.offer_for(name)
        except NotFound as error:
            raise BadOrder(f"{place}/offers/{index}", _("There is no such offer.")) from error
        if seller is not None and offer.supplier_id != seller.pk:
            raise BadOrder(f"{place}/offers/{index}", _("Its GPUs are not the seller's own."))


def _write(actor: Actor, contract: Contract, terms: Terms, *, number: int, side: Side, at: datetime) -> ContractVersion:
    made = ContractVersion.objects.create(
        contract=contract, number=number, terms=dict(terms.value), text=terms.text, sha256=terms.sha256,
        proposed_by=side, created_by=actor.user, created_at=at,
    )  # fmt: skip
    _record(actor, made, "contract.draft")
    return made


def _agree(
    actor: Actor, version: ContractVersion, organization: Organization, side: Side, *, at: datetime, **check: Any
) -> Acceptance:
    try:
        with transaction.atomic():
            return Acceptance.objects.create(
                version=version, organization=organization, side=side, sha256=version.sha256,
                accepted_by=actor.user, accepted_by_name=actor.name, at=at, **check,
            )  # fmt: skip
    except IntegrityError as error:
        if "contract_version_is_accepted_once" not in str(error):
            raise
        return Acceptance.objects.get(version=version, organization=organization)


def _check_command(terms: Terms, image: str, command: Sequence[str]) -> list[str]:
    """Return the verifying command that the customer chose, where the terms leave it to them, and only there."""
    given = list(command)
    if terms.verifier != "command":
        if given or image:
            raise BadOrder("check_command", _("The terms name another verifier; no command is run."))
        return []
    if not given or not given[0]:
        raise BadOrder("check_command", _("Say which command judges each result: exit code 0 passes it, 1 does not."))
    if len(given) > CHECK_ARGUMENTS_MAX or sum(map(len, given)) + len(image) > CHECK_LENGTH_MAX:
        raise BadOrder("check_command", _("The command is too long."))
    if any("\x00" in part for part in (*given, image)):
        raise BadOrder("check_command", _("It cannot contain NUL bytes."))
    return given


def _check_third_parties(terms: Terms, given: Sequence[str]) -> None:
    """Raise BadOrder unless the customer named the key of each third party of the terms, and no other."""
    wanted = {party["public_key"]: party["name"] for party in terms.third_parties}
    if set(given) - set(wanted):
        raise BadOrder("third_parties", _("The terms name no such key."))
    absent = [name for key, name in wanted.items() if key not in given]
    if absent:
        text = _("By these terms %(names)s has a say: name the public key, as you know it from there.")
        raise BadOrder("third_parties", text % {"names": ", ".join(absent)})


def _check_operator(terms: Terms, seller: Organization) -> None:
    """Raise BadOrder where the operator would decide in its own cause."""
    if terms.kind not in written.CLAIMED_KINDS or terms["disputes"]["decided_by"] != "operator":
        return
    if sellers.is_operators(seller):
        raise BadOrder("disputes/decided_by", _("The operator sells this, so a third party has to decide: name it."))
    if terms["disputes"]["if_undecided"] != "refund" and _has_platform_share(terms):
        text = _("The platform has a share, so what it leaves undecided is refunded; or let a third party decide.")
        raise BadOrder("disputes/if_undecided", text)


def _has_platform_share(terms: Terms) -> bool:
    """Return whether the operator earns by terms: as the platform, or as one of its own organizations."""
    named = Organization.objects.filter(public_id__in=terms.beneficiaries)
    return written.PLATFORM in terms.beneficiaries or any(map(sellers.is_operators, named))


def _check_verifying(version: ContractVersion, *, at: datetime) -> None:
    """Raise BadOrder where no job could ever start, for what verifying its results may cost the platform."""
    seller, terms = version.contract.seller, written.of(version.terms)
    least, most = hosting.least_micros(version, at=at), sellers.limit_micros(seller, terms.currency)
    if least <= most or sellers.is_operators(seller):
        return
    text = _(
        "Verifying one result may cost the platform %(cost)s by the list, and all unpaid work under your contracts may "
        "cost it %(most)s, so no job could ever start. Give the verifier fewer runs or less time, or ask the operator "
        "to raise that limit."
    )
    cost, limit = (shown(micros, terms.currency, exact=True) for micros in (least, most))
    raise BadOrder("verifier", text % {"cost": cost, "most": limit})


def _move(version: ContractVersion, state: str, **facts: object) -> None:
    if not moves.move(version, state, ContractVersion.MOVES, **facts):
        version.refresh_from_db(fields=["state"])
        raise IllegalState(
            _("This version is %(state)s, which does not allow this.") % {"state": version.get_state_display()}
        )
    for name, value in {**facts, "state": state}.items():
        setattr(version, name, value)


def _record(actor: Actor, version: ContractVersion, verb: str, *, organization: Organization | None = None) -> None:
    after: Mapping[str, Any] = {"number": version.number, "sha256": version.sha256}
    audit.record(
        actor=actor, organization=organization or version.contract.seller, verb=verb,
        subject_id=version.public_id, after=dict(after),
    )  # fmt: skip
