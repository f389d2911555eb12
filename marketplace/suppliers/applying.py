"""Becoming a supplier: an organization applies, a capacity manager decides. Rates come after that, by two people."""

from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from billing import accounts, moves
from marketplace import access, access_till, audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization, SupplierApplication

State = SupplierApplication.State
MOVES: dict[State, tuple[State, ...]] = {
    State.OPEN: (State.APPROVED, State.DECLINED),
    State.APPROVED: (),
    State.DECLINED: (),
}
GPUS_MAX = 1_000_000
NUL = "\x00"
ABOUT_LENGTH_MAX = 1000


@transaction.atomic
def apply(*, actor: Actor, organization: Organization, gpus: int, about: str, at: datetime) -> SupplierApplication:
    """Ask to sell capacity. Raises BadOrder naming what is missing, Conflict where that was asked already."""
    if not 1 <= gpus <= GPUS_MAX:
        raise BadOrder("gpus", _("Write about how many GPUs you have, such as 64."))
    if not about.strip() or len(about) > ABOUT_LENGTH_MAX or NUL in about:
        raise BadOrder("about", _("Write in at most 1,000 letters which GPUs these are, where, and their network."))
    if organization.is_supplier:
        raise Conflict(_("This organization sells capacity already."))
    if access.billing_details(organization) is None:
        raise Conflict(_("Say first who you are on paper: billing details with your tax id."))
    try:
        with transaction.atomic():
            made = SupplierApplication.objects.create(
                organization=organization, gpus=gpus, about=about.strip(), applied_by=actor.user, applied_at=at
            )
    except IntegrityError as error:
        raise Conflict(_("You have asked already; the answer comes here.")) from error
    _record(actor, made, "supplier.apply", {"gpus": gpus})
    return made


@transaction.atomic
def approve(*, actor: Actor, application: SupplierApplication, at: datetime) -> None:
    """Let an organization sell capacity; its accounts are opened. Whoever belongs to it does not decide."""
    access_till.check_apart(actor, application.organization)
    _decide(actor, application, State.APPROVED, note="", at=at)
    organization = application.organization
    Organization.objects.filter(pk=organization.pk).update(is_supplier=True)
    organization.is_supplier = True
    accounts.open_for(organization=organization, is_supplier=True)
    _record(actor, application, "supplier.approve", {})


@transaction.atomic
def decline(*, actor: Actor, application: SupplierApplication, reason: str, at: datetime) -> None:
    """Say no, and why; it may ask again."""
    _decide(actor, application, State.DECLINED, note=reason, at=at)
    _record(actor, application, "supplier.decline", {"reason": reason})


def latest(organization: Organization) -> SupplierApplication | None:
    """Return what an organization asked last, if it did."""
    return SupplierApplication.objects.filter(organization=organization).order_by("-pk").first()


def _decide(actor: Actor, application: SupplierApplication, state: State, *, note: str, at: datetime) -> None:
    if not moves.move(application, state, MOVES, decided_by=actor.user, decided_at=at, note=note[:200]):
        raise Conflict(_("Somebody decided about this already."))
    application.refresh_from_db()


def _record(actor: Actor, application: SupplierApplication, verb: str, after: dict[str, object]) -> None:
    audit.record(
        actor=actor,
        organization=application.organization,
        verb=verb,
        subject_id=application.public_id,
        after=after,
    )
