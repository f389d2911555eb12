"""The money of claims: an accepted one is paid out of what was set aside, and what nothing needs any more goes back."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from django.db import transaction

from billing.models import Escrow
from billing.months import month_of, next_month
from billing.outcomes import escrows, settling
from billing.outcomes.periods import Period
from billing.outcomes.settling import Due
from billing.outcomes.words import Item, Share
from billing.prepared import ask
from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import claims, timeline
from marketplace.contracts import terms as written
from marketplace.contracts.terms import Terms
from marketplace.models import TO_SETTLE, Claim, ClaimState, ContractVersion, Job, Organization

State = ClaimState

# What of an escrow may still be needed, read at one moment: the open claims, and tasks that have none yet.
NEEDED = """
SELECT coalesce(sum(claim.most_micros), 0)::bigint, count(*) FILTER (WHERE task.state IN ('pending', 'running',
    'verifying'))::bigint, (SELECT pending + running + verifying FROM marketplace_job WHERE public_id = %(escrow)s)
FROM marketplace_claim claim LEFT JOIN marketplace_task task ON task.id = claim.task_id
WHERE claim.escrow_id = %(escrow)s AND claim.closed_at IS NULL
"""


def key_of(claim: Claim) -> str:
    """Return by which key a claim is paid, once."""
    return f"claim:{claim.public_id}"


def subject_of(claim: Claim) -> str:
    """Return what a claim is paid for, which under its version is paid once."""
    return f"{claim.scope}/{claim.subject_key}" if claim.scope else claim.subject_key


def settle(*, claim: Claim, at: datetime) -> Claim:
    """Pay an accepted claim: no more than its price, what the cap leaves, and what is set aside. Once."""
    settle_all(escrow_id=claim.escrow_id, keys=[claim.pk], at=at)
    return Claim.objects.get(pk=claim.pk)


@transaction.atomic
def settle_all(*, escrow_id: str, keys: Sequence[int], at: datetime) -> int:
    """Pay those of these claims of one escrow that are accepted and due, as `settle` does; return how many."""
    found = claims.locked_all(keys)
    due = [one for one in found if one.state in TO_SETTLE and one.due_at is not None and one.due_at <= at]
    if not due:
        return 0
    shares = {version.pk: shares_of(version) for version in {one.version for one in due}}
    left, wanted = escrows.locked(escrow_id).left_micros, []
    for claim in due:
        wanted.append(_due_of(claim, shares[claim.version_id], left, at=at))
        left -= wanted[-1].amount_micros
    paid = settling.settle_all(organization=due[0].organization, resource_id=escrow_id, due=wanted, at=at)
    for claim, outcome in zip(due, paid, strict=True):
        claim.move_to(
            State.SETTLED, at=at, message="", paid_micros=outcome.amount_micros, settled_at=at, closed_at=at,
            due_at=None, clawback_until=at + written.of(claim.version.terms).clawback,
        )  # fmt: skip
    release_spare(escrow_id=escrow_id, cause=due[-1].public_id, at=at)
    return len(due)


def _due_of(claim: Claim, shares: Sequence[Share], left_micros: int, *, at: datetime) -> Due:
    """Return what is to be paid for a claim, out of what is still set aside."""
    terms = written.of(claim.version.terms)
    asked = terms.amount_micros(units=claim.units, bps=claim.paid_bps)
    return Due(key_of(claim), min(asked, left_micros), shares, _item(claim, terms), period_of(claim.version, at))


def close(claim: Claim, *, at: datetime) -> None:
    """Give back what was set aside for a claim that is not paid. Call it with the claim locked."""
    assert claim.state in (State.FAILED, State.REJECTED)
    closed = Claim.objects.filter(pk=claim.pk, state=claim.state, closed_at=None).update(closed_at=at, due_at=None)
    assert closed, "its row is locked"
    claim.closed_at, claim.due_at = at, None
    claim.note(timeline.NOT_PAID(), at=at)
    release_spare(escrow_id=claim.escrow_id, cause=claim.public_id, at=at)


@transaction.atomic
def void(*, actor: Actor, claim: Claim, reason: str, at: datetime) -> Claim:
    """Withdraw a claim before it is paid: what was set aside for it goes back. Voiding twice changes nothing."""
    reason, by = claims.said(reason), actor.name
    claim = claims.locked(claim)
    if claim.state == State.VOIDED:
        return claim
    claim.move_to(State.VOIDED, at=at, message=reason, by=by, closed_at=at, due_at=None)
    claim.disputes.filter(state="open").update(state="withdrawn", decided_at=at, decided_by_name=by, note=reason)
    release_spare(escrow_id=claim.escrow_id, cause=claim.public_id, at=at)
    audit.record(
        actor=actor, organization=claim.contract.seller, verb="claim.void", subject_id=claim.public_id,
        after={"reason": reason},
    )  # fmt: skip
    return claim


@transaction.atomic
def release_spare(*, escrow_id: str, cause: str, at: datetime) -> int:
    """Give back what of an escrow no task and no claim can need any more; return how much that was.

    The last to need it closes it. `cause` is the public id of what ended. Safe to repeat.
    """
    if not Escrow.objects.filter(resource_id=escrow_id, state=Escrow.State.OPEN).exists():
        return 0
    kept = escrows.locked(escrow_id)
    if kept.state != Escrow.State.OPEN:
        return 0
    ((claimed, with_claim, open_tasks),) = ask(NEEDED, {"escrow": escrow_id})
    without_claim = max(0, int(open_tasks or 0) - int(with_claim))
    needed = int(claimed)
    if without_claim:
        needed += without_claim * _terms_of(kept).most_micros
    if not needed:
        escrows.release(resource_id=escrow_id, key=f"rest:{escrow_id}", at=at)
        return int(kept.left_micros)
    spare = kept.left_micros - needed
    if spare <= 0:
        return 0
    key = f"spare:{cause}:{kept.posted_micros + kept.voided_micros}"
    escrows.release(resource_id=escrow_id, key=key, amount_micros=spare, at=at)
    return int(spare)


def release_over(*, at: datetime, limit: int) -> int:
    """Give back what is left of escrows of jobs that are over and whose claims are closed; return how many."""
    found = Escrow.objects.filter(
        state=Escrow.State.OPEN,
        resource_id__in=Job.objects.exclude(state__in=["waiting", "active", "ending"])
        .exclude(contract="")
        .values("public_id"),
    ).exclude(resource_id__in=Claim.objects.filter(closed_at=None).values("escrow_id"))
    escrows = list(found.order_by("pk").values_list("resource_id", flat=True)[:limit])
    for escrow_id in escrows:
        release_spare(escrow_id=escrow_id, cause=escrow_id, at=at)
    return len(escrows)


def period_of(version: ContractVersion, at: datetime) -> Period | None:
    """Return in which period of the cap and floor something counts, in UTC; None where there is neither.

    What all versions of the contract cost counts, so that amending it in the middle of a period gives no second cap.
    """
    terms = written.of(version.terms)
    if not terms.period:
        return None
    start = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if terms.period == "month":
        start = month_of(start)
    cap = terms["cap"]
    return Period(
        starts_at=start,
        ends_at=next_month(start) if terms.period == "month" else start + timedelta(days=1),
        cap_micros=None if cap is None else int(cap["micros"]),
        versions=ContractVersion.objects.filter(contract=version.contract_id).values("public_id"),
    )


def shares_of(version: ContractVersion) -> list[Share]:
    """Return whose parts of what a version brings are which, by its terms."""
    shares = written.of(version.terms)["shares"]
    named = [share["to"] for share in shares if share["to"].startswith("org_")]
    known = {one.public_id: one for one in Organization.objects.filter(public_id__in=named)} if named else {}
    known[written.SELLER] = version.contract.seller
    return [Share(supplier=known.get(share["to"]), bps=share["bps"]) for share in shares]


def _item(claim: Claim, terms: Terms) -> Item:
    unit = terms["unit"]
    return Item(
        name=claim.contract.title,
        project=claim.project.public_id,
        quantity=claim.units,
        unit=unit["name"],
        per=unit["per"],
        micros_per_unit=unit["price_micros"],
        bps=claim.paid_bps,
        version=claim.version.public_id,
        subject=subject_of(claim),
    )


def _terms_of(kept: Escrow) -> Terms:
    return written.of(ContractVersion.objects.get(public_id=kept.version).terms)
