"""Commitments of organizations: proposed by one capacity manager, agreed by another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from billing import commitments, price_lists
from billing.errors import AlreadyCommitted, BadCommitment
from billing.models import Commitment
from marketplace import audit, money
from marketplace.access import Actor
from marketplace.console import pricing
from marketplace.errors import BadOrder, Conflict, NotFound
from marketplace.models import Organization


def commitment_for(commitment_id: str) -> Commitment:
    """Return any commitment, or raise NotFound."""
    found = Commitment.objects.select_related("organization", "proposed_by").filter(public_id=commitment_id).first()
    if found is None:
        raise NotFound
    return found


def promised_of(organization: Organization, *, at: datetime) -> list[tuple[str, str]]:
    """Return what an organization could commit to, as choices with the price of the list now."""
    names = {ware.sku: ware.name for ware in pricing.wares()}
    found = price_lists.in_force(currency=organization.currency, at=at)
    choices = []
    for sku, price in found.items():
        amount = money.shown(price.micros_per_unit_hour, price.currency, exact=True)
        choices.append((sku, f"{price.name or names.get(sku, sku)} ({amount})"))
    return choices


@transaction.atomic
def propose(
    *,
    actor: Actor,
    organization: Organization,
    kind: str,
    skus: Sequence[str],
    spend_micros: int | None,
    hours: int | None,
    discount_bps: int,
    starts_at: datetime,
    months: int,
    note: str,
    key: UUID,
    at: datetime,
) -> Commitment:
    """Propose a commitment; somebody else agrees."""
    with _said():
        made = commitments.propose(
            organization=organization,
            currency=organization.currency,
            kind=kind,
            skus=skus,
            amount=(spend_micros if kind == Commitment.Kind.SPEND else hours) or 0,
            discount_bps=discount_bps,
            starts_at=starts_at,
            months=months,
            note=note,
            by=actor.user.pk,
            key=key,
            at=at,
            names={ware.sku: ware.name for ware in pricing.wares()},
        )
    if not audit.is_recorded("commitment.propose", made.public_id):
        _record(actor, made, "commitment.propose")
    return made


@transaction.atomic
def agree(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Let a commitment hold from its first month on; not by whoever proposed it."""
    with _said():
        commitments.agree(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment, "commitment.agree")


@transaction.atomic
def decline(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Give up a proposal."""
    commitments.decline(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment, "commitment.decline")


@contextmanager
def _said() -> Iterator[None]:
    """Turn what the till refuses into the reader's language."""
    try:
        yield
    except AlreadyCommitted as error:
        raise Conflict(_("Another commitment of this organization covers one of these things at that time.")) from error
    except BadCommitment as error:
        said = {
            "kind": _("Choose what is promised."),
            "skus": _("Choose what it is about: hours are of one thing, and each has to be for sale."),
            "amount": _("Write how much: an amount that can be paid, or hours."),
            "discount_bps": _("A discount leaves something to pay."),
            "starts_at": _("Its first month began already; choose a later one."),
            "months": _("A term has 1 to 60 months."),
        }
        field = "spend_micros" if error.field == "amount" else error.field
        raise BadOrder(field, said.get(error.field, str(error))) from error


def _record(actor: Actor, row: Commitment, verb: str) -> None:
    after = {
        "kind": row.kind,
        "committed": money.decimal_string(row.committed_micros),
        "hours": row.committed_unit_hours,
        "discount_bps": row.discount_bps,
        "starts_at": row.starts_at.isoformat(),
        "ends_at": row.ends_at.isoformat(),
        "note": row.note,
    }
    audit.record(actor=actor, organization=row.organization, verb=verb, subject_id=row.public_id, after=after)
