"""Commitments as customers meet them: asking for one, and accepting or refusing what is offered."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from billing import commitment_requests, commitments, price_lists
from billing.errors import AlreadyCommitted, AlreadyDecided, AlreadyProposed, BadCommitment
from billing.models import Commitment, CommitmentRequest
from marketplace import audit, money, wares
from marketplace.access import Actor
from marketplace.errors import BadOrder, Conflict
from marketplace.models import Organization


def promised_of(organization: Organization, *, at: datetime) -> list[tuple[str, str]]:
    """Return what an organization could commit to, as choices with the price of the list now."""
    names = {ware.sku: ware.name for ware in wares.all_of_them()}
    found = price_lists.in_force(currency=organization.currency, at=at)
    choices = []
    for sku, price in found.items():
        amount = money.shown(price.micros_per_unit_hour, price.currency, exact=True)
        choices.append((sku, f"{price.name or names.get(sku, sku)} ({amount})"))
    return choices


@transaction.atomic
def ask(
    *,
    actor: Actor,
    organization: Organization,
    kind: str,
    skus: Sequence[str],
    amount: int,
    starts_at: datetime,
    months: int,
    note: str,
    key: UUID,
    at: datetime,
) -> CommitmentRequest:
    """Ask for a commitment; the operator answers with an offer, or says no."""
    try:
        with said():
            made = commitment_requests.ask(
                organization=organization, kind=kind, skus=skus, amount=amount, starts_at=starts_at, months=months,
                note=note.strip()[:500], by=actor.user.pk, key=key, at=at,
            )  # fmt: skip
    except AlreadyProposed as error:
        raise Conflict(_("You have asked already; the answer comes here.")) from error
    if not audit.is_recorded("commitment.ask", made.public_id):
        after = {"kind": kind, "skus": list(skus), "amount": amount, "months": months}
        _record(actor, organization, "commitment.ask", made.public_id, after)
    return made


@transaction.atomic
def withdraw(*, actor: Actor, request: CommitmentRequest, at: datetime) -> None:
    """Take a request back."""
    with said():
        commitment_requests.withdraw(request=request, at=at)
    _record(actor, request.organization, "commitment.withdraw_request", request.public_id, {})


@transaction.atomic
def accept(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Accept what is offered: from its first month on it holds."""
    with said():
        commitments.accept(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment.organization, "commitment.accept", commitment.public_id, written(commitment))


@transaction.atomic
def refuse(*, actor: Actor, commitment: Commitment, at: datetime) -> None:
    """Refuse what is offered."""
    with said():
        commitments.refuse(commitment=commitment, by=actor.user.pk, at=at)
    _record(actor, commitment.organization, "commitment.refuse", commitment.public_id, written(commitment))


@contextmanager
def said() -> Iterator[None]:
    """Turn what the till refuses into the reader's language."""
    try:
        yield
    except AlreadyDecided as error:
        raise Conflict(_("Somebody decided about this already.")) from error
    except AlreadyCommitted as error:
        raise Conflict(_("Another commitment of this organization covers one of these things at that time.")) from error
    except BadCommitment as error:
        words = {
            "kind": _("Choose what is promised."),
            "skus": _("Choose what it is about: hours are of one thing, and each has to be for sale."),
            "amount": _("Write how much: an amount that can be paid, or hours."),
            "discount_bps": _("A discount leaves something to pay."),
            "starts_at": _("Its first month began already; choose a later one."),
            "months": _("A term has 1 to 60 months."),
        }
        raise BadOrder(error.field, words.get(error.field, str(error))) from error


def written(row: Commitment) -> dict[str, object]:
    """Return what the audit log keeps of a commitment."""
    return {
        "kind": row.kind,
        "committed": money.decimal_string(row.committed_micros),
        "hours": row.committed_unit_hours,
        "discount_bps": row.discount_bps,
        "starts_at": row.starts_at.isoformat(),
        "ends_at": row.ends_at.isoformat(),
        "note": row.note,
    }


def _record(actor: Actor, organization: Organization, verb: str, subject_id: str, after: dict[str, object]) -> None:
    audit.record(actor=actor, organization=organization, verb=verb, subject_id=subject_id, after=after)
